"""The sentences, numbers and tables of a page, from a measured learning order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.learning import UNTIL, LearningTimes, State
from ..analysis.order import RESPONSES, LearningOrder, OperatorOrder
from ..analysis.statistics import LEAST_PAIRS, UNITS, Interval
from ..analysis.table import verdicts_by_rule
from ..analysis.verdicts import is_representative
from ..render.frames import spread
from ..render.labels import format_number
from ..render.panels import shown_distances
from ..storage.stored_run import StoredRun

MAX_STEPS = 200
"""Most snapshots shown as maps and as points of a curve; the measures use all of them."""

_MINUS = "\N{MINUS SIGN}"
_LONGEST = 200


def plain(value: object, longest: int = _LONGEST) -> str:
    """A value of a run as text: without control characters, and shortened to ``longest`` characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def shown_indices(count: int) -> list[int]:
    """The indices of the snapshots that a page shows of ``count``: all, or ``MAX_STEPS`` evenly spaced ones."""
    return spread(range(count), MAX_STEPS)


def shown_steps(order: LearningOrder) -> tuple[tuple[int, ...], list[str]]:
    """The steps whose maps a page shows, at most ``MAX_STEPS``, and notes on what is left out."""
    shown, count = tuple(order.steps[index] for index in shown_indices(len(order.steps))), len(order.steps)
    if len(shown) == count:
        return shown, []
    return shown, [
        f"{count - len(shown):,} of {count:,} snapshots: the maps and curves show {len(shown)}, evenly spaced; "
        "all of them are measured"
    ]


# --- the verdict ------------------------------------------------------------------------------------------------------


def verdict_rows(order: LearningOrder) -> list[dict[str, str]]:
    """One row per operator: its verdict in words, the lead and the two t50 with their intervals."""
    last = order.steps[-1]
    return [
        {
            "title": plain(operator.title),
            "word": operator.verdict.label,
            "sentence": _sentence(operator, last),
            **{
                name: _interval(interval, last, signed=name == "lead")
                if is_representative(interval, operator.lead.size)
                else f"– (of {interval.count} of {operator.lead.size} maps)"
                for name, interval in (
                    ("lead", operator.lead_interval),
                    ("edge", operator.edge_t50),
                    ("interior", operator.interior_t50),
                )
            },
            "seeds": str(len(operator.seeds)),
        }
        for operator in order.operators
    ]


def _sentence(operator: OperatorOrder, last: int) -> str:
    lead, word = operator.lead_interval, operator.verdict.label
    maps = f"{lead.count} maps of {_count(lead.seeds, 'seed')}"
    if word in ("outline first", "interior first"):
        early, late = ("outline", "interior") if word == "outline first" else ("interior", "outline")
        if math.isinf(lead.estimate):
            return f"By step {last} the {late} has not reached t50; the {early} has ({maps})."
        return (
            f"The {late} reaches t50 {format_number(abs(lead.estimate))} steps after the {early} "
            f"({_level(lead)} interval {_ends(lead, last)} steps; {maps})."
        )
    states = f"Outline: {_states(operator.edge_times)}. Interior: {_states(operator.interior_times)}."
    if word == "together":
        return (
            f"Both reach t50 within the {operator.margin:.0f} steps that the snapshots resolve "
            f"(lead {_interval(lead, last, signed=True)} steps; {maps})."
        )
    if word == "undecided":
        reason = plain(operator.verdict.reason, 400).replace("-", _MINUS)
        return f"{reason[:1].upper()}{reason[1:]}."
    return states


def _states(times: Sequence[Sequence[LearningTimes]]) -> str:
    """The number of maps in which a response is in each state: ``reached in 2 maps, never in 2``."""
    states = [learning.state for row in times for learning in row]
    counts = [(str(state), states.count(state)) for state in State if state in states]
    return ", ".join(
        f"{state} in {n}{' maps' * (not i and n != 1)}{' map' * (not i and n == 1)}"
        for i, (state, n) in enumerate(counts)
    )


def _interval(interval: Interval, last: int, *, signed: bool = False) -> str:
    if not interval.count or math.isnan(interval.estimate):
        return "–"
    if interval.low == interval.high:
        return _step(interval.estimate, last, signed)
    return f"{_step(interval.estimate, last, signed)} ({_ends(interval, last, signed)})"


def _ends(interval: Interval, last: int, signed: bool = True) -> str:
    return f"{_step(interval.low, last, signed)} to {_step(interval.high, last, signed)}"


def _step(value: float, last: int, signed: bool = False) -> str:
    """A step or a lead; infinite where a response has not reached t50 by the last step."""
    if math.isinf(value):
        return ("+∞" if value > 0 else f"{_MINUS}∞") if signed else f"after {last:,}"
    text = f"{abs(value):,.0f}" if abs(value) >= 10 else f"{abs(value):.1f}"
    return ("+" if value > 0 and signed else _MINUS if value < 0 else "") + text


def _level(interval: Interval) -> str:
    return f"{100 * interval.level:g} %"


def rules(order: LearningOrder) -> tuple[list[str], dict[str, list[str]]]:
    """The verdicts by every rule: the titles of the operators, and for each rule in words a verdict per operator."""
    verdicts: dict[str, list[str]] = {}
    for row in verdicts_by_rule(order):
        rule = f"{RESPONSES[row['responses']]}; until {UNTIL[row['until']]}"
        verdicts.setdefault(rule[:1].upper() + rule[1:], []).append(row["verdict"])
    return [plain(operator.title) for operator in order.operators], verdicts


def comparison_sentences(order: LearningOrder) -> list[str]:
    """The paired tests of every two operators, where there are enough pairs for a test to be significant."""
    titles = {operator.name: operator.title for operator in order.operators}
    return [
        f"Lead of {plain(titles[pair.first])} minus that of {plain(titles[pair.second])}, paired by {unit}: "
        f"{_step(test.difference, order.steps[-1], True)} steps, p = {test.p:.3g} "
        f"({'exact' if test.exact else 'sampled'}, {_count(test.count, 'pair')}; {UNITS[unit].partition(': ')[2]})."
        for pair in order.comparisons
        for unit, test in pair.tests.items()
        if test.count >= LEAST_PAIRS
    ]


def caveats(order: LearningOrder) -> list[str]:
    """Limits of the conclusions, one sentence each."""
    sentences = [plain(note, 300) for note in order.notes]
    sentences = [f"{note[:1].upper()}{note[1:]}." for note in sentences]
    if len(order.images) > 1:
        ends = [
            f"{plain(o.title)} {format_number(_median(np.stack([m.interior[-1] for m in o.measured])), 2)} and "
            f"{format_number(_median(np.stack([m.interior_mismatched[-1] for m in o.measured])), 2)}"
            for o in order.operators
        ]
        sentences.append(
            "Objects are mostly in the middle of an image, so that any map that is brighter there responds to them. "
            "The interior response at the last step, and that of the same maps for mismatched masks (those of the "
            f"other images): {'; '.join(ends)}. Dotted curves show the latter over training."
        )
    else:
        sentences.append("One image: a response to the object cannot be distinguished from one to its position.")
    edges = order.operators[0].value_kymograph.edges
    last = shown_distances([edges])[1]
    if edges[-1] > last:
        sentences.append(f"The distance-time maps omit distances of {last:g} to {edges[-1]:g} px outside.")
    few = sum(test.count < LEAST_PAIRS for pair in order.comparisons for test in pair.tests.values())
    if few:
        sentences.append(f"Omitted: {_count(few, 'test')} of two operators with fewer than {LEAST_PAIRS} pairs.")
    modes = {str(run.info.observation.mode) for o in order.operators for run in o.runs}
    if "eval" in modes:
        sentences.append(
            "BatchNorm's running statistics lag behind the weights in the first tens of steps, which affects the maps."
        )
    sentences.append(
        "Where each frame spans its own range, brightness cannot be compared between frames, and noise is amplified to "
        "full contrast; the other two normalisations show the scale."
    )
    return sentences


def _median(values: NDArray[np.floating]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


# --- the runs ---------------------------------------------------------------------------------------------------------


def settings(runs: Sequence[StoredRun]) -> tuple[list[str], dict[str, list[str]], dict[str, str]]:
    """The settings of the runs.

    Returns:
        A name for each run; the settings that differ, with one value per run; the settings that all runs share.
    """
    stored = [_settings(run) for run in runs]
    names = list(dict.fromkeys(name for values in stored for name in values))
    table = {name: [values.get(name, "–") for values in stored] for name in names}
    different = {name: row for name, row in table.items() if len(set(row)) > 1}
    common = {name: row[0] for name, row in table.items() if name not in different or len(runs) == 1}
    return [plain(run.address) for run in runs], different, common


_PLACES = ("data_dir", "weights")
"""Settings that are paths of the recording machine, which are omitted because the page may be shared."""


def _settings(run: StoredRun) -> dict[str, str]:
    info = run.info
    settings: dict[str, Any] = {
        "run": run.run_id,
        "upsampler": info.upsampler,
        "network": info.network,
        "parameters": info.parameters,
        **{name: value for name, value in info.config.items() if name not in _PLACES},
        "weights": info.weights,
        "observed in mode": info.observation.mode,
        "data fingerprint": info.data.get("fingerprint"),
        "data images": info.data.get("count"),
        "device": info.device,
        "threads": info.threads,
        **{f"version of {name}": value for name, value in info.versions.items()},
        "status": info.status,
        **{f"result: {name}": value for name, value in info.result.items()},
    }
    return {plain(name, 60): _value(value) for name, value in settings.items() if value not in (None, "")}


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return plain(f"{value:,}" if abs(value) >= 100_000 else value)
    if isinstance(value, float):
        return plain(f"{value:.5g}")
    if isinstance(value, list):
        return plain(", ".join(map(str, value)))
    return plain(value)
