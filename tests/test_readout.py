"""Linear readouts: the numbers against a slow regression, and where they are recorded."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fadeviz
from fadeviz import FadevizError, Recorder
from fadeviz.analysis.regions import build_regions
from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.experiment import RunConfig, train
from fadeviz.recording import hooks, probe, readout
from fadeviz.recording.probe import Probe
from fadeviz.recording.readout import ReadoutTargets, balanced_weights, linear_readout
from fadeviz.report.sequences import select_sequences
from fadeviz.training.signals import Interrupted

SIZE = 16


def squares(count, size=SIZE):
    """Squares at different places: ``(count, size, size)`` bool."""
    masks = np.zeros((count, size, size), bool)
    for number, mask in enumerate(masks):
        top, left = 1 + (3 * number) % (size // 2 - 1), 1 + (5 * number) % (size // 2 - 1)
        mask[top : top + size // 2 - 1, left : left + size // 2] = True
    return masks


def read(channels, target):
    parts = channels, target.astype(np.float32), balanced_weights(target)
    return linear_readout(*(torch.from_numpy(np.asarray(part)) for part in parts)).numpy()


def slow(channels, target, penalty=0.01):
    """Image by image, pixel by pixel: least squares with one more row for each penalised coefficient."""
    n, c = channels.shape[:2]
    z = channels.astype(np.float64).reshape(n, c, -1)
    mean, spread = z.mean(axis=(0, 2)), z.std(axis=(0, 2))
    z = np.array([[(z[i, k] - mean[k]) / spread[k] if spread[k] else 0 * z[i, k] for k in range(c)] for i in range(n)])
    result = []
    for left_out in range(n):
        rows, values = [], []
        for image in range(n):
            inside = target[image].ravel()
            if image == left_out or inside.all() or not inside.any():
                continue
            for pixel, hit in enumerate(inside):
                weight = 0.5 / (inside.mean() if hit else 1 - inside.mean())
                rows.append(np.sqrt(weight) * np.append(z[image, :, pixel], 1))
                values.append(np.sqrt(weight) * hit)
        lam = penalty * (np.array(rows) ** 2).sum() / (c + 1)
        matrix = np.concatenate([rows, np.sqrt(lam) * np.eye(c + 1)])
        beta = np.linalg.lstsq(matrix, np.append(values, np.zeros(c + 1)), rcond=None)[0]
        result.append(beta[:c] @ z[left_out] + beta[c])
    return np.array(result).reshape(target.shape)


def correlation(maps, masks):
    return float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(maps, masks, strict=True)]))


def noisy(masks, channels, seed=0):
    """One channel is the mask and a little noise, the others are noise."""
    values = np.random.default_rng(seed).normal(size=(len(masks), channels, *masks.shape[1:])).astype(np.float32)
    values[:, -1] = values[:, -1] / 4 + masks
    return values


class TestNumbers:
    @pytest.mark.parametrize(("count", "channels", "size"), [(5, 6, 8), (4, 1, 8), (4, 90, 8)])
    def test_as_by_least_squares_pixel_by_pixel(self, count, channels, size):
        values = noisy(squares(count, size), channels)
        values *= np.exp(np.arange(channels) % 7 - 3)[:, None, None]  # of unlike scales
        values += 20 * np.arange(channels)[:, None, None]  # and far from 0
        target = squares(count, size)
        np.testing.assert_allclose(read(values, target), slow(values, target), atol=1e-4)

    def test_an_image_with_one_class_is_read_but_not_fitted_on(self):
        target = squares(5, 8)
        target[1], target[3] = True, False
        values = noisy(target, 4)
        np.testing.assert_allclose(read(values, target), slow(values, target), atol=1e-5)
        others = np.array([0, 2, 4])
        changed = values.copy()
        changed[1] = changed[1, :, ::-1]  # the same statistics
        np.testing.assert_allclose(read(changed, target)[others], read(values, target)[others], atol=1e-5)

    def test_finds_the_channel_that_is_the_mask_and_nothing_for_masks_of_other_images(self):
        masks = squares(8)
        values = noisy(masks, 12)
        assert correlation(read(values, masks), masks) > 0.65
        permuted = masks[np.roll(np.arange(8), 3)]
        assert correlation(read(values, permuted), permuted) < 0.3
        place = [correlation(read(noisy(masks * 0, 12), masks), masks)]
        assert abs(place[0]) < 0.1

    def test_a_perfect_channel_shrinks_by_the_penalty_alone(self):
        masks = squares(6)
        maps = read(masks[:, None].astype(np.float32), masks)
        gap = [image[mask].mean() - image[~mask].mean() for image, mask in zip(maps, masks, strict=True)]
        np.testing.assert_allclose(gap, 1, atol=0.02)
        assert np.ptp(maps[0][masks[0]]) < 1e-6

    def test_many_channels_are_solved_in_groups_with_the_same_result(self, monkeypatch):
        values, masks = noisy(squares(5), 7), squares(5)
        whole = read(values, masks)
        monkeypatch.setattr(readout, "_GROUP", 2 * 9**2)
        np.testing.assert_allclose(read(values, masks), whole, atol=1e-6)

    def test_constant_channels_change_nothing(self):
        masks = squares(5)
        values = noisy(masks, 3)
        dead = np.zeros_like(values)
        dead[:, 1], dead[:, 2] = 0.1, 3e7  # not exact in float32 sums
        alone, beside = read(values, masks), read(np.concatenate([values, dead], axis=1), masks)
        # The penalty is a share of the mean diagonal, which constant channels lower.
        assert correlation(alone, beside) > 0.9999
        np.testing.assert_allclose(alone, beside, atol=0.02)
        assert np.ptp(read(dead, masks)) == 0

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
    def test_a_channel_that_is_not_finite_gives_nan(self, value):
        values = noisy(squares(4), 3)
        values[2, 1, 3, 4] = value
        assert np.isnan(read(values, squares(4))).all()

    def test_the_same_bytes_each_time_and_the_same_map_in_any_memory_format(self):
        masks = squares(4)
        values = torch.from_numpy(noisy(masks, 5))
        parts = torch.from_numpy(masks).float(), torch.from_numpy(balanced_weights(masks))
        first = linear_readout(values, *parts)
        assert torch.equal(first, linear_readout(values.clone(), *parts))
        last = linear_readout(values.contiguous(memory_format=torch.channels_last), *parts)
        torch.testing.assert_close(first, last, atol=1e-5, rtol=0)

    def test_weights_let_both_classes_count_alike(self):
        target = squares(3)
        target[2] = True
        weights = balanced_weights(target)
        for image in range(2):
            np.testing.assert_allclose(weights[image][target[image]].sum(), SIZE**2 / 2, rtol=1e-5)
            np.testing.assert_allclose(weights[image].mean(), 1, rtol=1e-5)
        assert not weights[2].any()

    def test_targets_are_the_regions_at_the_layers_resolution(self):
        masks = squares(4, 32)
        targets = ReadoutTargets(masks)
        regions = [build_regions(mask, (11, 8)) for mask in masks]
        np.testing.assert_array_equal(targets.target("readout", (11, 8)), [r.distance < 0 for r in regions])
        np.testing.assert_array_equal(targets.target("readout_contour", (11, 8)), [r.band for r in regions])


class Net(nn.Module):
    """A layer that runs twice, one whose maps are single cells, and one with several maps an image."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.twice = nn.Conv2d(6, 6, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.windows = nn.Identity()
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.twice(torch.relu_(self.twice(torch.relu_(self.first(x)))))
        parts = self.windows(torch.cat(x.chunk(2, dim=3)))
        return self.head(torch.cat(parts.chunk(2), dim=3) + self.pool(x))


def make(count=6, size=SIZE):
    torch.manual_seed(0)
    masks = squares(count, size)
    images = torch.from_numpy(noisy(masks, 3))
    return Net(), images, torch.from_numpy(masks).long(), masks


def observe(net, images, targets, masks, layers="first,twice", kinds="feature,readout,readout_contour", **options):
    recorder = Probe(net, layers, kinds, objects=masks)
    snapshots = recorder.observe(images, targets, F.cross_entropy, step=0, **options)
    return {snapshot.key: snapshot.value for snapshot in snapshots}, recorder


class TestProbe:
    def test_reads_the_channels_of_each_call(self):
        net, images, targets, masks = make()
        found, _ = observe(net, images, targets, masks)
        x = net.first(images)
        y = net.twice(torch.relu(x))
        z = net.twice(torch.relu(y))
        bands = np.array([build_regions(mask, (SIZE, SIZE)).band for mask in masks])
        for key, value, target in (
            ("first/0/readout", x, masks),
            ("twice/0/readout_contour", y, bands),
            ("twice/1/readout", z, masks),
        ):
            np.testing.assert_allclose(found[key], slow(value.detach().numpy(), target), atol=1e-4)
        assert correlation(found["first/0/readout"], masks) > 0.45

    @pytest.mark.parametrize("kinds", ["feature,gradient,readout,readout_contour", "readout"])
    def test_a_few_images_at_a_time_give_the_same(self, kinds):
        net, images, targets, masks = make()
        whole, _ = observe(net, images, targets, masks, kinds=kinds)
        parts, recorder = observe(net, images, targets, masks, kinds=kinds, images_at_once=4)
        assert list(parts) == list(whole)
        assert recorder.notes == []
        for key, value in whole.items():
            np.testing.assert_allclose(parts[key], value, atol=1e-5, err_msg=key)

    def test_channels_that_are_too_many_to_keep_give_no_readout(self, monkeypatch):
        net, images, targets, masks = make()
        one_layer = 6 * 6 * SIZE**2 * 4
        monkeypatch.setattr(hooks, "MOST_CHANNELS", one_layer)
        found, recorder = observe(net, images, targets, masks, images_at_once=2)
        assert [key for key in found if "readout" in key] == ["first/0/readout", "first/0/readout_contour"]
        reason = "has too many channels to keep those of all 6 images: observe fewer images or layers"
        assert recorder.notes == [f"no readout: layer 'twice' {reason}"]

    def test_not_finite_channels_give_nan_maps(self):
        net, images, targets, masks = make()
        with torch.no_grad():
            net.first.weight[0] = torch.nan
        found, _ = observe(net, images, targets, masks, layers="first", kinds="feature,readout")
        assert np.isnan(found["first/0/readout"]).all()

    def test_half_precision_is_read_in_float32(self):
        net, images, targets, masks = make()
        exact, _ = observe(net, images, targets, masks)
        coarse, _ = observe(net.bfloat16(), images, targets, masks)
        under, _ = observe(net.float(), images, targets, masks, autocast=torch.bfloat16)
        for found in (coarse, under):
            assert found["twice/1/readout"].dtype == np.float32
            assert correlation(found["twice/1/readout"], exact["twice/1/readout"]) > 0.97

    def test_by_default_where_masks_allow_it(self):
        net, images, targets, masks = make()
        assert Probe(net, "first").kinds == ("feature", "gradient")
        assert Probe(net, "first", "all").kinds == ("feature", "gradient", "channels")
        assert Probe(net, "first", objects=masks).kinds == ("feature", "gradient", "readout")
        every = ("feature", "gradient", "readout", "readout_contour", "channels")
        assert Probe(net, "first", "all", objects=masks).kinds == every
        three = np.where(np.arange(6)[:, None, None] < 3, masks, False)
        assert Probe(net, "first", objects=three).kinds == ("feature", "gradient")
        with pytest.raises(
            FadevizError,
            match="^the kind readout is fitted on the other observed images: 4 or more need a mask with an inside and "
            "an outside, and 3 have one. Observe more images, give their masks, or leave readout out of the kinds$",
        ):
            Probe(net, "first", "readout", objects=three)

    def test_layers_that_cannot_be_read_are_named(self):
        net, images, targets, masks = make()
        found, recorder = observe(net, images, targets, masks, layers="first,pool,windows", kinds=None)
        assert [key for key in found if key.endswith("/readout")] == ["first/0/readout"]
        assert recorder.notes == [
            "no readout: layer 'pool' is too coarse: at 1x1 cells 0 of 6 images have an inside and an outside",
            "no readout: layer 'windows' returns 12 maps for 6 images",
        ]
        too_many = ReadoutTargets(masks).why_none("readout", (6, 2049, SIZE, SIZE))
        assert too_many == "has 2049 channels, and at most 2048 are read"
        _, coarse = observe(net, images, targets, masks, layers="pool", kinds=None)
        assert coarse.kinds == ("feature", "gradient")
        with pytest.raises(FadevizError, match="^there is no readout to record: layer 'pool' is too .* Leave"):
            observe(net, images, targets, masks, layers="pool", kinds="feature,readout")


class TestRecorder:
    @staticmethod
    def record(out, steps=(1, 2), count=6, **options):
        net, images, targets, _ = make(count)
        recorder = Recorder(net, "first", "1:2:1", out, batch=(images, targets), loss_fn=F.cross_entropy, **options)
        for step in steps:
            with torch.no_grad():
                net.first.weight += 0.01
            recorder.step(step)
        recorder.close()
        return fadeviz.open_run(out)

    def test_records_and_draws_the_readout(self, tmp_path):
        run = self.record(tmp_path / "run")
        assert run.info.kinds == run.layers["first"] == ("feature", "gradient", "readout")
        maps = np.asarray(run.maps("first", "readout"))
        assert maps.shape == (3, 6, SIZE, SIZE)
        assert correlation(maps[0], run.foregrounds) > 0.45
        fadeviz.grid(run, tmp_path / "grid.png", kind="readout")
        fadeviz.animate(run, tmp_path / "maps.gif", kind="readout")
        assert '"readout"' in run._repr_html_()
        selected = select_sequences([run], [0], run.steps, 2, 10**6, layers=[{run: "first"}], advice="")
        assert [sequence.kind for sequence in selected.sequences] == ["feature", "gradient", "readout"]

    def test_the_object_is_the_chosen_class(self, tmp_path):
        masks = squares(6) + 2 * squares(7)[1:]
        run = self.record(tmp_path / "run", masks=masks, foreground=2)
        net, images, *_ = make()
        channels = net.first(images).detach().numpy()
        np.testing.assert_allclose(np.asarray(run.maps("first", "readout"))[0], slow(channels, masks == 2), atol=1e-4)

    def test_without_masks_it_is_left_out_or_refused(self, tmp_path):
        net, images, *_ = make()
        options = {"batch": (images, None)}
        with Recorder(net, "first", "1:2:1", tmp_path / "run", **options):
            pass
        assert fadeviz.open_run(tmp_path / "run").layers["first"] == ("feature",)
        with pytest.raises(FadevizError, match="the kind readout .* and 0 have one. Observe more images, give their"):
            Recorder(net, "first", "1:2:1", tmp_path / "other", kinds="feature,readout", **options)
        assert self.record(tmp_path / "few", count=3).info.kinds == ("feature", "gradient")

    def test_a_run_of_an_earlier_version_continues_without_it(self, tmp_path, monkeypatch):
        with monkeypatch.context() as earlier:
            earlier.setattr(probe, "LEAST_IMAGES", 100)
            self.record(tmp_path / "run", steps=())
        run = self.record(tmp_path / "run", resume=True)
        assert run.steps == (0, 1, 2)
        assert run.info.kinds == run.layers["first"] == ("feature", "gradient")
        with pytest.raises(FadevizError, match="was recorded with other kinds"):
            self.record(tmp_path / "run", resume=True, kinds="feature,gradient,readout")


CONFIG = RunConfig(
    size=32, width=0.125, steps=4, snapshots="1:4:1", evaluate_every=4, layers="decoder.3.upsample", observe=4
)


def interrupt_after(step):
    def on_progress(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress


def snapshots(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "snapshots").iterdir())}


class TestTrain:
    @pytest.fixture(autouse=True)
    def _few_test_drawings(self, monkeypatch):
        monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 8)

    def test_records_it_by_default_and_resumes_to_the_same_bytes(self, tmp_path):
        run = train(CONFIG, tmp_path / "whole")
        assert run.info.kinds == ("feature", "gradient", "readout", "gate", "kernel_entropy")
        assert run.layers["decoder.3.upsample"] == run.info.kinds
        assert np.isfinite(np.asarray(run.maps("decoder.3.upsample", "readout"))).all()
        with pytest.raises(Interrupted):
            train(CONFIG, tmp_path / "halves", on_progress=interrupt_after(2))
        train(CONFIG, tmp_path / "halves", resume=True)
        assert snapshots(tmp_path / "halves") == snapshots(tmp_path / "whole")

    @pytest.mark.parametrize("kinds", ["", pytest.param("all", marks=pytest.mark.slow)])
    def test_a_run_of_an_earlier_version_continues_without_it(self, tmp_path, monkeypatch, kinds):
        config = dataclasses.replace(CONFIG, kinds=kinds)
        with monkeypatch.context() as earlier:
            earlier.setattr(probe, "LEAST_IMAGES", 100)
            whole = train(config, tmp_path / "whole")
            with pytest.raises(Interrupted):
                train(config, tmp_path / "halves", on_progress=interrupt_after(2))
        run = train(config, tmp_path / "halves", resume=True)
        assert run.run_id == whole.run_id  # which resuming compares with that of a run of today
        assert run.info.kinds == whole.info.kinds
        assert "readout" not in run.info.kinds
        assert snapshots(tmp_path / "halves") == snapshots(tmp_path / "whole")

    def test_a_run_killed_before_its_first_checkpoint_begins_anew_without_it(self, tmp_path, monkeypatch):
        with monkeypatch.context() as earlier:
            earlier.setattr(probe, "LEAST_IMAGES", 100)
            with pytest.raises(Interrupted):
                train(CONFIG, tmp_path / "run", on_progress=interrupt_after(1))
        (tmp_path / "run" / "checkpoints" / "last.pt").unlink()
        run = train(CONFIG, tmp_path / "run", resume=True)
        assert "readout" not in json.loads((tmp_path / "run" / "run.json").read_text())["kinds"]
        assert "readout" not in run.layers["decoder.3.upsample"]

    def test_too_few_images(self, tmp_path):
        with pytest.raises(
            FadevizError,
            match="^observe is 3; the kind readout_contour is fitted on the other observed images and needs 4 or more. "
            "Use observe=4, or leave readout_contour out of kinds=...$",
        ):
            dataclasses.replace(CONFIG, kinds="feature, readout_contour", observe=3)
        run = train(dataclasses.replace(CONFIG, observe=3, steps=1, snapshots="0:1"), tmp_path / "run")
        assert run.info.kinds == ("feature", "gradient", "gate", "kernel_entropy")
        assert not any("readout" in note for note in run.info.notes)
