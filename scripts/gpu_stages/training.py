"""The stage ``training``: synchronisations of a step, and trainings that resume to the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .setting import NETWORKS, ROOT, Row, Rows, Setting, first_line, spread_over


def stage_training(setting: Setting, rows: Rows) -> None:
    """Synchronisations, bits, and observing."""
    from fadeviz.upsamplers import UPSAMPLERS

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    networks, names = (NETWORKS[:1], ("fade",)) if setting.small else (NETWORKS, tuple(UPSAMPLERS))
    tasks: list[tuple[Any, ...]] = [("synchronisations", network) for network in networks]
    tasks += [("observing", network, mode) for network in networks for mode in ("eval", "batch")]
    tasks += [("bits", name, exact) for exact in (False, True) for name in names]
    for task, result in spread_over(setting, check_training, tasks):
        if isinstance(result, BaseException):
            rows.add(what=task[0], of=task[1:], error=first_line(result), ok=False)
        else:
            rows.add(**result)


def check_training(setting: Setting, what: str, *of: Any) -> Row:
    """One of the checks of a training, by its name."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=setting.work or None) as folder, few_synthetic_tests():
        function = {"synchronisations": synchronisations, "observing": observing, "bits": same_bits}[what]
        return function(setting, Path(folder), *of)


@contextlib.contextmanager
def few_synthetic_tests() -> Iterator[None]:
    """Test on eight synthetic horses, not 64."""
    from fadeviz.data.synthetic import dataset as synthetic

    name = next(
        (name for name in vars(synthetic) if name.startswith("TEST_") and isinstance(vars(synthetic)[name], int)), ""
    )
    if not name:
        yield
        return
    before = getattr(synthetic, name)
    setattr(synthetic, name, 8)
    try:
        yield
    finally:
        setattr(synthetic, name, before)


def run_config(setting: Setting, **values: Any) -> Any:
    """Settings of a run; those that this version does not have are left out."""
    from fadeviz.experiment import RunConfig

    values = {"workers": 0, **values}  # processes that draw take longer to start than tiny runs to train
    known = {field.name for field in dataclasses.fields(RunConfig)}
    settings = {name: value for name, value in values.items() if name in known}
    return RunConfig(**{"device": setting.device, "observe": 4, **settings})  # the tests draw 8 test images


def synchronisations(setting: Setting, folder: Path, network: str) -> Row:
    """Where the host waits for the GPU in three training steps, by line."""
    from fadeviz.experiment import train

    found: Counter[str] = Counter()

    def show(message: Any, *args: Any, **kwargs: Any) -> None:
        if "called a synchronizing" in str(message):
            found[place_in_fadeviz()] += 1

    def report(progress: Any) -> None:
        if setting.cuda and progress.step in (3, 6):
            torch.cuda.set_sync_debug_mode("warn" if progress.step == 3 else "default")

    size, width = (32, 0.125) if setting.small else (64, 0.25)
    config = run_config(
        setting, network=network, upsampler="fade", size=size, width=width, steps=8, snapshots="8", evaluate_every=8,
        checkpoint_every=100,
    )  # fmt: skip
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            train(config, folder / "run", on_progress=report)
        finally:
            warnings.showwarning = before
            if setting.cuda:
                torch.cuda.set_sync_debug_mode("default")
    return {"what": "synchronisations", "network": network, "a step": sum(found.values()) / 3, "lines": dict(found)}


def place_in_fadeviz() -> str:
    """The innermost line of the package, and the innermost of all."""
    frames = [frame for frame in traceback.extract_stack()[:-2] if "/warnings.py" not in frame.filename]
    own = [frame for frame in frames if f"{ROOT}/fadeviz/" in frame.filename]
    at = own[-1] if own else frames[-1]
    inner = frames[-1]
    text = f"{at.filename.removeprefix(f'{ROOT}/')}:{at.lineno}"
    return text if inner is at else f"{text} ({Path(inner.filename).name}:{inner.lineno})"


def observing(setting: Setting, folder: Path, network: str, mode: str) -> Row:
    """A run that observes at steps 0, 1 and 2, every kind of map."""
    from fadeviz.experiment import train

    size, width = (32, 0.125) if setting.small else (64, 0.25)
    config = run_config(
        setting, network=network, upsampler="fade", size=size, width=width, steps=2, snapshots="1:2:1", kinds="all",
        observe_mode=mode, evaluate_every=2,
    )  # fmt: skip
    done = train(config, folder / "run")
    layer = next(iter(done.info.layers))
    finite = all(np.isfinite(done.read(2, layer, kind)).all() for kind in ("feature", "gradient"))
    return {"what": "observing", "network": network, "mode": mode, "steps": list(done.steps), "ok": finite}


def same_bits(setting: Setting, folder: Path, name: str, exact: bool) -> Row:
    """Whether four steps, trained twice, and interrupted and resumed, leave the same files."""
    from fadeviz.experiment import train

    values = {"deterministic": True} if exact else {}
    size, width = (32, 0.125) if setting.small else (64, 0.25)
    config = run_config(
        setting, upsampler=name, size=size, width=width, steps=4, snapshots="1:4:1", checkpoint_every=2,
        evaluate_every=4, **values,
    )  # fmt: skip
    by_setting = hasattr(config, "deterministic")

    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    unfit: set[str] = set()

    def show(message: Any, *args: Any, **kwargs: Any) -> None:
        if "deterministic" in str(message):
            unfit.add(str(message).split(" does not")[0][:60])

    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        if exact and not by_setting:
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            for label in ("a", "b"):
                train(config, folder / label)
            with contextlib.suppress(KeyboardInterrupt):
                train(config, folder / "c", on_progress=stop)
            train(config, folder / "c", resume=True)
        finally:
            warnings.showwarning = before
            torch.use_deterministic_algorithms(False)
    files = sorted(path.name for path in (folder / "a" / "snapshots").iterdir())
    same = {
        other: all(
            (folder / "a" / "snapshots" / file).read_bytes() == (folder / other / "snapshots" / file).read_bytes()
            for file in files
        )
        and losses(folder / "a") == losses(folder / other)
        for other in ("b", "c")
    }
    return {
        "what": "bits", "operator": name, "deterministic": exact, "twice": same["b"], "resumed": same["c"],
        "without": sorted(unfit),
    }  # fmt: skip


def losses(run: Path) -> list[float]:
    """The loss of every step of a run."""
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
