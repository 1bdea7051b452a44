"""Stored runs for other tools: NumPy, Zarr and xarray, TensorBoard, Weights & Biases, Rerun; without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .. import plugins
from ..errors import FadevizError
from ..storage.opening import RunLike, stored_runs
from .npz import write_npz
from .rerun_log import write_rerun
from .selection import Drawing, ExportSelection, select
from .targets import ExportTarget
from .tensorboard_log import write_tensorboard
from .wandb_log import write_wandb
from .zarr_store import write_zarr

TARGETS: dict[str, ExportTarget] = {
    "npz": ExportTarget(write_npz, "one .npz file for NumPy: every map as recorded, (steps, images, h, w)"),
    "zarr": ExportTarget(
        write_zarr, "a folder for xarray: one group per layer, one array per kind, one chunk per step, as recorded"
    ),
    "tensorboard": ExportTarget(write_tensorboard, "a log folder: maps as images, metrics as scalars", draws=True),
    "wandb": ExportTarget(
        write_wandb, "an offline run of Weights & Biases; nothing is sent before `wandb sync`", draws=True
    ),
    "rerun": ExportTarget(write_rerun, "one .rrd file: maps as images on a timeline of steps", draws=True),
}
"""fadeviz's own targets by name. A new one is a file and a row here.

Other packages add theirs under the entry-point group ``fadeviz.exporters``; :func:`find_target` finds both.
"""


def _fault(entry: object) -> str:
    """What is wrong with another package's entry; empty for nothing."""
    if isinstance(entry, ExportTarget):
        return ""
    return f"is a {type(entry).__name__}; a fadeviz.export.ExportTarget is needed"


_TABLE = plugins.Table("target", plugins.EXPORTERS, TARGETS, _fault)


def find_target(name: str) -> ExportTarget:
    """The export target ``name``: fadeviz's own, or another package's.

    Raises:
        FadevizError: if there is no such target, or its package is broken.
    """
    return _TABLE.find(name)


def all_targets() -> dict[str, ExportTarget]:
    """Every export target by name: fadeviz's own, then those of other packages.

    Raises:
        FadevizError: if another package is broken, or uses a name of fadeviz's own.
    """
    return _TABLE.all()


def export_run(
    run: RunLike,
    target: str,
    output: str | os.PathLike[str],
    *,
    layers: Sequence[str] = (),
    kinds: Sequence[str] = (),
    steps: Sequence[int] | None = None,
    images: Sequence[int] | None = None,
    call: int | None = None,
    normalize: str | None = None,
    colormap: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a stored run for another tool: maps, observed images, metrics and settings.

    The export is written atomically; files that no export wrote are never replaced.

    Args:
        run: the run, opened or by the path of its folder.
        target: a name in ``TARGETS``, or an export target of another package.
        output: the file (``npz``, ``rerun``) or folder to write.
        layers: dotted module names, with or without prefixes that trainers add; empty for all.
        kinds: names in ``KINDS``; empty for all.
        steps: recorded steps; None for all.
        images: indices of observed images; None for all.
        call: index of the call, for layers that run several times in a forward pass; None for all calls.
        normalize: for targets that draw maps, what spans black to white: each ``frame`` (default) or the ``run``.
        colormap: for targets that draw maps: ``gray`` (default) or any that matplotlib knows.
        overwrite: replace an earlier export.

    Returns:
        Notes: what was left out, and how to include it.

    Raises:
        FadevizError: if there is no such target, layer, kind, step or image, if a library is not installed, or if
            something at ``output`` must not be replaced. Nothing is written or removed in that case.

    Example::

        export_run(fadeviz.open_run("outputs/fade"), "zarr", "fade.zarr", kinds=["feature"])
    """
    entry = find_target(target)
    options = {name: value for name, value in (("normalize", normalize), ("colormap", colormap)) if value is not None}
    if options and not entry.draws:
        name, value = next(iter(options.items()))
        raise FadevizError(f"{target} writes maps as recorded and draws nothing. Leave out {name}={value!r}")
    drawing = Drawing(**options)
    if entry.draws:
        drawing.check()
    (opened,) = stored_runs(run)
    selection = select(opened, layers=layers, kinds=kinds, steps=steps, images=images, call=call, drawing=drawing)
    return entry.write(selection, Path(output), overwrite=overwrite)


__all__ = ["TARGETS", "Drawing", "ExportSelection", "ExportTarget", "all_targets", "export_run", "find_target"]
