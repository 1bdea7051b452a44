"""Text in figures: lines that fit, numbers, captions; and the ground truth beside an observed image."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from ..errors import brief, printable
from ..storage.layers_of_runs import describe_layers
from ..storage.several_runs import run_labels
from ..storage.snapshots import CHANNEL_KINDS, KINDS
from ..storage.stored_run import StoredRun
from .classes import has_colours
from .colormap import colour_classes
from .fonts import font
from .frames import MAX_CORRELATION, FrameSequence
from .normalize import FIXED_RANGES, Limits

_MINUS = "\N{MINUS SIGN}"
_LISTED = 6
"""Maximum number of ranges in a caption."""
_OPERATORS = 12
"""Maximum number of operators in a caption."""


def wrap(text: str, size: int, width: int) -> list[str]:
    """Break ``text`` into lines of at most ``width`` pixels at a font size of ``size`` pixels.

    Lines are broken at spaces; words wider than a line are broken anywhere.
    """
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _fits(longer, size, width):
            lines[-1] = longer
            continue
        while word and not _fits(word, size, width):
            count = max(1, _fitting(word, size, width))
            lines.append(word[:count])
            word = word[count:]
        lines += [word] if word else []
    return lines


def balanced(text: str, size: int, width: int) -> list[str]:
    """A text in as few lines as :func:`wrap` needs, which are of about the same length."""
    lines = wrap(text, size, width)
    step = max(1, width // 40)
    while len(lines) > 1 and all(_fits(word, size, width - step) for word in text.split()):
        narrower = wrap(text, size, width - step)
        if len(narrower) > len(lines):
            break
        lines, width = narrower, width - step
    return lines


def shorten(text: str, size: int, width: int, bold: bool = False) -> str:
    """``text``, or as much of its beginning as fits into ``width`` pixels, with an ellipsis."""
    if _fits(text, size, width, bold):
        return text
    return text[: _fitting(text, size, width, bold, "…")].rstrip() + "…"


def _fits(text: str, size: int, width: int, bold: bool = False) -> bool:
    # Names may have any length, so only a part is measured: hardly any character is narrower than half a pixel.
    return len(text) <= 2 * max(width, 1) and font(size, bold).getlength(text) <= width


def _fitting(text: str, size: int, width: int, bold: bool = False, end: str = "") -> int:
    """How many characters of a text, followed by ``end``, fit into ``width`` pixels."""
    counts = range(min(len(text), 2 * max(width, 0)) + 1)
    limit: float = width
    return max(0, bisect_right(counts, limit, key=lambda n: font(size, bold).getlength(text[:n] + end)) - 1)


def format_number(value: float, digits: int = 3) -> str:
    """A value with ``digits`` significant digits and a true minus sign; shorter whole numbers as they are.

    Digits are grouped by commas. Exponents are used from 10^9 on, and where more than 6 decimal places were needed.

    Example:
        >>> format_number(12), format_number(0.5), format_number(12345.6), format_number(float("nan"))
        ('12', '0.500', '12,346', '–')
    """
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 10**digits:
        return str(int(value)).replace("-", _MINUS)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")  # of the rounded value: 0.9999 is 1.00
    places = max(0, digits - 1 - int(exponent))
    text = f"{value:,.{places}f}" if places <= 6 and int(exponent) < 9 else f"{mantissa}e{int(exponent)}"
    return text.replace("-", _MINUS)


def heading(sequence: FrameSequence) -> str:
    """The heading of a tile: the run, its layer if those of the runs differ, and the channel if it shows one."""
    return sequence.title if sequence.channel is None else f"{sequence.title}, channel {sequence.channel}"


def image_name(sequence: FrameSequence) -> str:
    """The name of the observed image."""
    return sequence.run.info.observation.name_of(sequence.image)


def object_name(sequence: FrameSequence) -> str:
    """The class that is the object of the observed image, shortened; empty for two classes without names."""
    return brief(sequence.run.info.object_name(sequence.image), 40)


def _object(sequence: FrameSequence) -> str:
    name = object_name(sequence)
    return f" (object: {name})" if name else ""


def captions(sequences: Sequence[FrameSequence]) -> list[str]:
    """The sentences below a figure: what is drawn, in which range, and of which image and operators."""
    first = sequences[0]
    runs = {sequence.run.path: sequence for sequence in sequences}
    networks = dict.fromkeys(_network(sequence.run) for sequence in runs.values())
    what = KINDS.get(first.kind, "")
    if first.kind in CHANNEL_KINDS:
        what = {
            "channels": "single channels of the layer's output",
            "kernels": "single weights of the reassembly kernels",
            "guide": "single channels of the encoder feature that the operator is given",
        }[first.kind]
    if first.channel_count is not None:
        what += f" ({_channels_shown(sequences)} of {first.channel_count})"
    if first.representative:
        what += (
            ": those of largest variance over the image at the last step, omitting channels that correlate above "
            f"{MAX_CORRELATION:g} with another one shown"
        )
    images = dict.fromkeys(f"{brief(image_name(sequence))}{_object(sequence)}" for sequence in sequences)
    origin = [f"Image{'s' * (len(images) > 1)}: {', '.join(images)}."]
    data = dict.fromkeys(brief(data_name(s.run)) for s in runs.values())
    if any(data):
        origin.append(f"Data: {', '.join(name for name in data if name)}.")
    origin.append(f"{describe_runs(shown_runs(sequences))}.")
    if first.colours is not None:
        predicted = f"{' and '.join(networks)}: predictions for one image.{_statistics(runs.values())}"
        return [predicted, first.colours.sentence, " ".join(origin)]
    layers = _layers(list(runs.values()))
    difference = "" if first.minus is None else f" {first.title}: difference of the maps of two runs."
    sentences = [
        f"{' and '.join(networks)}, {layers}. {_title(first.kind)}: {what}.{_statistics(runs.values())}{difference}",
        scope_sentence(sequences),
        " ".join(origin),
    ]
    cells = sum(sequence.non_finite for sequence in sequences)
    if cells:
        sentences.append(f"Magenta: {cells} cells that are NaN or infinite.")
    return sentences


def shown_runs(sequences: Sequence[FrameSequence]) -> list[StoredRun]:
    """The runs whose maps are drawn or subtracted, each once."""
    runs = (run for sequence in sequences for run in (sequence.minus, sequence.run) if run is not None)
    return [*{run.path: run for run in runs}.values()]


def short_caption(
    sequences: Sequence[FrameSequence],
    size: int,
    width: int,
    reading: Sequence[str] = (),
    further: Sequence[str] = (),
) -> list[str]:
    """At most two lines below a figure: kind, range, image and seeds; then what else of :func:`captions` fits.

    Args:
        sequences: what is drawn.
        size: font size in pixels.
        width: width of a line in pixels.
        reading: sentences on how to read the colours.
        further: sentences that come first if there is room for more.
    """
    needed, others = _short_sentences(sequences)
    text = fit_sentences([" ".join([needed[0], *reading, *needed[1:]]), *further, *others], size, width)
    first, *rest = wrap(text, size, width)
    return [first, shorten(" ".join(rest), size, width)] if rest else [first]


def fit_sentences(sentences: Sequence[str], size: int, width: int) -> str:
    """The first sentence, and as many of the others as fit into two lines with it, in their order.

    Args:
        sentences: the most needed first.
        size: font size in pixels.
        width: width of a line in pixels.
    """
    text, *others = sentences
    for sentence in others:
        longer = f"{text} {sentence}"
        if len(wrap(longer, size, width)) <= 2:
            text = longer
    return text


def _short_sentences(sequences: Sequence[FrameSequence]) -> tuple[list[str], list[str]]:
    """The sentences that a caption must have, names last, as they may be long; and others, the first most needed."""
    first = sequences[0]
    runs = {sequence.run.path: sequence for sequence in sequences}
    if first.colours is not None:
        needed = [f"Predictions. {first.colours.sentence}"]
    else:
        count = "" if first.channel_count is None else f" ({_channels_shown(sequences)} of {first.channel_count})"
        _, _, scope = scope_sentence(sequences).partition(": ")
        if scope.startswith("one range per run"):  # they are at the colour bars
            scope = "one range per run."
        what = "Difference of two runs' maps, " if first.minus is not None else ""
        needed = [f"{_title(what + first.kind)}{count}: {scope}"]
    cells = sum(sequence.non_finite for sequence in sequences)
    if cells and first.colours is None:
        needed.append(f"Magenta: {cells} cells that are NaN or infinite.")
    images = dict.fromkeys(f"{brief(image_name(sequence), 40)}{_object(sequence)}" for sequence in sequences)
    needed += [_seeds(sequences), f"Image{'s' * (len(images) > 1)}: {', '.join(images)}."]
    networks = " and ".join(dict.fromkeys(_network(sequence.run) for sequence in runs.values()))
    layers = f", {_layers([*runs.values()])}" if first.colours is None else ""
    further = [_crop_sentence(first), f"{networks}{layers}.", steps_sentence(sequences).strip()]
    data = dict.fromkeys(brief(data_name(sequence.run)) for sequence in runs.values())
    further.append(f"Data: {', '.join(name for name in data if name)}." if any(data) else "")
    return [sentence for sentence in needed if sentence], [sentence for sentence in further if sentence]


def _channels_shown(sequences: Sequence[FrameSequence]) -> int:
    return len({sequence.channel for sequence in sequences if sequence.run is sequences[0].run})


def _seeds(sequences: Sequence[FrameSequence]) -> str:
    """The seeds of the runs; empty if none is known, or all of the labels say theirs."""
    seeds = [_seed(run) for run in shown_runs(sequences)]
    known = [str(seed) for seed in seeds if seed is not None]
    if not known or all("seed" in sequence.label for sequence in sequences):
        return ""
    if len(set(known)) == 1 and len(known) == len(seeds):
        return f"Seed {known[0]}."
    return f"Seeds: {', '.join('unknown' if seed is None else str(seed) for seed in seeds)}, in order."


def _crop_sentence(sequence: FrameSequence) -> str:
    if sequence.crop is None:
        return ""
    left, top, right, bottom = sequence.crop
    return f"Maps: the window of {right - left}x{bottom - top} pixels at x {left}, y {top}."


def describe(sequences: Sequence[FrameSequence], reading: Sequence[str] = ()) -> list[str]:
    """All that there is to say of a figure, for its file's metadata: :func:`captions`, and the rest of its caption."""
    further = [_crop_sentence(sequences[0]), steps_sentence(sequences).strip(), *reading]
    return [*captions(sequences), *filter(None, further)]


def _layers(sequences: Sequence[FrameSequence]) -> str:
    """The layer of the runs, one sequence of each; where their maps differ in size, with the sizes."""
    labels = {s.run: brief(s.label) for s in sequences}
    of_call = {s.run: layer_name("", s.call, s.calls) for s in sequences}
    names = {s.run: s.layer if len(set(of_call.values())) == 1 else s.layer + of_call[s.run] for s in sequences}
    sizes = {s.run: "{}x{}".format(*s.maps.shape[1:]) for s in sequences}
    layers = describe_layers(names, labels)
    if len(set(of_call.values())) == 1:
        layers += of_call[sequences[0].run]
    return layers if len(set(sizes.values())) == 1 else f"{layers}; maps of {describe_layers(sizes, labels)}"


def _network(run: StoredRun) -> str:
    unnamed = "network" if run.info.imported is None else "imported"
    return brief(run.info.network_title or run.info.network or unnamed)


def describe_runs(runs: Sequence[StoredRun]) -> str:
    """The operators of the runs and their seeds, briefly: ``FADE, CARAFE; 3 seeds each``."""
    seeds: dict[str, list[object]] = {}
    for run in runs:
        seeds.setdefault(brief(run.title), []).append(_seed(run))
    seeded = all(seed is not None for group in seeds.values() for seed in group)
    listed = [*seeds] if len(seeds) <= _OPERATORS else [*[*seeds][:_OPERATORS], f"{len(seeds) - _OPERATORS} more"]
    counts = {len(group) for group in seeds.values()}
    if len(counts) > 1:
        return ", ".join(f"{name} ({_count(seeds[name], seeded)})" if name in seeds else name for name in listed)
    names, first = ", ".join(listed), next(iter(seeds.values()))
    each = " each" if len(seeds) > 1 else ""
    if len(first) > 1:
        return f"{names}; {_count(first, seeded)}{each}"
    if not seeded:
        return names
    same = {str(group[0]) for group in seeds.values()}
    return f"{names}; seed {same.pop()}{each}" if len(same) == 1 else f"{names}; 1 seed{each}"


def _count(group: Sequence[object], seeded: bool) -> str:
    """How many runs an operator has, called seeds if all differ."""
    noun = "seed" if seeded and len(set(map(str, group))) == len(group) else "run"
    return f"{len(group)} {noun}{'s' * (len(group) > 1)}"


def provenance(runs: Sequence[StoredRun], sentences: Sequence[str] = ()) -> str:
    """The ids of the runs that a figure is made of, with operators and seeds, for the metadata of its file.

    ``sentences`` follow: what the figure shows, in full.
    """
    labels = [label if "seed" in label or _seed(run) is None else f"{label}, seed {_seed(run)}"
              for run, label in zip(runs, run_labels(runs), strict=True)]  # fmt: skip
    ids = [f"{brief(run.run_id)} ({brief(label)})" for run, label in zip(runs, labels, strict=True)]
    text = printable(
        " ".join([f"fadeviz run{'s' * (len(ids) > 1)}: {', '.join(ids)}" + "." * bool(sentences), *sentences])
    )
    return text.encode("utf-8", "replace").decode()  # a name on disk may hold a lone surrogate


def steps_sentence(sequences: Sequence[FrameSequence]) -> str:
    """A sentence if fewer steps are shown than were recorded; empty otherwise."""
    recorded, shown = max(len(sequence.run.steps) for sequence in sequences), len(sequences[0].steps)
    return "" if shown == recorded else f" {shown} of {recorded} recorded steps are shown."


def layer_name(layer: str, call: int, calls: int) -> str:
    """A layer's name, with the number of the call if it has several in a forward pass."""
    return layer if calls == 1 else f"{layer}, call {call} of {calls} (counted from 0)"


def data_name(run: StoredRun) -> str:
    """Name of a run's data set; empty if unknown. A folder of one's own has its own name."""
    data = run.info.data
    own = PurePath(str(data.get("folder") or "")).name if data.name == "folder" else ""
    return own.removesuffix(".csv") or data.name or run.info.config.data


def _statistics(sequences: Iterable[FrameSequence]) -> str:
    modes = dict.fromkeys(s.run.info.observation.mode or "" for s in sequences)
    words = {"eval": "running statistics", "batch": "statistics of the observed images"}
    sources = [words[mode] for mode in modes if mode in words]
    return f" BatchNorm: {' and '.join(sources)}." if sources else ""


def scope_sentence(sequences: Sequence[FrameSequence]) -> str:
    """How values are mapped to colours, with the limits where they hold for more than one frame."""
    first = sequences[0]
    low, high = first.percentiles
    if first.scope == "frame" and first.centered and (low, high) == (0, 100):
        return "Normalisation: each frame spans minus to plus its largest absolute value."
    if first.scope == "frame":
        ends = "minimum to maximum" if (low, high) == (0, 100) else f"{low:g} % to {high:g} % of its values"
        around = ", symmetric about 0" if first.centered else ""
        return f"Normalisation: each frame spans its own {ends}{around}."
    fixed = first.kind in FIXED_RANGES and first.minus is None
    if fixed or (low, high) == (0, 100):
        share = ""
    elif first.kind == "gradient" and first.minus is None:  # its low end is 0, whatever the percentile
        share = f" (up to {high:g} % of all values)"
    else:
        share = f" ({low:g} % to {high:g} % of all values)"
    if first.scope == "shared":
        over = "one range over all runs shown" if len({s.run.path for s in sequences}) > 1 else "one range"
        return f"Normalisation: {over}, {_range(first.limits[0])}{share}."
    ranges = {s.run.path: f"{brief(s.label)} ({_range(s.limits[0])})" for s in sequences}
    if len(ranges) == 1 or fixed:
        return f"Normalisation: one range over all frames, {_range(first.limits[0])}{share}."
    if len(ranges) > _LISTED:
        widest = Limits(min(s.limits[0].low for s in sequences), max(s.limits[0].high for s in sequences))
        return f"Normalisation: one range per run, all within {_range(widest)}{share}."
    return f"Normalisation: one range per run: {'; '.join(ranges.values())}{share}."


def bar_ends(sequence: FrameSequence) -> tuple[str, str]:
    """Labels of the ends of the colour bar: numbers, or words where every frame has its own range."""
    if sequence.scope != "frame":
        return format_number(sequence.limits[0].low), format_number(sequence.limits[0].high)
    low, high = sequence.percentiles
    if sequence.centered:
        return "\N{MINUS SIGN}max", "max"
    return "min" if low == 0 else f"{low:g} %", "max" if high == 100 else f"{high:g} %"


def truth_name(run: StoredRun) -> str:
    """Name of a run's ground truth in figures: ``mask``, or ``alpha`` for mattes."""
    return "mask" if run.mattes is None else "alpha"


def truth_image(run: StoredRun, image: int) -> NDArray[np.uint8]:
    """The ground truth of an observed image, ready to show, ``(H, W, 3)`` uint8.

    The alpha of a matting run is grey. A mask of many classes, or of classes with colours, is in their colours, another
    mask of two classes in black and white. Ignored pixels are black, unless a class is.

    Args:
        run: a run with observed images.
        image: index of the observed image.

    Raises:
        FadevizError: under the same conditions as :attr:`StoredRun.observation`.
    """
    mask = run.observation[1][image]
    if has_colours(run):
        return colour_classes(mask, run.info.classes or 2, run.info.data.class_colors)
    if _names_object(run):
        mask = run.foregrounds[image].astype(np.uint8)
    greys = _greys(mask) if run.mattes is None else run.mattes[0][image]
    return np.repeat(greys[..., None], 3, axis=2)


def truth_regions(run: StoredRun, image: int) -> NDArray[np.uint8]:
    """The regions of an observed image whose borders :func:`outline` draws, ``(H, W)`` uint8.

    These are the classes of its mask, or where alpha is at least one half. Ignored pixels are the lowest region, so
    that a border with them lies on the class.

    Raises:
        FadevizError: under the same conditions as :attr:`StoredRun.observation`.
    """
    mask = run.observation[1][image]
    if run.mattes is not None:
        return (run.mattes[0][image] >= 128).astype(np.uint8)
    if has_colours(run):
        return mask + np.uint8(1)  # unsigned numbers wrap: 255 becomes 0
    if _names_object(run):
        return run.foregrounds[image].astype(np.uint8)
    # Masks with more values than classes, of a run that does not describe them, are alpha.
    return mask if len(np.unique(mask)) <= 32 else (mask >= 128).astype(np.uint8)


def _names_object(run: StoredRun) -> bool:
    """Whether a run names the class of its masks that is the object; everything else, void included, is not."""
    return run.mattes is None and run.info.observation.foreground is not None


def outline(regions: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The pixels on the inner border of each region, ``(H, W)``: of two that touch, on the higher one."""
    padded = np.pad(regions, 1, mode="edge")
    centre = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    border: NDArray[np.bool_] = np.any([centre > neighbour for neighbour in around], axis=0)
    return border


def thicken(line: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """A line of one pixel, ``(H, W)``, made ``width`` pixels wide, within the image."""
    before = (width - 1) // 2
    (height, across), thick = line.shape, line.copy()
    for y, x in np.ndindex(width, width) if width > 1 else ():
        down, right = y - before, x - before
        there = line[max(0, -down) : height - max(0, down), max(0, -right) : across - max(0, right)]
        thick[max(0, down) : height - max(0, -down), max(0, right) : across - max(0, -right)] |= there
    return thick


def _greys(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A mask ready to show: its largest value becomes white."""
    top = int(mask.max())
    return np.rint(mask * (255.0 / top)).astype(np.uint8) if top else mask


def _seed(run: StoredRun) -> object:
    return run.info.config.seed


def _title(kind: str) -> str:
    return kind.replace("_", " ").capitalize()


def _range(limits: Limits) -> str:
    return f"{format_number(limits.low)} to {format_number(limits.high)}"
