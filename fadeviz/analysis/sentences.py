"""Verdicts in plain sentences: what is shown since when, and what would decide where the data do not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

from .controls import Origin
from .jackknife import Estimate
from .onset import Onset, Reading
from .onsets import OperatorOnset
from .verdicts import ALIKE, LEAST_IMAGES, RESOLVED_SHARE, SHOWN_ALPHA, TOGETHER

PLACE = 0.15
"""Response for other images' masks above which maps show where objects usually are."""

_MOST_IMAGES, _MOST_SEEDS = 200, 50
"""Numbers above which more images or seeds are no advice."""


def describe_operator(operator: OperatorOnset, steps: Sequence[int]) -> tuple[str, ...]:
    """One sentence on what the maps show, and one on what the features hold where a readout was recorded."""
    remarks = f"{_opposite(operator.map)}{_turned(operator.map)}{_marked(operator)}{_origin(operator.origins)}"
    sentences = [f"{operator.title}: {describe_onset(operator.map, steps)}{remarks}."]
    if operator.readout is not None:
        sentences.append(
            f"{operator.title}, features: {describe_onset(operator.readout, steps, readout=True)}"
            f"{_origin(operator.readout_origins)}."
        )
    return tuple(sentences)


def describe_onset(onset: Onset, steps: Sequence[int], *, readout: bool = False) -> str:
    """What an operator's maps show and since when, as a sentence without the operator's name and the full stop.

    Args:
        onset: the onset.
        steps: the S steps.
        readout: whether the maps are a linear readout of the features.
    """
    verdict, outline, interior = onset.verdict, onset.outline, onset.interior
    label = verdict.label
    strongest = max((abs(reading.top) for reading in (outline, interior) if reading.shown), default=0.0)
    faintly = f"faintly (at most {strongest:.2f} of a perfect map), " * verdict.faint
    if label == "too few images":
        return f"too few images to say ({onset.images} with an interior at this resolution; {LEAST_IMAGES} are needed)"
    if label == "masks too alike":
        share = f"{100 * onset.alike:.0f} % of a perfect map's contrast is its own, {100 * ALIKE:.0f} % are needed"
        return f"nothing of this object is seen, but the masks are too alike to say ({share})"
    if label == "neither":
        if readout:
            return "a linear readout finds nothing of this object"
        if onset.place < PLACE:
            return "shows no object"
        return "shows where objects usually are, but nothing of this object"
    if len(steps) == 1:
        return faintly + _at_once(onset, steps[0])
    if label.endswith(("only", "unresolved")):
        return faintly + _single(onset, steps)
    if label == "both from the start":
        return f"{faintly}outline and interior are {_start(steps)} and {_fates(outline, interior)}"
    if label.endswith("from the start"):
        first, name, other, other_name = (
            (outline, "outline", interior, "interior")
            if label.startswith("outline")
            else (interior, "interior", outline, "outline")
        )
        return (
            f"{faintly}the {name} is {_start(steps)} and {_fate(first)}; the {other_name} follows {_by(other, steps)}"
        )
    if label == "both within one gap" and outline.within is not None:
        first_step, last_step = outline.within
        gone = [reading.gone_step for reading in (outline, interior) if reading.gone_step is not None]
        until = f", and are gone by step {max(gone)}" if len(gone) == 2 else ""
        return f"{faintly}outline and interior both appear between steps {first_step} and {last_step}{until}"
    return faintly + _timed(onset, steps)


def _marked(operator: OperatorOnset) -> str:
    """A remark where the contour is marked although no outline is shown, such as by a line on both sides of it."""
    if operator.contour is None or operator.contour.p > SHOWN_ALPHA or operator.map.outline.shown:
        return ""
    return "; yet the contour is marked: the maps are steeper along it than along other images' contours"


def _at_once(onset: Onset, step: int) -> str:
    """The sentence where there is one snapshot: nothing arrives, stays or fades."""
    shown = [name for name in ("outline", "interior") if getattr(onset, name).shown]
    what = "outline and interior are" if len(shown) == 2 else f"the {shown[0]} is"
    return f"{what} shown at step {step}, the only one measured{_rest(onset)}"


def _opposite(onset: Onset) -> str:
    """A remark where outline and interior differ in sign in most runs; empty otherwise."""
    outline, interior = onset.outline, onset.interior
    if not (outline.shown and interior.shown) or float((outline.signs * interior.signs).mean()) >= 0:
        return ""
    dark, bright = ("interior", "outline") if interior.signs.mean() < outline.signs.mean() else ("outline", "interior")
    return f" (the {dark} is dark where the {bright} is bright)"


def _turned(onset: Onset) -> str:
    """A remark where maps change between dark and bright on the object; empty otherwise."""
    if onset.sign_change is None or not (onset.outline.shown or onset.interior.shown):
        return ""
    return f" (bright and dark change places by step {onset.sign_change}; what comes before is timed)"


def _timed(onset: Onset, steps: Sequence[int]) -> str:
    """The sentence where both arrive during the training."""
    outline, interior, label = onset.outline, onset.interior, onset.verdict.label
    if label in ("outline first", "interior first"):
        early, late = (outline, interior) if label == "outline first" else (interior, outline)
        names = ("outline", "interior") if label == "outline first" else ("interior", "outline")
        first = "a rim just outside the contour" if onset.verdict.halo else f"the {names[0]}"
        return (
            f"{first} comes first, {_by(early, steps)}; the {names[1]} follows {_by(late, steps)}, "
            f"{format_factor(onset.lead, inverse=label == 'interior first')} times later"
        )
    ratio = f"a ratio of {format_factor(onset.lead)}"
    both = f"the outline arrives {_by(outline, steps)}, the interior {_by(interior, steps)}, {ratio}"
    if label == "together":
        return f"outline and interior arrive together: {both}"
    if label == "seeds disagree":
        return f"the seeds disagree on which comes first: {both}"
    return f"which comes first is undecided: {both}"


def _single(onset: Onset, steps: Sequence[int]) -> str:
    outline, interior = onset.outline, onset.interior
    name, shown = ("outline", outline) if outline.shown else ("interior", interior)
    since = f"is {_start(steps)}" if shown.from_start else f"appears {_by(shown, steps)}"
    return f"the {name} {since} and {_fate(shown)}{_rest(onset)}"


def _rest(onset: Onset) -> str:
    """What is said of the reading that is not shown, where only one is."""
    label, other = onset.verdict.label, "interior" if onset.outline.shown else "outline"
    if label.endswith("only"):
        return f"; no {other} is shown"
    return f"; whether there is an {other} too is unresolved" if label.endswith("unresolved") else ""


_BACK = ", but back at the end"


def _start(steps: Sequence[int]) -> str:
    return "there before training" if steps[0] == 0 else f"there at the first measured step, {steps[0]},"


def _fate(reading: Reading) -> str:
    if reading.gone_step is not None:
        return f"is gone by step {reading.gone_step}{_BACK * reading.stays}"
    return "stays" if reading.stays else "fades"


def _fates(outline: Reading, interior: Reading) -> str:
    """What becomes of two readings that are there from the start."""
    if outline.stays == interior.stays:
        gone = [reading.gone_step for reading in (outline, interior) if reading.gone_step is not None]
        if len(gone) == 2:
            return f"are gone by step {max(gone)}{_BACK * outline.stays}"
        if not gone:
            return "stay" if outline.stays else "fade"
    return f"the outline {_fate(outline)}, the interior {_fate(interior)}"


def _by(reading: Reading, steps: Sequence[int]) -> str:
    """When a response arrives: ``by step 52 (40 to 70)``, with the base that it rises from where that is high."""
    gone = f", gone by step {reading.gone_step}" if reading.gone_step is not None else ""
    arrival = format_arrival(reading, steps)
    if reading.rest_step is not None and not reading.from_start:
        share = f"{100 * reading.start / reading.top:.0f} %"
        base = f"from {share} at step {steps[0]}, half of the rise by step {reading.rest_step:.0f}"
        # Beside the arrival, as it is the arrivals that the ratio is of.
        arrival = f"{arrival[:-1]}; {base})" if arrival.endswith(")") else f"{arrival} ({base})"
    return f"by step {arrival}{gone}"


def format_arrival(reading: Reading, steps: Sequence[int]) -> str:
    """The step of arrival and its 95 % interval: ``52 (40 to 70)``; an upper end beyond the training as ``>300``."""
    step, low, high = reading.arrival_steps
    if math.isnan(step):
        return "-"
    if not math.isfinite(high - low):
        return f"{step:.0f}"
    end = f"{high:.0f}" if high <= steps[-1] else f">{steps[-1]}"
    return f"{step:.0f} ({max(low, steps[0]):.0f} to {end})"


def format_factor(lead: Estimate | None, *, inverse: bool = False) -> str:
    """A lead as a factor with its 95 % interval: ``2.1 (1.6 to 2.9)``; ``-`` without one."""
    if lead is None:
        return "-"
    value, ends = lead.value, lead.interval()
    numbers = (value, *ends) if not inverse else (-value, -ends[1], -ends[0])
    texts = [_factor(number) for number in numbers]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


def _factor(log: float) -> str:
    if math.isnan(log):
        return "-"
    if abs(log) > math.log(999):
        return ">999" if log > 0 else "<0.001"
    factor = math.exp(log)
    if factor < 0.95:
        return f"{factor:.2g}"  # two digits, as its inverse has
    return f"{factor:.0f}" if factor >= 20 else f"{factor:.1f}"


def _origin(origins: Sequence[Origin]) -> str:
    """What the control says of what is shown; empty without a control."""
    names: dict[str, list[str]] = {}
    for origin in origins:
        if origin.control is not None:
            names.setdefault(_reason(origin), []).append(origin.name)
    parts = [
        f"the {' and the '.join(same)} {'is' if len(same) == 1 else 'are'} {reason}" for reason, same in names.items()
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def _reason(origin: Origin) -> str:
    """The origin, and what of the control makes it so."""
    if origin.origin == "initialisation":
        as_strong = origin.difference is not None and origin.difference.interval()[0] <= 0
        return f"initialisation: {'the control shows as much' if as_strong else 'there from the start'}"
    return f"learned: {'the control shows less' if origin.control else 'not shown by the control'}"


def advise(onset: Onset, steps: Sequence[int]) -> str:
    """What to do for a decision where this study gives none, as an imperative; empty where it decides.

    Numbers of images and seeds are from the variances measured here, which shrink with each number.
    """
    label, outline, interior = onset.verdict.label, onset.outline, onset.interior
    if label == "too few images":
        masks = "with masks " * (onset.images == 0)
        return f"observe 12 images or more {masks}whose object has an interior, or measure a layer of higher resolution"
    if label == "masks too alike":
        return "observe images whose objects differ more in place, size or shape"
    if label == "both within one gap" and outline.within is not None:
        return f"record more often between steps {outline.within[0]} and {outline.within[1]}"
    if label.endswith("unresolved"):
        shown, other = (outline, interior) if outline.shown else (interior, outline)
        factor = (other.chance / (RESOLVED_SHARE * abs(shown.top))) ** 2
        needed = math.ceil(onset.images * factor)
        if needed <= _MOST_IMAGES:
            return f"observe about {needed} images instead of {onset.images}"
        return f"observe more than {_MOST_IMAGES} images: so weak is the response"
    if label == "undecided" and onset.lead is not None:
        return _more_data(onset.lead, onset.images, onset.runs)
    if label == "seeds disagree":
        return f"record more seeds, to see how often each order occurs: these {onset.runs} differ"
    return ""


def _more_data(lead: Estimate, images: int, runs: int) -> str:
    """How many images or seeds would make the interval of this lead short enough for a verdict."""
    if runs == 1:
        return "record more seeds (at least 3): one seed says nothing about other runs"
    by_seeds = next((r for r in range(runs + 1, _MOST_SEEDS + 1) if _decides(lead, images, runs, images, r)), None)
    by_images = next((n for n in range(images + 1, _MOST_IMAGES + 1) if _decides(lead, images, runs, n, runs)), None)
    options = [
        *([f"record about {by_seeds} seeds instead of {runs}"] if by_seeds else []),
        *([f"observe about {by_images} images instead of {images}"] if by_images else []),
    ]
    if options:
        return f"{' or '.join(options)} (enough if the lead stays as it is)"
    both = next((k for k in range(2, 9) if _decides(lead, images, runs, k * images, k * runs)), None)  # neither alone
    if both:
        return f"record about {both} times as many seeds and images (enough if the lead stays as it is)"
    return "record more often where the two rise: no practical number of seeds or images would decide"


def _decides(lead: Estimate, images: int, runs: int, more_images: int, more_runs: int) -> bool:
    """Whether a lead of this size and these variances would get a verdict with so many images and runs."""
    of_seeds = lead.variance_seeds * runs / more_runs
    of_images = lead.variance_images * images / more_images
    total = of_seeds + of_images
    if not math.isfinite(total):
        return False
    parts = of_seeds**2 / (more_runs - 1) + of_images**2 / (more_images - 1)
    degrees = max(1.0, total**2 / parts) if parts > 0 else 1.0
    error = math.sqrt(total)
    order = abs(lead.value) > float(stats.t.ppf(0.975, degrees)) * error
    return order or abs(lead.value) + float(stats.t.ppf(0.95, degrees)) * error <= TOGETHER
