"""The layer of each run, of runs that are drawn or measured together and may name it differently."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import FadevizError, nearest_names
from .map_index import bare_name
from .several_runs import check_distinct, distinct_paths, run_labels
from .stored_run import StoredRun

LayerOfRuns = str | Mapping[str, str]
"""A layer by its dotted name, for all runs; or one for each run: ``{"a": "up1", "b": "up1.op"}``.

Names may lack the prefixes that trainers add (:meth:`StoredRun.find_layer`). A run is called by its folder, as much of
its path as is needed (``b/fade``), or its label in figures; or by its operator, where no other run has the same.
"""

_LISTED = 4
"""Maximum number of runs that a title or a message names one by one."""


def choose_layers(
    runs: Sequence[StoredRun], layer: LayerOfRuns | None, kind: str, call: int = 0
) -> dict[StoredRun, str]:
    """The recorded name of each run's layer, which has maps of this kind and call.

    Args:
        runs: one or more different runs.
        layer: the layer or layers; None takes the first run's ``default_layer(kind)``.
        kind: a name in ``KINDS``.
        call: which call of the layer.

    Raises:
        FadevizError: if a run has no such layer, kind or call; the message names it, and the nearest layers. If a
            mapping names a run that there is not, a run twice, or not all runs.
    """
    if layer is None:
        layer = runs[0].default_layer(kind)
    if isinstance(layer, str):
        _check_shared(runs, layer, kind)
        named = dict.fromkeys(runs, layer)
    elif isinstance(layer, Mapping):
        named = _by_run(runs, layer)
    else:
        raise FadevizError(f"layer={layer!r}: a name, or a mapping of runs to names, is needed")
    return {run: run.check(name, kind, call) for run, name in named.items()}


def layers_of(runs: Sequence[StoredRun], layer: LayerOfRuns) -> dict[StoredRun, str]:
    """The recorded name of a layer in each run that has it; of a mapping, in all runs.

    Raises:
        FadevizError: if no run has the layer; or as :func:`choose_layers`.
    """
    if not isinstance(layer, str):
        return {run: run.find_layer(name) for run, name in _by_run(runs, layer).items()}
    owners = [run for run in runs if run.matching_layers(layer)] or runs[:1]  # where none has it, the first says so
    return {run: run.find_layer(layer) for run in owners}


def find_run(runs: Sequence[StoredRun], label: str) -> StoredRun:
    """The run that a label stands for; see :data:`LayerOfRuns`.

    Raises:
        FadevizError: if it is no run's, or several runs'; the message lists the runs.
    """
    return _find(_name_runs(runs), label)


def parse_layers(runs: Sequence[StoredRun], texts: Sequence[str]) -> list[LayerOfRuns]:
    """Layers from text: a layer's name each; or, as ``RUN=LAYER``, the layers of the runs one after the other.

    A text is divided at the last ``=`` that stands after a run's label, since labels and layers may contain some, too.
    A run that is named again begins the next layer.

    Raises:
        FadevizError: if a text contains ``=``, and is neither a layer nor begins with the label of one of the runs.

    Example::

        parse_layers(runs, ["a=up1", "b=up1.op", "up2"])  # [{"a": "up1", "b": "up1.op"}, "up2"]
    """
    check_distinct(runs)
    names = _name_runs(runs)
    choices: list[LayerOfRuns] = []
    group: dict[str, str] = {}
    grouped: list[StoredRun] = []
    for text in texts:
        label = _label_before(names, text)
        if label is None:
            choices.append(text)
            continue
        run = _find(names, label)
        if not grouped or run in grouped:
            group, grouped = {}, []
            choices.append(group)
        group[label] = text[len(label) + 1 :]
        grouped.append(run)
    return choices


def parse_layer(runs: Sequence[StoredRun], texts: Sequence[str]) -> LayerOfRuns | None:
    """One layer from text: its name, or one ``RUN=LAYER`` for each run; None for no text.

    Raises:
        FadevizError: if there are several layers; or as :func:`parse_layers`.
    """
    choices = parse_layers(runs, texts)
    if len(choices) > 1:
        raise FadevizError(
            f"layer=...: {', '.join(map(repr, texts))} name more than one layer of a run. "
            "Give one for all runs, or one for each: RUN=LAYER"
        )
    return choices[0] if choices else None


def describe_layers(names: Mapping[StoredRun, str], labels: Mapping[StoredRun, str] | None = None) -> str:
    """The name of the runs' layer; where they differ, with the runs that have each.

    ``up1``; ``up1 in FADE and up1.op in CARAFE``; or, where only prefixes differ that trainers add,
    ``up1 (model.up1 in FADE)``.

    Args:
        names: the layer of each run.
        labels: the label of each run; None takes :func:`~fadeviz.storage.several_runs.run_labels`.
    """
    different = list(dict.fromkeys(names.values()))
    if len(different) == 1:
        return different[0]
    if labels is None:
        labels = dict(zip(names, run_labels(list(names)), strict=True))
    owners: dict[str, list[str]] = {}
    for run, name in names.items():
        owners.setdefault(name, []).append(labels[run])
    parts = {}
    for name, several in owners.items():
        several = list(dict.fromkeys(several))
        parts[name] = f"{name} in {', '.join(several) if len(several) <= _LISTED else f'{len(several)} runs'}"
    bare = {bare_name(name) for name in different}
    if len(bare) == 1:
        (common,) = bare
        return f"{common} ({'; '.join(part for name, part in parts.items() if name != common)})"
    *before, last = parts.values()
    return f"{', '.join(before)} and {last}"


def _by_run(runs: Sequence[StoredRun], layers: Mapping[str, str]) -> dict[StoredRun, str]:
    """The layer that a mapping names for each run, in the order of the runs."""
    named = _name_runs(runs)
    chosen: dict[StoredRun, tuple[str, str]] = {}
    for label, name in layers.items():
        if not isinstance(label, str) or not isinstance(name, str):
            raise FadevizError(f"layer={dict(layers)!r}: a mapping of names of runs to names of layers is needed")
        run = _find(named, label)
        if run in chosen:
            raise FadevizError(
                f"layer=...: {chosen[run][0]!r} and {label!r} are the same run, {run.address}. Name its layer once"
            )
        chosen[run] = label, name
    missing = [run for run in runs if run not in chosen]
    if missing:
        raise FadevizError(
            f"layer=...: no layer is named for {', '.join(run.address for run in missing[:_LISTED])}"
            f"{f' and {len(missing) - _LISTED} more runs' * (len(missing) > _LISTED)}. "
            f"Name one for each run: {_list_runs(named)}"
        )
    return {run: chosen[run][1] for run in runs}


def _check_shared(runs: Sequence[StoredRun], layer: str, kind: str) -> None:
    """Raise if only some of the runs have the layer."""
    owner = next((run for run in runs if run.matching_layers(layer)), None)
    lacking = next((run for run in runs if not run.matching_layers(layer)), None)
    if owner is None or lacking is None:
        return  # where none has it, the first run says so
    nearest = nearest_names(layer, lacking.layers)
    common = [
        name
        for name in lacking.layers
        if all(any(kind in run.layers[found] for found in run.matching_layers(name)) for run in runs)
    ]
    own = [name for name, kinds in lacking.layers.items() if kind in kinds]
    sentences = [
        f"{lacking.address} has no layer {layer!r}, but {owner.address} does.",
        f"Nearest in {lacking.address}: {', '.join(map(repr, nearest))}." if nearest else "",
        f"All have {kind!r} maps of: {_shorten(common)}." if common else f"No layer has {kind!r} maps in all of them.",
        f"{lacking.address} has: {_shorten(own)}." if own and not (nearest or common) else "",
        f"Choose {'one with layer=..., or ' * bool(common)}one for each run: {_example(runs, layer, lacking, nearest)}",
    ]
    raise FadevizError(" ".join(filter(None, sentences)))


def _example(runs: Sequence[StoredRun], layer: str, lacking: StoredRun, nearest: Sequence[str]) -> str:
    """A mapping for two runs, to be copied; of more runs only what it would be."""
    if len(runs) != 2:
        return "layer=..."
    other = nearest[0] if nearest else "LAYER"
    named = {one.short: other if one.run is lacking else layer for one in _name_runs(runs)}
    return f"layer={named!r}"


class _Named(NamedTuple):
    """The ways to call a run: its label and its paths; its operator, where no other run is called so; the shortest."""

    run: StoredRun
    label: str
    paths: frozenset[str]
    operator: frozenset[str]
    short: str


def _name_runs(runs: Sequence[StoredRun]) -> list[_Named]:
    named = []
    for run, label, short in zip(runs, run_labels(runs), distinct_paths(runs), strict=True):
        parts = run.path_parts
        ends = ("/".join(parts[-length:]) for length in range(1, len(parts)))
        paths = frozenset((label, run.address, os.path.normpath(run.address), os.path.join(*parts), *ends))
        named.append(_Named(run, label, paths, frozenset((run.name, run.title, run.info.upsampler or run.name)), short))
    # A folder may be called as another run is labelled.
    taken = Counter(path for one in named for path in one.paths)
    return [one if taken[one.short] == 1 else one._replace(short=one.run.address) for one in named]


def _matching(named: Sequence[_Named], label: str) -> list[StoredRun]:
    """The runs whose label or path this is; if there are none, those whose operator it is."""
    spelled = {label, os.path.normpath(label) if label else label}  # runs/a/ is runs/a
    by_path = [one.run for one in named if spelled & one.paths]
    return by_path or [one.run for one in named if label in one.operator]


def _find(named: Sequence[_Named], label: str) -> StoredRun:
    matches = _matching(named, label)
    if len(matches) == 1:
        return matches[0]
    found = "stands for several runs" if matches else "is none of these runs"
    raise FadevizError(f"layer=...: {label!r} {found}: {_list_runs(named)}. Call each by its folder")


def _list_runs(named: Sequence[_Named]) -> str:
    return _shorten([one.short if one.short == one.label else f"{one.short} ({one.label})" for one in named])


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 12 else [*names[:12], "..."])


def _label_before(named: Sequence[_Named], text: str) -> str | None:
    """The label of a run before an ``=`` of the text, the last one where that is so; None if the text is a layer."""
    places = [place for place, letter in enumerate(text) if letter == "="]
    for place in reversed(places):
        if _matching(named, text[:place]):
            return text[:place]
    if places and not any(one.run.matching_layers(text) for one in named):
        raise FadevizError(
            f"layer={text!r}: none of these runs is named before '=': {_list_runs(named)}. RUN=LAYER is needed"
        )
    return None


__all__ = ["LayerOfRuns", "choose_layers", "describe_layers", "find_run", "layers_of", "parse_layer", "parse_layers"]
