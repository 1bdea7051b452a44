"""Chance levels, arrivals, jackknife intervals, verdicts and their sentences."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from analysis_movies import STEPS, masks, movie
from fadeviz.analysis.arrival import LEVELS, arrival
from fadeviz.analysis.chance import chance_level, permute_images, smooth
from fadeviz.analysis.contrasts import measure_contrasts, own_less_others, perfect_contrasts
from fadeviz.analysis.jackknife import Estimate, holm, jackknife, jackknife_band
from fadeviz.analysis.onset import judge
from fadeviz.analysis.regions import build_regions
from fadeviz.analysis.sentences import advise, describe_onset, format_arrival, format_factor
from fadeviz.analysis.text import onset_cells
from fadeviz.analysis.verdicts import VERDICTS, Verdict, choose_verdict
from fadeviz.analysis.zones import build_zones


def onset_of(kinds, *, images=8, steps=STEPS, sign=1, noise=0.3, known_sign=False):
    """The onset in one movie for each seed."""
    zones = [build_zones(build_regions(mask, (48, 48))) for mask in masks(images)]
    made = [
        measure_contrasts(sign * movie(kind, steps, images=images, seed=seed, noise=noise), zones)
        for seed, kind in enumerate(kinds)
    ]
    perfect = perfect_contrasts(zones)
    outline, interior = (np.stack([getattr(one, name) for one in made]) for name in ("outline", "interior"))
    return judge(outline, interior, perfect.outline[0], perfect.interior[0], steps, known_sign=known_sign)


@pytest.fixture(scope="module")
def inward():
    return onset_of(["inward"] * 3)


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        ("inward", "outline first"),
        ("outward", "interior first"),
        ("start", "outline from the start"),
        ("complete", "both from the start"),
        ("blob", "neither"),
        ("noise", "neither"),
    ],
)
def test_planted_movies(kind, label):
    assert onset_of([kind] * 3).verdict.label == label


def test_what_is_there_before_training_has_been_there_though_it_goes_and_returns():
    onset = onset_of(["returns"] * 3)
    assert onset.verdict.label == "outline from the start"
    assert onset.outline.from_start
    assert not onset.outline.halo
    assert onset.outline.gone_step in (3, 5, 7)
    sentence = describe_onset(onset, STEPS)
    assert sentence.startswith(
        f"the outline is there before training and is gone by step {onset.outline.gone_step}, but back"
    )
    # In a single run a dip may be noise: nothing is said of the start.
    assert not onset_of(["returns"]).outline.from_start


def test_a_first_appearance_that_hinges_on_one_image_or_seed_is_not_timed():
    """An outline that comes by the third snapshot, goes, and is back with the interior at the end: weak and strong."""
    zones = [build_zones(build_regions(mask, (48, 48))) for mask in masks(8)]
    made = [measure_contrasts(movie("noise", STEPS, images=8, seed=seed, noise=0.3), zones) for seed in range(3)]
    perfect = [part[0] for part in dataclasses.astuple(perfect_contrasts(zones))[:2]]
    outline, interior = (np.stack([getattr(one, name) for one in made]) for name in ("outline", "interior"))
    late = 0.5 * np.linspace(0, 1, len(STEPS))[:, None, None] ** 4
    bump = np.exp(-(((np.arange(len(STEPS)) - 2.5) / 1.2) ** 2))[:, None, None]
    early = bump * np.linspace(0, 2, 8)[:, None]  # stronger in some images' maps than in others'
    weak, gone = [], []
    for height in np.linspace(0, 0.5, 51):
        onset = judge(outline + (height * early + late) * perfect[0], interior + late * perfect[1], *perfect, STEPS)
        ratio = smooth(onset.outline.curve)[:5].max() / onset.outline.chance
        (weak if onset.outline.gone_step is None else gone).append(ratio)
    assert max(weak) > 1.05  # beyond chance, but not without each of the images and seeds
    assert min(gone) > 1.05
    assert max(gone) > 1.3


@pytest.mark.parametrize(("kind", "end"), [("dips", ", but back at the end"), ("ends", "")])
def test_what_is_there_before_training_and_goes_after_its_top_is_said_to_be_gone(kind, end):
    onset = onset_of([kind] * 3)
    assert onset.verdict.label == "both from the start"
    gone = onset.outline.gone_step, onset.interior.gone_step
    assert None not in gone
    assert onset.outline.stays is onset.interior.stays is bool(end)
    text = describe_onset(onset, STEPS)
    assert text == f"outline and interior are there before training and are gone by step {max(gone)}{end}"
    # One of them alone.
    other = dataclasses.replace(onset, interior=dataclasses.replace(onset.interior, gone_step=None))
    fate = "stays" if end else "fades"
    assert describe_onset(other, STEPS).endswith(f"the outline is gone by step {gone[0]}{end}, the interior {fate}")


def test_what_fades_in_together_is_never_called_an_order():
    assert onset_of(["together"] * 3).verdict.label in ("together", "undecided")


def test_dark_objects_and_runs_of_either_sign_read_the_same(inward):
    dark = onset_of(["inward"] * 3, sign=-1)
    assert dark.verdict == inward.verdict
    assert (dark.outline.signs == -1).all()
    assert np.allclose(dark.outline.curve, inward.outline.curve, atol=1e-6)
    assert dark.lead.value == pytest.approx(inward.lead.value, abs=1e-6)
    # A readout is bright where the object is: what is dark there is no answer.
    assert onset_of(["inward"] * 3, sign=-1, known_sign=True).verdict.label == "neither"
    assert onset_of(["inward"] * 3, known_sign=True).verdict == inward.verdict
    assert dark.sign_change is inward.sign_change is None


LONGER = (*STEPS, 300, 450, 650, 1000)


@pytest.mark.parametrize(
    ("kind", "turns", "label"),
    [
        ("inward", (15, 15, 15), "outline first"),
        ("outward", (15, 16, 17), "interior first"),
        ("complete", (8, 8, 8), "both from the start"),
        ("outward", (None, 15, None), "interior first"),
        ("outward", (15,), "interior first"),
    ],
)
def test_maps_that_change_their_sign_keep_their_order(kind, turns, label):
    zones, made = [build_zones(build_regions(mask, (48, 48))) for mask in masks(8)], []
    for seed, turn in enumerate(turns):
        maps = np.concatenate([movie(kind, seed=seed), movie("complete", LONGER[15:], seed=9 + seed)])
        maps[len(LONGER) if turn is None else turn :] *= -1
        made.append(measure_contrasts(maps, zones))
    perfect = perfect_contrasts(zones)
    outline, interior = (np.stack([getattr(one, name) for one in made]) for name in ("outline", "interior"))
    onset = judge(outline, interior, perfect.outline[0], perfect.interior[0], LONGER)
    assert onset.verdict.label == label
    # The snapshot before the first one of the other sign is smoothed with it.
    first = min(turn for turn in turns if turn is not None)
    assert onset.sign_change in LONGER[first - 1 : first + 1]
    assert onset.outline.stays
    assert onset.interior.stays


def test_curves_are_own_less_others_over_that_of_perfect_maps(inward):
    zones = [build_zones(build_regions(mask, (48, 48))) for mask in masks(8)]
    perfect = own_less_others(perfect_contrasts(zones).interior[0])
    for seed in range(3):
        table = measure_contrasts(movie("inward", seed=seed), zones).interior
        assert np.allclose(inward.interior.run_curves[seed], own_less_others(table) / perfect)
    assert np.allclose(inward.interior.curve, inward.interior.run_curves.mean(0))
    assert (inward.interior.low < inward.interior.curve).all()
    assert inward.interior.end == pytest.approx(inward.interior.curve[-3:].mean())


def test_smoothing_takes_the_neighbours_there_are():
    assert smooth(np.array([[1.0, 4.0, 4.0, 10.0]])).tolist() == [[2.5, 3.0, 6.0, 7.0]]
    assert smooth(np.array([3.0])).tolist() == [3.0]


@pytest.mark.parametrize("known_sign", [False, True])
def test_the_chance_level_is_that_of_all_permutations(known_sign):
    rng = np.random.default_rng(0)
    table, perfect = rng.normal(size=(2, 4, 5, 5)), np.eye(5)
    level = chance_level(table, perfect, permute_images(5), known_sign=known_sign)
    tops, starts, of_runs, smoothed = [], [], [], []
    for order in itertools.permutations(range(5)):
        permuted = own_less_others(table[..., order])
        kept = (lambda values: values) if known_sign else np.abs
        tops.append(kept(smooth(permuted)).mean(0).max())
        starts.append(kept(permuted[:, 0]).mean())
        of_runs.append(np.abs(smooth(permuted)).max(1))
        smoothed.append(smooth(permuted))
    assert level.p == pytest.approx(np.mean(np.array(tops) >= tops[0] - 1e-12))
    assert level.p_start == pytest.approx(np.mean(np.array(starts) >= starts[0] - 1e-12))
    assert level.level == pytest.approx(np.quantile(tops, 0.95))
    spread = np.sqrt(np.mean(np.square(smoothed), axis=0))
    assert np.allclose(level.run_bounds, np.minimum(3 * spread, np.quantile(of_runs, 0.95, axis=0)[:, None]))
    assert np.allclose(level.bounds, np.minimum(3 * spread.mean(0), level.level))
    assert np.allclose(level.curves, own_less_others(table))


def test_permute_images():
    assert permute_images(4).shape == (24, 4)
    many = permute_images(12)
    assert many.shape == (2000, 12)
    assert many[0].tolist() == list(range(12))
    assert (np.sort(many, axis=1) == np.arange(12)).all()
    assert np.array_equal(many, permute_images(12))
    assert not np.array_equal(many, permute_images(12, seed=1))


def test_arrival_is_the_mean_time_of_five_levels():
    time = np.linspace(0, 10, 11)
    assert arrival(time / 10, 1.0, time) == pytest.approx(5.0)
    assert arrival(time / 10, 1.0, time, base=0.5) == pytest.approx(np.mean([5 + 5 * q for q in LEVELS]))
    assert arrival(np.ones(4), 1.0, time[:4]) == 0.0  # there at the first snapshot
    dip = np.array([0.0, 0.6, 0.2, 1.0])  # the monotone fit is 0, 0.4, 0.4, 1
    expected = [0.3 / 0.4, 0.4 / 0.4, 2 + 0.1 / 0.6, 2 + 0.2 / 0.6, 2 + 0.3 / 0.6]
    assert arrival(dip, 1.0, time[:4]) == pytest.approx(np.mean(expected))
    assert math.isnan(arrival(np.zeros(3), 0.0, time[:3]))
    assert math.isnan(arrival(np.zeros(3), np.nan, time[:3]))


def test_jackknife_variances_and_degrees():
    values = np.random.default_rng(0).normal(size=(4, 6))
    estimate = jackknife(lambda r, n: float(values[np.ix_(r, n)].mean()), 4, 6)
    assert estimate.value == pytest.approx(values.mean())
    # The jackknife variance of a mean is its usual variance.
    of_seeds, of_images = values.mean(1).var(ddof=1) / 4, values.mean(0).var(ddof=1) / 6
    assert estimate.variance_seeds == pytest.approx(of_seeds)
    assert estimate.variance_images == pytest.approx(of_images)
    degrees = (of_seeds + of_images) ** 2 / (of_seeds**2 / 3 + of_images**2 / 5)
    assert estimate.degrees == pytest.approx(degrees)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(of_seeds + of_images)
    assert estimate.interval() == pytest.approx((values.mean() - half, values.mean() + half))
    low, high = jackknife_band(lambda r, n: np.full(3, values[np.ix_(r, n)].mean()), 4, 6)
    assert (low, high) == (
        pytest.approx(np.full(3, values.mean() - half)),
        pytest.approx(np.full(3, values.mean() + half)),
    )
    single = jackknife(lambda r, n: float(values[np.ix_(r, n)].mean()), 1, 6)
    assert single.variance_seeds == 0
    assert single.degrees == pytest.approx(5)


def test_the_difference_of_two_numbers_is_paired():
    values = np.random.default_rng(1).normal(size=(2, 3, 6))
    both = [jackknife(lambda r, n, one=one: float(one[np.ix_(r, n)].mean()), 3, 6) for one in values]
    direct = jackknife(lambda r, n: float((values[0] - values[1])[np.ix_(r, n)].mean()), 3, 6)
    difference = both[0] - both[1]
    assert difference.value == pytest.approx(direct.value)
    assert difference.interval() == pytest.approx(direct.interval())
    assert difference.p == pytest.approx(direct.p)
    same = both[0] - both[0]
    assert (same.p, same.error) == (1.0, 0.0)


def test_an_undefined_replicate_leaves_no_interval():
    estimate = Estimate(1.0, np.array([1.0, np.nan]), np.ones(5))
    assert estimate.error == math.inf
    assert estimate.interval() == (-math.inf, math.inf)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


# --- verdicts and sentences -------------------------------------------------------------------------------------------


def estimate(low, high):
    """An estimate with about this 95 % interval."""
    error = (high - low) / 2 / 1.96
    middle = (low + high) / 2
    spread = error * math.sqrt(200 / 199)
    replicates = middle + spread / math.sqrt(199) * np.tile([-1.0, 1.0], 100)
    return Estimate(middle, np.empty(0), replicates)


def test_the_helper_makes_the_interval_asked_for():
    assert estimate(0.2, 0.8).interval() == pytest.approx((0.2, 0.8), abs=0.01)


def reading(onset, which="outline", **changes):
    return dataclasses.replace(getattr(onset, which), **changes)


def test_choosing(inward):
    shown = {
        "shown": True,
        "from_start": False,
        "within": None,
        "start": 0.0,
        "p_start": 0.5,
        "top": 0.6,
        "halo": False,
    }
    outline, interior = (reading(inward, which, **shown) for which in ("outline", "interior"))
    hidden = dataclasses.replace(interior, shown=False, chance=0.1)
    early, no_difference = estimate(0.2, 0.9), estimate(-0.3, 0.3)

    def label(first=outline, second=interior, images=8, alike=0.3, lead=early, difference=no_difference, runs=()):
        pair = (lead, difference) if first.shown and second.shown else (None, None)
        return str(choose_verdict(first, second, images, alike, *pair, runs))

    start = dataclasses.replace(outline, from_start=True, start=0.5, p_start=0.001)
    partly = dataclasses.replace(interior, start=0.2, p_start=0.04)
    gap = [dataclasses.replace(one, within=(10, 20)) for one in (outline, interior)]
    weak = [dataclasses.replace(one, top=0.1) for one in (outline, interior)]
    cases = {
        "too few images": label(images=4),
        "neither": label(dataclasses.replace(outline, shown=False), hidden),
        "masks too alike": label(dataclasses.replace(outline, shown=False), hidden, alike=0.1),
        "outline only": label(second=hidden),
        "outline shown, interior unresolved": label(second=dataclasses.replace(hidden, chance=0.37)),
        "interior only": label(dataclasses.replace(outline, shown=False, chance=0.1)),
        "interior shown, outline unresolved": label(dataclasses.replace(outline, shown=False, chance=0.37)),
        "both from the start": label(start, dataclasses.replace(partly, from_start=True)),
        "outline from the start": label(start),
        "interior from the start": label(second=dataclasses.replace(interior, from_start=True)),
        "both within one gap": label(*gap),
        "outline first": label(),
        "interior first": label(lead=estimate(-0.9, -0.2)),
        "together": label(lead=estimate(-0.3, 0.3)),
        "undecided": label(lead=estimate(-0.3, 0.9)),
        "seeds disagree": label(lead=estimate(-0.3, 0.9), runs=[estimate(0.5, 0.9), estimate(-0.9, -0.5)]),
    }
    assert cases == {name: name for name in VERDICTS}
    assert label(start, partly) == "both from the start"
    assert label(start, partly, difference=estimate(0.1, 0.5)) == "outline from the start"
    assert label(dataclasses.replace(gap[0], within=(5, 10)), gap[1]) == "outline first"
    # Certain, but less than a factor of 1.5: so much may come from a part that is drawn more faintly.
    assert label(lead=estimate(0.05, 0.35)) == label(lead=estimate(-0.35, -0.05)) == "together"
    assert label(lead=estimate(0.1, 0.5)) == "outline first"
    assert label(*weak) == "faint: outline first"
    assert label(dataclasses.replace(outline, halo=True)) == "outline first (halo)"


def test_few_images_and_equal_masks_are_named():
    few = onset_of(["inward"] * 3, images=4)
    assert few.verdict == Verdict("too few images")
    assert "4 with an interior at this resolution; 5 are needed" in describe_onset(few, STEPS)
    assert "observe 12 images" in advise(few, STEPS)
    for images in (1, 2, 3):
        assert onset_of(["inward"], images=images).verdict.label == "too few images"
    zones = [build_zones(build_regions(masks(1)[0], (48, 48)))] * 6
    maps = movie("inward", images=1)[:, [0] * 6]
    contrasts, perfect = measure_contrasts(maps, zones), perfect_contrasts(zones)
    onset = judge(contrasts.outline[None], contrasts.interior[None], perfect.outline[0], perfect.interior[0], STEPS)
    assert onset.verdict == Verdict("masks too alike")
    assert "too alike to say (0 % of a perfect map's contrast is its own" in describe_onset(onset, STEPS)


def test_one_seed_speaks_of_images_alone():
    one = onset_of(["inward"])
    assert one.verdict.label == "outline first"
    assert one.lead.variance_seeds == 0
    assert one.outline.gone_step is None


def test_seeds_that_disagree():
    onset = onset_of(["inward", "outward", "inward", "outward"])
    assert onset.verdict.label == "seeds disagree"
    assert "the seeds disagree" in describe_onset(onset, STEPS)
    assert "more seeds" in advise(onset, STEPS)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_snapshots_are_judged_too(count):
    onset = onset_of(["complete"] * 2, steps=(0, 10, 20)[:count])
    assert onset.verdict.label == "both from the start"


def test_a_rise_between_two_snapshots_says_where_to_record():
    onset = onset_of(["inward"] * 2, steps=(0, 200, 250, 300))
    assert onset.verdict.label == "both within one gap"
    assert describe_onset(onset, (0, 200, 250, 300)) == "outline and interior both appear between steps 0 and 200"
    assert advise(onset, (0, 200, 250, 300)) == "record more often between steps 0 and 200"
    outline, interior = (
        dataclasses.replace(reading, gone_step=step) for reading, step in ((onset.outline, 250), (onset.interior, 300))
    )
    again = dataclasses.replace(onset, outline=outline, interior=interior)
    assert describe_onset(again, (0, 200, 250, 300)).endswith("between steps 0 and 200, and are gone by step 300")
    step, low, high = onset.outline.arrival_steps
    assert low <= 0 < step < 200 <= high
    assert "(0 to 200)" in format_arrival(onset.outline, (0, 200, 250, 300))
    assert onset_cells(onset, (0, 200, 250, 300))[-1] == "-"


def test_sentences(inward):
    sentence = describe_onset(inward, STEPS)
    step, low, high = inward.outline.arrival_steps
    assert sentence.startswith(
        f"the outline comes first, by step {step:.0f} ({max(low, 0):.0f} to {high:.0f}); the interior"
    )
    assert sentence.endswith(f"{format_factor(inward.lead)} times later")
    blob, noise = onset_of(["blob"] * 2), onset_of(["noise"] * 2)
    assert describe_onset(blob, STEPS) == "shows where objects usually are, but nothing of this object"
    assert describe_onset(noise, STEPS) == "shows no object"
    strong, faint = dataclasses.replace(inward.interior, shown=False), dataclasses.replace(inward.outline, top=0.1)
    unresolved = Verdict("outline shown, interior unresolved", faint=True)
    onset = dataclasses.replace(inward, outline=faint, interior=strong, verdict=unresolved)
    assert describe_onset(onset, STEPS).startswith("faintly (at most 0.10 of a perfect map), the outline appears by")
    assert describe_onset(noise, STEPS, readout=True) == "a linear readout finds nothing of this object"
    start = describe_onset(onset_of(["start"] * 3), STEPS)
    assert start.startswith("the outline is there before training and stays; the interior follows by step")
    late = describe_onset(onset_of(["complete"] * 3, steps=(100, 200, 300)), (100, 200, 300))
    assert late == "outline and interior are there at the first measured step, 100, and stay"


def test_advice_comes_from_the_variances():
    lead = Estimate(0.3, np.array([0.1, 0.5, 0.3]), np.full(12, 0.3))  # between seeds alone
    onset = dataclasses.replace(onset_of(["together"] * 3), lead=lead, verdict=Verdict("undecided"), images=12, runs=3)
    advice = advise(onset, STEPS)
    assert "seeds instead of 3" in advice
    assert "images instead" not in advice
    needed = int(advice.split()[2])
    error = math.sqrt(lead.variance_seeds * 3 / needed)
    assert stats.t.ppf(0.975, needed - 1) * error < 0.3
    fewer = math.sqrt(lead.variance_seeds * 3 / (needed - 1))
    assert stats.t.ppf(0.975, needed - 2) * fewer > 0.3
    one = dataclasses.replace(onset, runs=1)
    assert "one seed says nothing about other runs" in advise(one, STEPS)


def test_factors():
    assert format_factor(estimate(math.log(1.5), math.log(6))) == "3.0 (1.5 to 6.0)"
    assert format_factor(estimate(math.log(1.5), math.log(6)), inverse=True) == "0.33 (0.17 to 0.67)"
    assert format_factor(None) == "-"
    assert format_factor(Estimate(0.0, np.array([np.nan, 1.0]), np.ones(5))) == "1.0 (<0.001 to >999)"


def test_the_sentence_has_the_arrival_of_the_table_and_the_base(inward):
    arrives = format_arrival(inward.interior, STEPS)
    raised = dataclasses.replace(inward.interior, rest_step=52.4, start=0.3 * inward.interior.top)
    sentence = describe_onset(dataclasses.replace(inward, interior=raised), STEPS)
    assert f"by step {arrives[:-1]}; from 30 % at step 0, half of the rise by step 52), " in sentence
