"""Batches: worker processes that change no byte and end with the training, bytes that become tensors, pools."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fadeviz import FadevizError
from fadeviz.data import Sample
from fadeviz.data.matting.dataset import SyntheticMattes
from fadeviz.data.pool import Kept, Pool
from fadeviz.data.sets import DataOptions, find_data
from fadeviz.data.shuffled import ShuffledLabels
from fadeviz.data.synthetic.dataset import SyntheticHorses
from fadeviz.data.transforms import AugmentedCrops
from fadeviz.experiment import RunConfig, count_workers, differing_settings, load_data, settings_of, train
from fadeviz.experiment.config import run_id
from fadeviz.training.batches import batches, collate_masks, draw_pool, work_through
from fadeviz.training.matting_loss import collate_matting


class OwnError(Exception):
    """Cannot be made again from its message."""

    def __init__(self, a, b):
        super().__init__(f"{a} is not {b}")


class Faulty:
    """Small images, but for some that are faults."""

    count = None

    def __getitem__(self, index):
        if index == 5:
            raise FadevizError("image 5 is damaged")
        if index == 105:
            raise ValueError("no such number")
        if index == 106:
            raise OwnError(3, 4)
        if index == 205:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == 305:
            time.sleep(3600)
        return Sample(str(index), np.full((4, 4, 3), index % 256, np.uint8), np.zeros((4, 4), np.uint8))


def random_sample(random, size, name="a"):
    flat, colours = random.integers(0, 256, size, np.uint8), random.integers(0, 256, (*size, 3), np.uint8)
    trimap = random.choice(np.array([0, 128, 255], np.uint8), size)
    trimap[0, 0] = 128
    return Sample(name, colours, flat, flat / np.float32(255), trimap, colours ^ 3, colours ^ 7)


def assert_same(got, wanted):
    for mine, theirs in zip(got, wanted, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == b.dtype
            assert a.stride() == b.stride()
            assert torch.equal(a, b)


class TestNormalisation:
    @pytest.mark.parametrize("size", [(1, 7), (5, 1), (31, 48)])
    @pytest.mark.parametrize("count", [1, 3])
    def test_is_the_plain_formula_to_the_bit(self, size, count):
        samples = [random_sample(np.random.default_rng(i), size) for i in range(count)]
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        images = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2)
        wanted = (images.float() / 255 - mean) / std
        assert_same([collate_masks(samples)], [(wanted, torch.from_numpy(np.stack([s.mask for s in samples])).long())])

        trimaps = torch.from_numpy(np.stack([s.trimap for s in samples]))[:, None]
        layers = [torch.from_numpy(np.stack([s.alpha for s in samples]))[:, None], (trimaps == 128).float()]
        for layer in ("foreground", "background", "image"):
            pixels = torch.from_numpy(np.stack([getattr(s, layer) for s in samples]))
            layers.append(pixels.permute(0, 3, 1, 2).float() / 255)
        inputs = torch.cat([wanted, trimaps.float() / 255], 1)
        assert_same([collate_matting(samples)], [(inputs, torch.cat(layers, 1))])

    def test_bytes_are_what_is_sent(self):
        samples = [random_sample(np.random.default_rng(0), (4, 6))]
        assert [part.dtype for part in collate_masks.pack(samples)] == [torch.uint8] * 2
        wide = [part.shape for part in collate_matting.pack(samples) if part.dtype != torch.uint8]
        assert wide == [(1, 4, 6)]  # alpha alone

    def test_a_mirrored_picture_is_mirrored_in_all_it_has(self):
        class Mattes:
            count = 2

            def __getitem__(self, index):
                return random_sample(np.random.default_rng(index), (4, 6))

        data = Mattes()
        plain = [collate_matting([data[i]]) for i in range(2)]
        outcomes = set()
        for step, (inputs, targets) in enumerate(
            batches(data, range(1, 17), 1, 0, flip=True, collate=collate_matting), start=1
        ):
            fits = [
                (i, mirrored)
                for i, (x, y) in enumerate(plain)
                for mirrored in (False, True)
                if torch.equal(inputs, x.flip(-1) if mirrored else x)
                and torch.equal(targets, y.flip(-1) if mirrored else y)
            ]
            assert len(fits) == 1, step
            outcomes |= set(fits)
        assert outcomes == {(0, False), (0, True), (1, False), (1, True)}


class TestWorkers:
    @pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
    def test_change_no_byte_and_no_random_number(self, workers):
        crops = AugmentedCrops(SyntheticHorses(64, count=3), 32)
        for data, tensors in ((ShuffledLabels(crops), collate_masks), (SyntheticMattes(32), collate_matting)):
            torch.manual_seed(3)
            before = torch.get_rng_state()
            wanted = list(batches(data, range(3, 8), 3, 1, flip=True, collate=tensors))
            got = list(batches(data, iter(range(3, 8)), 3, 1, flip=True, collate=tensors, workers=workers))
            assert_same(got, wanted)
            assert torch.equal(torch.get_rng_state(), before)
        assert not multiprocessing.active_children()

    def test_a_fault_of_the_data_arrives_as_it_is(self):
        with pytest.raises(FadevizError) as error:
            list(batches(Faulty(), range(1, 5), 2, 0, workers=1))
        assert str(error.value) == "image 5 is damaged"
        with pytest.raises(ValueError, match="no such number") as other:
            list(work_through(Faulty(), [105], 1))
        assert str(other.value) == "no such number"
        assert "__getitem__" in other.value.__notes__[0]  # where in the worker
        with pytest.raises(RuntimeError, match="^OwnError in a worker process: 3 is not 4$"):
            list(work_through(Faulty(), [106], 1))
        assert not multiprocessing.active_children()

    @pytest.mark.slow
    def test_a_killed_worker_is_said_in_one_line(self):
        with pytest.raises(FadevizError, match=r"was killed.*Use a smaller workers=\.\.\.$"):
            list(work_through(Faulty(), range(204, 207), 1))
        assert not multiprocessing.active_children()

    def test_data_that_cannot_be_pickled_needs_no_workers(self):
        class Local(Faulty):
            pass

        assert len(list(batches(Local(), [1], 2, 0))) == 1
        with pytest.raises(FadevizError, match="cannot be sent to worker processes .*Local.*workers=0"):
            next(batches(Local(), [1], 2, 0, workers=1))

    def test_left_early_they_end(self):
        loader = batches(Faulty(), iter(range(10**9)), 2, 0, workers=2)
        next(loader)
        assert len(multiprocessing.active_children()) == 2
        loader.close()
        assert not multiprocessing.active_children()

    def test_a_process_that_may_have_no_children_has_workers_all_the_same(self, monkeypatch):
        monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
        assert len(list(work_through(Faulty(), [1, 2], 1))) == 2
        assert multiprocessing.current_process().daemon

    @pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
    def test_signals_of_the_terminal_stop_no_worker_and_an_exit_waits_for_none(self, tmp_path):
        """Workers get what the whole process group gets; then the script, which is not guarded, ends as it is."""
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
            import multiprocessing, os, signal, time
            from fadeviz.data.synthetic.dataset import SyntheticHorses
            from fadeviz.training.batches import batches

            heard = []
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, lambda number, frame: heard.append(number))
            loader = batches(SyntheticHorses(32), range(1, 10**6), 2, 0, workers=2)
            next(loader)
            workers = multiprocessing.active_children()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.killpg(0, number)
            for _ in range(12):
                next(loader)
            assert len(heard) == 3, heard
            assert multiprocessing.active_children() == workers
            print(*(worker.pid for worker in workers))
        """)
        )
        root = Path(__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-W", "error", str(script)], env={**os.environ, "PYTHONPATH": str(root)},
            capture_output=True, text=True, timeout=60, start_new_session=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        pids = [int(pid) for pid in done.stdout.split()]
        assert len(pids) == 2
        assert not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids)

    @pytest.mark.slow
    def test_a_picture_that_does_not_end_ends_with_the_training(self):
        loader = work_through(Faulty(), [304, 305], 2)
        next(loader)
        began = time.monotonic()
        loader.close()
        assert time.monotonic() - began < 60
        assert not multiprocessing.active_children()

    @pytest.mark.slow
    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
    def test_they_end_when_their_process_is_killed(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
            import multiprocessing, os, signal
            from fadeviz.data.synthetic.dataset import SyntheticHorses
            from fadeviz.training.batches import batches

            loader = batches(SyntheticHorses(32), range(1, 10**6), 2, 0, workers=2)
            next(loader)
            print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        """)
        )
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True)
        pids = [int(pid) for pid in done.stdout.readline().split()]
        done.stdout.close()
        done.wait(60)
        assert len(pids) == 2
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.5)


@pytest.mark.gpu
class TestOnAGPU:
    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("flip", [False, True])
    def test_batches_get_there_without_waiting(self, workers, flip):
        for data, tensors in ((SyntheticHorses(64), collate_masks), (SyntheticMattes(64), collate_matting)):
            wanted = list(batches(data, range(1, 6), 3, 1, flip=flip, collate=tensors))
            loader = batches(
                data, range(1, 6), 3, 1, flip=flip, collate=tensors, device="cuda", workers=workers, prefetch=2
            )
            got = [next(loader)]  # which also copies the constants of normalisation
            torch.cuda.set_sync_debug_mode("error")
            try:
                got += loader
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert all(part.is_cuda for batch in got for part in batch)
            for mine, theirs in zip(got, wanted, strict=True):
                for a, b in zip(mine, theirs, strict=True):
                    assert a.stride() == b.stride()
                    torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2e-6)  # a GPU divides in another way


class Counting:
    """Counts how often an image is asked for."""

    def __init__(self, dataset):
        self.dataset, self.count, self.asked = dataset, dataset.count, []

    def __getitem__(self, index):
        self.asked.append(index)
        return self.dataset[index]


class TestKept:
    def test_a_picture_is_drawn_once_and_cannot_be_changed(self):
        drawn = Counting(SyntheticHorses(32, count=3))
        kept = Kept(drawn)
        first, again = [kept[i] for i in range(3)], [kept[i] for i in range(3)]
        assert drawn.asked == [0, 1, 2]
        for a, b, c in zip(first, again, (drawn[i] for i in range(3)), strict=True):
            assert_same([map(torch.tensor, a[1:4])], [map(torch.tensor, b[1:4])])
            assert_same([map(torch.tensor, a[1:4])], [map(torch.tensor, c[1:4])])
        with pytest.raises(ValueError, match="read-only"):
            again[0].image[0, 0] = 3
        with pytest.raises(IndexError):
            kept[3]

    def test_only_so_many_bytes(self):
        drawn = Counting(SyntheticHorses(32, count=3))
        each = 32 * 32 * (3 + 1 + 4)
        kept = Kept(drawn, 2 * each)
        for _ in range(2):
            for i in range(3):
                kept[i]
        assert drawn.asked == [0, 1, 2, 2]

    def test_the_test_sets_of_a_run_are_kept(self):
        for task in ("segmentation", "matting"):
            test = find_data(task, "synthetic").load(DataOptions("", 32, 0, 0)).test
            assert test[0].image is test[0].image


class TestPool:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_holds_the_first_pictures(self, workers):
        for data, mattes in ((SyntheticHorses(32), False), (SyntheticMattes(32), True)):
            pool, told = Pool(data, 5, mattes=mattes), []
            draw_pool(pool, workers, told.append)
            assert told == [1, 2, 3, 4, 5]
            for index in range(5):
                wanted = data[index] if mattes else data[index]._replace(alpha=None)
                for got, part in zip(pool[index], wanted, strict=True):
                    assert np.array_equal(got, part) if part is not None else got is None
                    assert part is None or isinstance(part, str) or got.dtype == part.dtype
            with pytest.raises(IndexError):
                pool[5]

    def test_of_a_set_with_an_end_there_is_none(self):
        with pytest.raises(FadevizError, match="never ends"):
            Pool(SyntheticHorses(32, count=3), 3)
        with pytest.raises(FadevizError, match="in memory already. Leave out pool=..."):
            RunConfig(data="weizmann", data_dir="x", pool=3)

    def test_a_run_reads_it_in_shuffled_epochs(self, tmp_path):
        config = RunConfig(size=32, width=1 / 16, batch_size=2, steps=3, observe=1, pool=5, labels="shuffled")
        told = []
        done = train(config, tmp_path / "run", on_note=told.append)
        assert "pool: 5 of 5 images drawn" in told
        assert done.info.config["pool"] == done.info.data["pool"] == 5
        pooled = load_data(config).train
        assert (pooled.count, isinstance(pooled.dataset, Pool)) == (5, True)


class TestSettings:
    def test_workers_make_no_other_run_and_a_pool_does(self):
        config = RunConfig(size=32, steps=1)
        splits = load_data(config)
        ids = []
        for changes in ({}, {"workers": 3}, {"pool": 3}):
            other = dataclasses.replace(config, **changes)
            ids.append(run_id(other, load_data(other).info, "none", "cpu"))
            assert bool(differing_settings(settings_of(config), other)) == ("pool" in changes)
        assert ids[0] == ids[1] != ids[2]
        assert run_id(config, splits.info, "none", "cpu") == ids[0]

    def test_how_many_workers(self):
        plain, cpu, cuda = RunConfig(steps=1), torch.device("cpu"), torch.device("cuda")
        assert count_workers(plain, cpu) == 0
        assert 1 <= count_workers(plain, cuda) <= 8
        assert count_workers(dataclasses.replace(plain, pool=4), cuda) == 0
        assert count_workers(RunConfig(data="weizmann", data_dir="x"), cuda) == 0
        assert count_workers(dataclasses.replace(plain, workers=3), cpu) == 3
        with pytest.raises(FadevizError, match="workers"):
            RunConfig(workers=-1)
        with pytest.raises(FadevizError, match="workers is 1.5; it must be a whole number"):
            RunConfig(workers=1.5)

    def test_a_run_with_workers_is_the_same_run(self, tmp_path):
        config = RunConfig(size=32, width=1 / 16, batch_size=2, steps=3, observe=1, flip=True)
        alone = train(config, tmp_path / "alone")
        helped = train(dataclasses.replace(config, workers=1), tmp_path / "helped")
        assert alone.run_id == helped.run_id
        assert (alone.path / "metrics.jsonl").read_bytes() == (helped.path / "metrics.jsonl").read_bytes()
