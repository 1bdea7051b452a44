"""Similarity, continuity and splices, and the classes' features: known answers and a second, slow formula for each."""

import itertools

import numpy as np
import pytest

from fadeviz.analysis import splices
from fadeviz.analysis.classes import class_similarity
from fadeviz.analysis.similarity import (
    cka_to_final,
    continuity,
    correlation,
    correlation_to_final,
    frame_correlations,
    grey_levels,
    linear_cka,
    settling_step,
)
from fadeviz.analysis.splices import find_splice, foreign_spans, is_spliced
from fadeviz.errors import FadevizError
from fadeviz.render.colormap import to_indices
from fadeviz.render.normalize import find_limits, normalize
from fadeviz.storage.info import RunInfo
from fadeviz.storage.snapshots import Snapshot, SnapshotStore
from fadeviz.storage.stored_run import StoredRun


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def movie(steps=20, images=2, seed=0, size=(20, 24)):
    """Maps that learn: from one smooth random image to another, quickly at first, with a little grain."""
    start, end, grain = noise(3, images, *size, seed=seed)
    place = 1 - np.exp(-np.arange(steps) / 4)[:, None, None, None]
    shake = np.random.default_rng(seed + 1).normal(size=(steps, images, *size))
    return (1 - place) * start + place * end + 0.1 * grain + 0.1 * shake


def test_correlation_against_numpys():
    a, b = noise(2, 3, 2, 7, 9)
    found = correlation(a, b)
    for i, j in itertools.product(range(3), range(2)):
        assert found[i, j] == pytest.approx(np.corrcoef(a[i, j].ravel(), b[i, j].ravel())[0, 1], rel=1e-12)
    assert correlation(a, -3 * a + 5) == pytest.approx(-np.ones((3, 2)))
    assert correlation(a * 1e-30, a) == pytest.approx(np.ones((3, 2)))
    assert np.abs(correlation(a, a)).max() <= 1


def test_similarity_to_the_final_state():
    maps = noise(5, 2, 3, 6, 6)
    found = correlation_to_final(maps)
    assert found.shape == (5, 2, 3)
    assert found[-1] == pytest.approx(np.ones((2, 3)))
    assert found[1, 0, 2] == pytest.approx(np.corrcoef(maps[1, 0, 2].ravel(), maps[-1, 0, 2].ravel())[0, 1])
    # A mixture of two orthogonal images of one strength: the cosine of the angle between them.
    waves = np.cos(2 * np.pi * np.outer([1, 2], np.arange(16)) / 16)[:, None, :].repeat(4, axis=1)
    angles = np.array([90.0, 60, 30, 0])
    mixed = np.stack([np.sin(np.radians(a)) * waves[0] + np.cos(np.radians(a)) * waves[1] for a in angles])
    assert correlation_to_final(mixed) == pytest.approx(np.cos(np.radians(angles)), abs=1e-12)


def test_settled_at():
    similarity = np.array([[0.1, 0.95, np.nan, 0.0], [0.95, 0.95, 0.95, 0.0], [0.5, 0.95, np.nan, 0.0],
                           [0.9, 0.95, 0.95, 0.0], [1.0, 1.0, 1.0, np.nan]])  # fmt: skip
    found = settling_step(similarity, [0, 100, 200, 400, 800])
    assert found[:3].tolist() == [400, 0, 400]
    assert np.isnan(found[3])
    with pytest.raises(FadevizError, match="5 similarities, but 2 steps"):
        settling_step(similarity, [0, 1])


def centred_gram(features):
    n = features.shape[1]
    centring = np.eye(n) - np.ones((n, n)) / n
    return centring @ features.T @ features @ centring


def song(k, low):
    """The unbiased HSIC as printed, of Gram matrices whose diagonals are set to zero."""
    n = len(k)
    k, low = k * (1 - np.eye(n)), low * (1 - np.eye(n))
    one = np.ones(n)
    return (
        np.trace(k @ low)
        + one @ k @ one * (one @ low @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ low @ one)
    ) / (n * (n - 3))


@pytest.mark.parametrize(("p", "q", "n"), [(3, 5, 40), (30, 20, 12), (2, 2, 4)])
def test_cka_by_explicit_gram_matrices(p, q, n):
    a = noise(p, n) + 3
    b = noise(q, n, seed=1) + noise(q, p, seed=2) @ a
    k, low = centred_gram(a), centred_gram(b)
    assert linear_cka(a, b) == pytest.approx(
        np.trace(k @ low) / np.sqrt(np.trace(k @ k) * np.trace(low @ low)), rel=1e-9
    )
    k, low = a.T @ a, b.T @ b
    assert linear_cka(a, b, debiased=True) == pytest.approx(
        song(k, low) / np.sqrt(song(k, k) * song(low, low)), rel=1e-8
    )


def test_cka_limit_cases():
    a = noise(6, 50)
    rotation = np.linalg.qr(noise(6, 6, seed=1))[0]
    assert max(linear_cka(*[noise(6, 50, seed=seed)] * 2) for seed in range(30)) == 1
    for debiased in (False, True):
        assert linear_cka(a, 2 * rotation @ a + np.arange(6)[:, None], debiased=debiased) == pytest.approx(1)
        assert linear_cka(a * 1e-30, a, debiased=debiased) == pytest.approx(1)
    x, y = noise(2, 1, 50, seed=3)
    y = y + x
    assert linear_cka(x, y) == pytest.approx(np.corrcoef(x[0], y[0])[0, 1] ** 2)


def test_debiasing_takes_away_what_many_features_give_by_chance():
    pairs = [(noise(40, 30, seed=2 * i), noise(40, 30, seed=2 * i + 1)) for i in range(40)]
    biased, unbiased = (np.array([linear_cka(a, b, debiased=d) for a, b in pairs]) for d in (False, True))
    assert biased.mean() > 0.5
    assert abs(unbiased.mean()) < 4 * unbiased.std() / 40**0.5
    assert unbiased.std() < 0.1


def test_cka_to_final():
    maps = noise(4, 2, 3, 6, 7)
    found = cka_to_final(maps, debiased=True)
    assert found.shape == (4, 2)
    assert found[1, 1] == linear_cka(maps[1, 1].reshape(3, 42), maps[3, 1].reshape(3, 42), debiased=True)
    assert cka_to_final(np.stack([maps[0][:, ::-1], maps[0]])) == pytest.approx(np.ones((2, 2)))


def test_grey_levels_are_those_of_the_pictures():
    maps = (noise(4, 2, 6, 5) * 10).astype(np.float32)
    frame, run = grey_levels(maps), grey_levels(maps, "run")
    for s, n in itertools.product(range(4), range(2)):
        own = find_limits(maps[s, n], "feature", scope="frame")
        assert np.array_equal(frame[s, n], to_indices(normalize(maps[s, n], own)))
        assert np.array_equal(run[s, n], to_indices(normalize(maps[s, n], find_limits(maps[:, n], "feature"))))
    halves = np.arange(511, dtype=np.float32).reshape(1, 1, 7, 73)  # every second value is half way between two levels
    own = find_limits(halves, "feature", scope="frame")
    assert np.array_equal(grey_levels(halves), to_indices(normalize(halves, own)))
    assert (frame.min((2, 3)) == 0).all()
    assert (frame.max((2, 3)) == 255).all()


def test_continuity_by_loops():
    maps = movie(5)
    for scope in ("frame", "run"):
        grey = grey_levels(maps, scope)
        found = continuity(maps, scope)
        assert found.correlation.shape == (4, 2)
        for s, n in itertools.product(range(4), range(2)):
            before, after = grey[s, n].ravel().tolist(), grey[s + 1, n].ravel().tolist()
            change = [abs(a - b) for a, b in zip(before, after, strict=True)]
            assert found.pixel_change[s, n] == pytest.approx(sum(change) / len(change))
            assert found.luminance_change[s, n] == pytest.approx(abs(sum(after) - sum(before)) / len(change))
            expected = np.corrcoef(maps[s, n].ravel(), maps[s + 1, n].ravel())[0, 1]
            assert found.correlation[s, n] == pytest.approx(expected)
        assert (found.luminance_change <= found.pixel_change).all()


def test_one_range_over_the_run_takes_the_flicker_away():
    # A still image with one bright pixel that comes and goes: the paper's frames flicker, a fixed range does not.
    maps = np.tile(np.random.default_rng(0).random((1, 1, 16, 16)), (6, 1, 1, 1))
    maps[1::2, 0, 3, 3] = 3
    frame, run = continuity(maps), continuity(maps, "run")
    assert frame.luminance_change.min() > 50
    assert run.luminance_change.max() < 2
    still = continuity(np.stack([maps[0]] * 3))
    assert still.pixel_change.tolist() == [[0], [0]]
    assert still.correlation == pytest.approx(np.ones((2, 1)))


def test_frame_correlations_against_numpys():
    maps = noise(4, 2, 5, 6)
    found = frame_correlations(maps)
    for n in range(2):
        assert found[n] == pytest.approx(np.corrcoef(maps[:, n].reshape(4, -1)), abs=1e-12)


@pytest.mark.parametrize(("first", "last"), [(1, 1), (11, 11), (6, 10), (8, 16)])
def test_a_planted_splice_is_found(first, last):
    maps = movie()
    other = movie(seed=50)
    assert foreign_spans(maps) == ()
    assert foreign_spans(other) == ()
    maps[first : last + 1] = other[first : last + 1]
    assert foreign_spans(maps) == ((first, last),)
    assert is_spliced(maps)


def every_span(maps, margin=0.5, floor=0.8):
    """The rule as it is written: all stretches of frames, the short ones first."""
    tables = frame_correlations(maps)
    count = tables.shape[1]
    foreign, spans = np.zeros(count, bool), []
    for length in range(1, (count - 1) // 2 + 1):
        for first in range(1, count - length):
            before, last, after = first - 1, first + length - 1, first + length
            around = tables[:, before, after]
            ends = np.maximum(tables[:, before, first], tables[:, last, after])
            known = np.isfinite(around) & np.isfinite(ends)
            if foreign[before : after + 1].any() or not known.any():
                continue
            if np.median(around[known]) >= floor and np.median(around[known] - ends[known]) > margin:
                foreign[first:after] = True
                spans.append((first, last))
    return tuple(sorted(spans))


@pytest.mark.parametrize("seed", range(12))
def test_looking_at_breaks_alone_finds_what_looking_at_every_span_does(seed, monkeypatch):
    """Movies cut together at random, with frames that some images lack, and with other thresholds."""
    rng = np.random.default_rng(seed)
    images = 1 + seed % 4
    scenes = rng.normal(size=(3, 1, images, 6, 7)) + 0.3 * rng.normal(size=(3, 40, images, 6, 7))
    cuts = np.sort(rng.integers(0, 40, 6))
    maps = scenes[np.searchsorted(cuts, np.arange(40)) % 3, np.arange(40)]
    maps[rng.random((40, images)) < 0.1] = 1.0  # constant: no correlation
    monkeypatch.setattr(splices, "_AT_A_TIME", 3 * images * 42)  # in several stretches
    for margin, floor in ((0.5, 0.8), (0.2, 0.5), (-0.1, -1.0)):
        assert foreign_spans(maps, margin, floor) == every_span(maps, margin, floor)


def test_no_more_correlations_than_a_few_of_two_thousand_frames(monkeypatch):
    maps = movie(2000, images=1, size=(4, 5))
    maps[700:704] = movie(2000, images=1, size=(4, 5), seed=9)[700:704]
    read = []
    monkeypatch.setattr(
        splices,
        "_units",
        lambda maps, numbers, was=splices._units: read.append(len(numbers)) or was(maps, numbers),
    )
    assert foreign_spans(maps) == ((700, 703),)
    assert sum(read) < 20  # every frame with every other: 4 million


def test_several_splices_are_told_apart():
    maps, other = movie(30), movie(30, seed=50)
    for span in (slice(4, 5), slice(7, 10), slice(20, 25)):
        maps[span] = other[span]
    assert foreign_spans(maps) == ((4, 4), (7, 9), (20, 24))


def test_a_brighter_or_steeper_frame_is_no_splice_and_a_negative_is():
    maps = movie()
    maps[9] = 40 * maps[9] + 7
    assert not is_spliced(maps)
    maps[9] *= -1
    assert foreign_spans(maps) == ((9, 9),)


@pytest.mark.parametrize("seed", range(5))
def test_smooth_movies_are_not_flagged(seed):
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(size=(30, 2, 12, 12)), axis=0)
    assert not is_spliced(walk)
    assert not is_spliced(movie(35, seed=seed))
    assert not is_spliced(rng.normal(size=(30, 2, 12, 12)))  # no two frames alike: nothing to be spliced into
    # Learnt at once, half way.
    jump = np.concatenate([np.tile(walk[:1], (10, 1, 1, 1)), np.tile(walk[-1:], (10, 1, 1, 1))])
    assert not is_spliced(jump + 0.1 * rng.normal(size=jump.shape))


def test_a_jump_that_is_walked_back_is_the_trainings_own():
    home, away = noise(2, 2, 12, 12)
    place = np.array([0, 0, 0, 1, 0.75, 0.5, 0.25, 0, 0, 0])[:, None, None, None]
    walked = (1 - place) * home + place * away
    assert not is_spliced(walked)
    assert not is_spliced(walked[::-1])
    assert foreign_spans(np.delete(walked, [4, 5, 6], axis=0)) == ((3, 3),)


def test_the_rule_by_three_correlations():
    # Frames whose correlations are chosen: unit vectors of three coordinates, laid out as maps.
    def frames(around, end):
        base = np.linalg.qr(np.column_stack([np.ones(16), noise(16, 3)]))[0][:, 1:].T
        gram = np.array([[1, end, around], [end, 1, end], [around, end, 1]])
        return (np.linalg.cholesky(gram) @ base).reshape(3, 1, 4, 4)

    assert frame_correlations(frames(0.9, 0.3))[0] == pytest.approx(
        np.array([[1, 0.3, 0.9], [0.3, 1, 0.3], [0.9, 0.3, 1]])
    )
    assert is_spliced(frames(0.81, 0.30))
    assert not is_spliced(frames(0.81, 0.32))  # not far enough
    assert not is_spliced(frames(0.79, 0.10))  # the frames around are not of one state themselves
    assert is_spliced(frames(0.79, 0.10), floor=0.7)
    assert is_spliced(frames(0.92, 0.18))  # the published CARAFE strip at 1000, 1100 and 1200


def test_what_frames_alone_cannot_tell():
    maps, other = movie(), movie(seed=50)
    for span in (slice(0, 3), slice(12, 20)):
        spliced = maps.copy()
        spliced[span] = other[span]
        assert not is_spliced(spliced)


def write_run(path, maps, run_id="aaa"):
    store = SnapshotStore(path, run_id)
    store.write_info(RunInfo.from_dict({"upsampler": "fade"}))
    for step, values in zip(range(0, 100 * len(maps), 100), maps, strict=True):
        store.write(step, [Snapshot(step, "decoder.1.upsample", 0, "feature", values)])


def test_a_run_with_files_and_frames_of_another(tmp_path):
    maps = movie()
    write_run(tmp_path, maps)
    assert not find_splice(StoredRun(tmp_path)).found
    # Under this run's id, and under another's.
    SnapshotStore(tmp_path, "aaa").write(500, [Snapshot(500, "decoder.1.upsample", 0, "feature", movie(seed=50)[5])])
    SnapshotStore(tmp_path, "bbb").write(900, [Snapshot(900, "decoder.1.upsample", 0, "feature", maps[9])])
    found = find_splice(StoredRun(tmp_path))
    assert found.found
    assert found.files == ("step_000900.safetensors",)
    assert found.spans == ((500, 500),)
    (tmp_path / "snapshots" / "step_000900.safetensors").write_bytes(b"damaged")
    assert find_splice(StoredRun(tmp_path)).files == ()


def cosine(a, b):
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_class_similarity_by_loops():
    rng = np.random.default_rng(0)
    maps = rng.random((2, 2, 5, 8, 9))
    labels = rng.integers(0, 4, size=(2, 8, 9))  # the last is of no class
    classes = np.stack([labels == k for k in range(3)], axis=1)
    band = rng.random((2, 8, 9)) < 0.3
    found = class_similarity(maps, classes, band)
    for s, n in itertools.product(range(2), range(2)):
        centres = [maps[s, n][:, classes[n, k] & ~band[n]].mean(1) for k in range(3)]
        pairs = [cosine(a, b) for a, b in itertools.combinations(centres, 2)]
        assert found.centres[s, n] == pytest.approx(np.mean(pairs))
        for part, region in ((found.edge, band[n]), (found.interior, ~band[n])):
            intra, inter, right = [[], [], []], [[], [], []], []
            for y, x in zip(*np.nonzero(region & (labels[n] < 3)), strict=True):
                own = labels[n, y, x]
                near = [cosine(maps[s, n, :, y, x], centre) for centre in centres]
                rival = max(near[:own] + near[own + 1 :])
                intra[own].append(near[own])
                inter[own].append(rival)
                right.append(rival <= near[own])
            assert part.intra[s, n] == pytest.approx(np.mean([np.mean(v) for v in intra]))
            assert part.inter[s, n] == pytest.approx(np.mean([np.mean(v) for v in inter]))
            assert part.margin[s, n] == pytest.approx(part.intra[s, n] - part.inter[s, n])
            assert part.accuracy[s, n] == pytest.approx(np.mean(right))


def test_classes_that_blur_at_the_edge():
    # Two classes with features at a right angle; in the band both turn towards each other by a known angle.
    left = np.zeros((1, 12, 12), bool)
    left[..., :6] = True
    band = np.zeros((1, 12, 12), bool)
    band[..., 5:7] = True
    maps = np.zeros((4, 1, 2, 12, 12))
    for turned, one in zip(np.radians([0.0, 20, 40, 50]), maps[:, 0], strict=True):
        angle = np.where(band[0], turned, 0.0)
        angle = np.where(left[0], angle, np.pi / 2 - angle)
        one[:] = 3 * np.cos(angle), 3 * np.sin(angle)
    found = class_similarity(maps, np.stack([left, ~left], axis=1), band)
    assert found.edge.intra[:, 0] == pytest.approx(np.cos(np.radians([0, 20, 40, 50])))
    assert found.edge.inter[:, 0] == pytest.approx(np.sin(np.radians([0, 20, 40, 50])), abs=1e-12)
    assert found.edge.accuracy[:, 0].tolist() == [1, 1, 1, 0]
    assert found.interior.intra == pytest.approx(np.ones((4, 1)))
    assert found.interior.accuracy == pytest.approx(np.ones((4, 1)))
    assert found.centres == pytest.approx(np.zeros((4, 1)), abs=1e-12)
    brighter = class_similarity(maps * 1e-20, np.stack([left, ~left], axis=1), band)
    assert brighter.edge.intra == pytest.approx(found.edge.intra)


def test_undefined_correlations_are_missing():
    maps = noise(4, 2, 6, 6)
    maps[1, 0] = 2.5
    maps[2, 1, 0, 0] = np.nan
    maps[3, 1] = np.inf
    found = correlation_to_final(maps)
    assert np.isnan(found).tolist() == [[False, True], [True, True], [False, True], [False, True]]
    for scope in ("frame", "run"):
        for values in continuity(maps, scope):
            assert np.isnan(values).tolist() == [[True, False], [True, True], [False, True]]
    assert continuity(maps[:1]).correlation.shape == (0, 2)
    tables = frame_correlations(maps)
    assert np.isnan(tables[0]).sum() == 7
    assert np.isnan(tables[1]).sum() == 12
    assert foreign_spans(maps) == ()
    assert foreign_spans(np.zeros((9, 1, 4, 4))) == ()


def test_undefined_alignments_are_missing():
    good, constant, broken = noise(3, 20), np.full((3, 20), 0.1), noise(3, 20)
    broken[0, 0] = np.inf
    for debiased in (False, True):
        for bad in (constant, broken):
            assert np.isnan(linear_cka(good, bad, debiased=debiased))
            assert np.isnan(linear_cka(bad, good, debiased=debiased))
    assert np.isnan(linear_cka(good[:, :1], good[:, :1]))
    assert np.isnan(linear_cka(good[:, :3], good[:, :3], debiased=True))
    # All samples equally alike: the unbiased measure has nothing to compare.
    assert np.isnan(linear_cka(np.eye(8), noise(3, 8), debiased=True))
    maps = noise(2, 2, 3, 4, 4)
    maps[0, 1] = 1
    assert np.isnan(cka_to_final(maps)).tolist() == [[False, True], [False, False]]


def test_undefined_class_similarities_are_missing():
    maps = np.abs(noise(2, 1, 3, 6, 6))
    left = np.zeros((1, 1, 6, 6), bool)
    left[..., :3] = True
    both = np.concatenate([left, ~left], axis=1)
    nowhere, everywhere = np.zeros((1, 6, 6), bool), np.ones((1, 6, 6), bool)
    found = class_similarity(maps, both, nowhere)
    assert np.isnan(found.edge.intra).all()
    assert np.isnan(found.edge.accuracy).all()
    assert np.isfinite(found.interior.margin).all()
    assert np.isnan(class_similarity(maps, both, everywhere).edge.intra).all()  # no interior, no centre
    alone = class_similarity(maps, left, nowhere)
    assert np.isfinite(alone.interior.intra).all()
    for values in (alone.interior.inter, alone.interior.accuracy, alone.centres):
        assert np.isnan(values).all()
    # A class that is only in the band has no centre, and leaves the others as they are.
    band = nowhere.copy()
    band[0, 0, :2] = True
    corner = np.zeros((1, 1, 6, 6), bool)
    corner[..., 0, 0] = True
    two = class_similarity(maps, both & ~corner, band)
    three = class_similarity(maps, np.concatenate([corner, both & ~corner], axis=1), band)
    for a, b in zip(
        (*two.edge, *two.interior, two.centres), (*three.edge, *three.interior, three.centres), strict=True
    ):
        assert np.array_equal(a, b)
    maps[0, 0, 0, 0, 0] = np.nan
    maps[1] = 0
    for region in class_similarity(maps, both, nowhere)[:2]:
        assert np.isnan(region.intra).all()
    # A pixel without a feature has no angle.
    maps = np.ones((1, 1, 2, 6, 6))
    maps[..., 0, 0] = 0
    assert class_similarity(maps, left, nowhere).interior.intra == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: correlation(np.zeros((3, 3)), np.zeros((3, 4))), "one resolution"),
        (lambda: correlation_to_final(np.zeros((3, 3))), r"\(S, \.\.\., h, w\)"),
        (lambda: correlation_to_final(np.zeros((0, 3, 3))), r"got the shape \(0, 3, 3\)"),
        (lambda: linear_cka(np.zeros((2, 5)), np.zeros((2, 6))), "features by samples"),
        (lambda: cka_to_final(np.zeros((2, 2, 3, 3))), r"\(S, n, C, h, w\)"),
        (lambda: continuity(np.zeros((2, 3, 3))), r"\(S, N, h, w\)"),
        (lambda: continuity(np.zeros((2, 1, 3, 3)), "runs"), "no normalisation scope 'runs'. Nearest: 'run'"),
        (lambda: foreign_spans(np.zeros((2, 1, 1, 3, 3))), r"\(S, N, h, w\)"),
    ],
)
def test_messages(call, message):
    with pytest.raises(FadevizError, match=message):
        call()


def test_messages_of_class_similarity():
    maps, classes, band = np.zeros((2, 1, 3, 4, 4)), np.zeros((1, 2, 4, 4), bool), np.zeros((1, 4, 4), bool)
    with pytest.raises(FadevizError, match=r"classes of the shape \(1, K, 4, 4\)"):
        class_similarity(maps, classes[0], band)
    with pytest.raises(FadevizError, match=r"a band of the shape \(1, 4, 4\)"):
        class_similarity(maps, classes, band[0])
    with pytest.raises(FadevizError, match="must be boolean"):
        class_similarity(maps, classes.astype(int), band)
    with pytest.raises(FadevizError, match="overlap"):
        class_similarity(maps, ~classes, band)


def test_grey_levels_are_rounded_once():
    maps = np.random.default_rng(0).normal(size=(200, 1, 64, 64)).astype(np.float32)
    pictures = [to_indices(normalize(frame[0], find_limits(frame[0], "feature", scope="frame"))) for frame in maps]
    assert np.array_equal(grey_levels(maps)[:, 0], np.stack(pictures))
