"""Stored runs for other tools: NumPy, Zarr and xarray, TensorBoard, Weights & Biases, Rerun; without torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import FadevizError, unknown_name
from ..storage.opening import RunLike, stored_runs
from .npz import write_npz
from .rerun_log import write_rerun
from .selection import Drawing, select
from .tensorboard_log import write_tensorboard
from .wandb_log import write_wandb
from .zarr_store import write_zarr

TARGETS: dict[str, Callable[..., tuple[str, ...]]] = {
    "npz": write_npz,
    "zarr": write_zarr,
    "tensorboard": write_tensorboard,
    "wandb": write_wandb,
    "rerun": write_rerun,
}
"""What can be written, and by which function."""

DRAWN = frozenset({"tensorboard", "wandb", "rerun"})
"""Targets that hold the maps as images, in 256 colours; the others hold them as recorded, bit for bit."""


def export_run(
    run: RunLike,
    target: str,
    output: str | os.PathLike[str],
    *,
    layers: Sequence[str] = (),
    kinds: Sequence[str] = (),
    steps: Sequence[int] | None = None,
    images: Sequence[int] | None = None,
    normalize: str | None = None,
    colormap: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a stored run for another tool: maps, observed images, metrics and settings.

    Written whole or not at all; what no export wrote is never replaced.

    Args:
        run: the run, opened or by the path of its folder.
        target: a name in ``TARGETS``.
        output: the file (``npz``, ``rerun``) or the folder to be made.
        layers: dotted names; none takes all.
        kinds: names in ``KINDS``; none takes all.
        steps: recorded steps; None takes all.
        images: numbers of observed images; None takes all.
        normalize: for ``DRAWN`` ones, what spans black to white: ``frame``, each map (the default), or ``run``.
        colormap: for ``DRAWN`` ones: ``gray`` (the default) or any that matplotlib knows.
        overwrite: replace an earlier export.

    Returns:
        Notes: what was left out, and what to do to see it all.

    Raises:
        FadevizError: a target, layer, kind, step or image there is not, a library that is not installed, or
            something at ``output`` that may not be replaced. Nothing was written or removed then.

    Example::

        export_run(fadeviz.open_run("outputs/fade"), "zarr", "fade.zarr", kinds=["feature"])
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    drawing = {"normalize": normalize, "colormap": colormap}
    given = {name: value for name, value in drawing.items() if value is not None}
    if given and target not in DRAWN:
        raise FadevizError(f"{target} holds maps as recorded, nothing is drawn. Leave out {next(iter(given))}=...")
    (opened,) = stored_runs(run)
    selection = select(opened, layers=layers, kinds=kinds, steps=steps, images=images)
    how = {"drawing": Drawing(**given)} if target in DRAWN else {}
    return TARGETS[target](selection, Path(output), overwrite=overwrite, **how)
