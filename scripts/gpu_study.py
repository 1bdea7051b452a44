"""The paper's recipe in full on a GPU: as many trainings as the minutes allow, several at once, the most wanted first.

    python scripts/gpu_study.py train --until 400 [--out DIR] [--jobs 6]
    python scripts/gpu_study.py unpack DIR --out runs
    python scripts/gpu_study.py train --verdict --until 400 [--out DIR] [--jobs 7]

``train`` records SegNet (width 1, 224 x 224, ImageNet weights, 3500 steps, batch 4) and SegFormer-B1 on the Weizmann
Horse set, what ``scripts/gpu_data.py`` put into ``.gpu``. After ``--until`` seconds it stops whatever still trains; the
same command goes on with it. In DIR it leaves ``study.json``, with mIoU and boundary IoU of each run, and at most four
files ``runs-N.zip`` of at most 16 MiB: of each run its settings, metrics, observed images, and the maps of the
network's figure layer in 12 bits, or in 8 where room is short.

``unpack`` makes run folders of them, for ``fadeviz grid``, ``animate``, ``analyze`` and ``report``, and ``study.csv``.

With ``--verdict``, ``train`` records what a verdict needs: FADE, CARAFE, controls and bilinear in SegNet,
three seeds each, twelve images and steps evenly spaced in the logarithm. Those maps are too large to be packed:
``fadeviz analyze`` and ``plot`` read them where they were recorded, in ``--work``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import signal
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for _place in (str(ROOT / "scripts"), str(ROOT)):
    if _place not in sys.path:
        sys.path.insert(0, _place)
os.environ.setdefault("OMP_NUM_THREADS", "2")

import gpu_warm  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

GPU_FILES = ROOT / ".gpu"

FIRST = ("fade", "carafe", "bilinear", "max_unpool")
SEGFORMER = ("fade", "carafe")
OTHERS = (
    "sapa_b", "dysample", "nearest", "fade:gate=off", "fade@shuffled", "indexnet", "a2u", "deconv", "pixel_shuffle",
    "fade_lite", "semishift", "sapa_i", "sapa_g", "decoder_kernel", "encoder_kernel", "bicubic", "freqfusion",
    "lda_aqu", "carafe@shuffled",
)  # fmt: skip
"""Operators and controls."""

SNAPSHOTS = "100:3000:100,320:360:10"

VERDICT = (("fade", "carafe", "fade@shuffled"), ("fade:gate_bias=-4", "bilinear"))
"""What ``--verdict`` trains with three seeds, the most wanted first."""

FILE_LIMIT = int(15.8 * 2**20)
FILES = 4
"""So many files of that size at most."""


# --------------------------------------------------------------------------------------------------------- which runs


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One training of the study."""

    name: str
    """Of its folder."""
    values: Mapping[str, Any]
    """Settings of ``RunConfig``."""


def wanted_runs(device: str = "cuda", small: bool = False) -> list[Wanted]:
    """All trainings, the most wanted first."""
    segnet = {**_shared(device, small), **_segnet(small)}
    segformer = {**_shared(device, small), **_segformer(small)}
    runs = [_wanted(segnet, operator, 0) for operator in FIRST]
    runs += [_wanted(segformer, operator, 0, "segformer-") for operator in SEGFORMER]
    runs += [_wanted(segnet, operator, 0) for operator in OTHERS]
    runs += [_wanted(segnet, operator, seed) for seed in (1, 2) for operator in ("fade", "carafe")]
    runs += [_wanted(segnet, operator, seed) for seed in (1, 2) for operator in ("bilinear", "max_unpool")]
    return runs


def verdict_runs(device: str = "cuda", small: bool = False) -> list[Wanted]:
    """What a verdict needs, seed by seed, so that what is stopped has the same seeds of every operator."""
    values = {**_shared(device, small), **_segnet(small), "observe": 12, "observe_mode": "batch"}
    if not small:
        values["snapshots"] = "log:1:3500:56"
    return [_wanted(values, operator, seed) for group in VERDICT for seed in range(3) for operator in group]


def _shared(device: str, small: bool) -> dict[str, Any]:
    folder = GPU_FILES / "weizmann"
    there = folder.is_dir() and not small
    data = {"data": "weizmann", "data_dir": str(folder)} if there else {"data": "synthetic"}
    # The last checkpoint is enough.
    fast = {"precision": "bf16", "compile": "graph"} if device == "cuda" else {}
    return {**data, "device": device, "checkpoint_every": 1_000_000, **fast}


def _segnet(small: bool) -> dict[str, Any]:
    """Section S3 of the supplement: all defaults of ``RunConfig``, spelled out."""
    if small:
        return {"network": "segnet", "size": 32, "width": 0.125, "steps": 6, "snapshots": "1:6:1"}
    weights = GPU_FILES / "vgg16_bn.safetensors"
    return {
        "network": "segnet", "size": 224, "width": 1.0, "steps": 3500, "batch_size": 4, "lr": 0.01, "momentum": 0.9,
        "lr_drops": (0.7, 0.9), "snapshots": SNAPSHOTS, "evaluate_every": 875,
        "weights": str(weights) if weights.is_file() else "none",
    }  # fmt: skip


def _segformer(small: bool) -> dict[str, Any]:
    """Section S1's schedule; not its set of 150 classes, and random weights, hence a rate above the paper's 6e-5."""
    if small:
        return {"network": "segformer:backbone=b0", "size": 32, "width": 0.25, "steps": 6, "snapshots": "1:6:1"}
    return {
        "network": "segformer:backbone=b1", "size": 224, "width": 1.0, "steps": 3000, "batch_size": 8, "lr": 1e-4,
        "snapshots": SNAPSHOTS, "evaluate_every": 750,
    }  # fmt: skip


def _wanted(values: Mapping[str, Any], operator: str, seed: int, prefix: str = "") -> Wanted:
    from fadeviz.models import find_network, parse_network
    from fadeviz.sweep import Trial

    upsampler, _, labels = operator.partition("@")
    layer = find_network(parse_network(str(values["network"]))[0]).figure_layer
    own = {"upsampler": upsampler, "labels": labels or "true", "seed": seed, "layers": layer}
    return Wanted(prefix + Trial(operator, seed).name, {**values, **own})


def run_config(values: Mapping[str, Any]) -> Any:
    """The settings; those that this version does not have are left out."""
    from fadeviz.experiment import RunConfig

    known = {field.name for field in dataclasses.fields(RunConfig)}
    return RunConfig(**{name: value for name, value in values.items() if name in known})


# -------------------------------------------------------------------------------------------------------------- train


class _TimeIsUp(Exception):
    """The deadline passed."""


def train(options: argparse.Namespace) -> int:
    """Train what is wanted until the time is up, and pack what there is."""
    begun = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = verdict_runs if options.verdict else wanted_runs
    runs = wanted(options.device, options.small)[: options.first or None]

    def time_is_up(number: int, frame: object) -> None:
        raise _TimeIsUp

    signal.signal(signal.SIGALRM, time_is_up)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, options.until))
    try:
        train_until_stopped(runs, options, begun)
    except _TimeIsUp:
        print(f"time is up after {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    trained = time.monotonic() - begun
    folders = [(one.name, options.work / one.name) for one in runs]
    rows = pack(folders, options.out, files=0 if options.verdict else FILES)
    for row in rows:
        print("  ".join(f"{row.get(key, '')}" for key in COLUMNS), flush=True)
    done = sum(row["status"] == "finished" for row in rows)
    packing = time.monotonic() - begun - trained
    print(f"{done} of {len(rows)} runs finished; trained {trained:.0f} s, packed in {packing:.0f} s")
    return 0 if done else 1


def train_until_stopped(runs: Sequence[Wanted], options: argparse.Namespace, begun: float) -> None:
    """Train what is not finished, and say every few seconds how far it is."""
    from fadeviz.sweep import LocalProcesses, Trial
    from fadeviz.sweep.trial import Task

    runs = [one for one in runs if not is_finished(options.work / one.name)]
    unfit: list[Wanted] = []
    at: dict[str, str] = {}
    shown = 0.0
    with compiled_ahead(runs, options) as wait:
        configs = [run_config(one.values) for one in runs]  # a setting that does not fit shows before anything trains
        tasks = [
            Task(Trial(one.name, config.seed), config, options.work / one.name)
            for one, config in zip(runs, configs, strict=True)
        ]
        wait()
        with contextlib.closing(LocalProcesses(options.jobs, grace=20).train(tasks)) as words:
            for events in words:
                for event in events:
                    name = event.task.trial.operator
                    if event.progress is not None:
                        at[name] = f"{event.progress.step}"
                    if event.status in ("finished", "failed"):
                        at.pop(name, None)
                        told = f"{event.status} after {time.monotonic() - begun:.0f} s {event.message}"
                        print(f"{name}: {told} {event.traceback[-1500:]}", flush=True)
                        if event.status == "failed" and "compile=graph" in event.message:
                            unfit += [one for one in runs if one.name == name]
                        shutil.rmtree(event.task.folder / "checkpoints", ignore_errors=True)
                if time.monotonic() - shown > 15:
                    shown = time.monotonic()
                    print(f"{shown - begun:5.0f} s  " + ", ".join(f"{n} {s}" for n, s in at.items()), flush=True)
    for one in unfit:
        shutil.rmtree(options.work / one.name, ignore_errors=True)
    if unfit:
        again = [Wanted(one.name, {**one.values, "compile": "off"}) for one in unfit]
        train_until_stopped(again, options, begun)


def uses_of(values: Mapping[str, Any]) -> list[gpu_warm.Use]:
    """The operators of a run at their sizes, as it trains and as it observes, in float32."""
    uses = gpu_warm.segformer_uses if str(values["network"]).startswith("segformer") else gpu_warm.segnet_uses
    precisions = dict.fromkeys((values.get("precision", "fp32"), "fp32"))
    found = (uses(values["upsampler"], values.get("batch_size", 4), one, values["size"]) for one in precisions)
    return [use for each in found for use in each]


@contextlib.contextmanager
def compiled_ahead(runs: Sequence[Wanted], options: argparse.Namespace) -> Iterator[Callable[[], None]]:
    """Compile the runs' kernels meanwhile, in their order; what it gives waits for those of the first runs."""
    if not options.compilers:
        yield lambda: None
        return
    begun = time.monotonic()
    uses = [uses_of(one.values) for one in runs]
    first = len(dict.fromkeys(use for each in uses[: options.jobs] for use in each))
    pool, waiting = gpu_warm.warm((use for each in uses for use in each), options.device, options.compilers)

    def wait() -> None:
        while not gpu_warm.finished(waiting, first) and time.monotonic() - begun < options.until / 4:
            time.sleep(0.2)
        print(f"{time.monotonic() - begun:5.0f} s  the first {first} of {len(waiting)} uses are compiled", flush=True)

    try:
        yield wait
    finally:
        for line in gpu_warm.failures(waiting):
            print(f"did not compile: {line}", flush=True)
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list((pool._processes or {}).values()):
            process.kill()


def is_finished(folder: Path) -> bool:
    """Whether a run is done."""
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads((folder / "run.json").read_text())["status"] == "finished")
    return False


# --------------------------------------------------------------------------------------------------------------- pack

COLUMNS = (
    "name", "status", "last_step", "miou", "boundary_iou", "test_loss", "training", "observing", "testing", "bits",
)  # fmt: skip


def pack(
    folders: Sequence[tuple[str, Path]], out: Path, file_limit: int = FILE_LIMIT, files: int = FILES
) -> list[dict[str, Any]]:
    """Pack runs into ``runs-N.zip``, in 12 bits as long as all others fit in 8; and say in study.json what there is.

    With ``files=0`` no maps are packed.
    """
    there = [(name, folder) for name, folder in folders if (folder / "run.json").is_file()]
    if not files:
        rows = [summary(name, folder, 0) for name, folder in there]
        return write_rows(rows, folders, out)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib leaves the interpreter to others
        fine = list(pool.map(lambda one: packed(one[1], 12), there))
        rough = list(pool.map(lambda one: packed(one[1], 8), there))
    archives: list[list[tuple[str, bytes]]] = [[] for _ in range(files)]
    bits_of: dict[str, int] = {}
    left = file_limit * files - sum(map(len, rough))
    for (name, _), large, small in zip(there, fine, rough, strict=True):
        for data, bits in ((large, 12), (small, 8)):
            fitting = [one for one in archives if sum(len(other) for _, other in one) + len(data) <= file_limit]
            if fitting and (bits == 8 or len(large) - len(small) <= left):
                fitting[0].append((name, data))
                bits_of[name] = bits
                left -= len(data) - len(small)
                break
    rows = [summary(name, folder, bits_of.get(name, 0)) for name, folder in there]
    for old in out.glob("runs-*.zip"):
        old.unlink()
    for number, members in enumerate(archives):
        if members:
            with zipfile.ZipFile(out / f"runs-{number}.zip", "w", zipfile.ZIP_STORED) as archive:
                for name, data in members:
                    archive.writestr(f"{name}.zip", data)
    return write_rows(rows, folders, out)


def write_rows(rows: list[dict[str, Any]], folders: Sequence[tuple[str, Path]], out: Path) -> list[dict[str, Any]]:
    """Leave the table in study.json, with what was not begun."""
    there = {row["name"] for row in rows}
    rows = [*rows, *({"name": name, "status": "not begun"} for name, _ in folders if name not in there)]
    (out / "study.json").write_text(json.dumps({"about": ABOUT, "runs": rows}, indent=1))
    return rows


ABOUT = (
    "SegNet: width 1, ImageNet weights, Weizmann Horse, 224x224, batch 4, SGD (momentum 0.9), lr 0.01 times 0.1 after "
    "70 % and 90 % of 3500 steps. SegFormer-B1: random weights, Weizmann Horse (2 classes), 224x224, batch 8, AdamW "
    "1e-4 (head 1e-3), 3000 steps. bf16 autocast, steps replayed as a CUDA graph. Metrics of the test split after the "
    "last step; seconds while several runs shared the GPU."
)


def summary(name: str, folder: Path, bits: int) -> dict[str, Any]:
    """A line of the table."""
    from fadeviz.storage.info import read_info

    info = read_info(folder, str(folder))
    rounded = {key: round(value, 4) for key, value in info.result.items()}
    spent = {key: round(value, 1) for key, value in info.seconds.items()}
    names = ("status", "last_step", "message", "device", "versions", "parameters")
    return {"name": name, **{key: getattr(info, key) for key in names}, **rounded, **spent, "bits": bits}


def packed(folder: Path, bits: int) -> bytes:
    """A run without its checkpoints, its maps rounded: a zip file in memory."""
    from fadeviz import open_run

    run = open_run(folder)
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:
        for name in ("run.json", "metrics.jsonl", "observation.safetensors"):
            if (folder / name).is_file():
                archive.writestr(name, (folder / name).read_bytes(), zipfile.ZIP_DEFLATED)
        for step in run.steps:
            for key, value in maps_of(folder, step):
                head, data = rounded_map(value, bits)
                name = f"maps/{step:06d}/{key}"
                archive.writestr(f"{name}.json", json.dumps(head), zipfile.ZIP_DEFLATED)
                archive.writestr(f"{name}.z", data)
    return memory.getvalue()


def maps_of(folder: Path, step: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The maps of a snapshot file by ``layer/call/kind``."""
    from safetensors.numpy import load_file

    yield from sorted(load_file(folder / "snapshots" / f"step_{step:06d}.safetensors").items())


def rounded_map(value: NDArray[np.float32], bits: int) -> tuple[dict[str, Any], bytes]:
    """Each map linearly between its least and its largest value; differences along rows, which compress.

    A map that is not finite is kept as it is.
    """
    if not np.isfinite(value).all():
        return {"shape": value.shape, "bits": 32}, zlib.compress(value.astype("<f4").tobytes())
    low = value.min(axis=(-2, -1), keepdims=True)
    high = value.max(axis=(-2, -1), keepdims=True)
    span = np.where(high > low, high - low, 1).astype(np.float64)
    whole = np.rint((value - low) / span * (2**bits - 1)).astype("<u2" if bits > 8 else "u1")
    steps = np.diff(whole, axis=-1, prepend=np.zeros_like(whole[..., :1]))  # wraps around
    planes = steps.reshape(-1).view("u1").reshape(-1, steps.itemsize).T  # all high bytes together
    head = {"shape": value.shape, "bits": bits, "low": low.ravel().tolist(), "high": high.ravel().tolist()}
    return head, zlib.compress(planes.tobytes(), 9 if bits == 8 else 6)


def restored_map(head: Mapping[str, Any], data: bytes) -> NDArray[np.float32]:
    """What :func:`rounded_map` gave, as float32."""
    shape, bits = tuple(head["shape"]), head["bits"]
    if bits == 32:
        return np.frombuffer(zlib.decompress(data), "<f4").reshape(shape).astype(np.float32)
    itemsize = 2 if bits > 8 else 1
    planes = np.frombuffer(zlib.decompress(data), "u1").reshape(itemsize, -1)
    steps = np.ascontiguousarray(planes.T).view("<u2" if bits > 8 else "u1").reshape(shape)
    whole = np.cumsum(steps, axis=-1, dtype=steps.dtype).astype(np.float64)
    low, high = (np.array(head[end]).reshape((*shape[:-2], 1, 1)) for end in ("low", "high"))
    return (low + whole / (2**bits - 1) * (high - low)).astype(np.float32)


def unpack(options: argparse.Namespace) -> int:
    """Make run folders of what :func:`pack` left."""
    files = sorted(options.folder.glob("runs-*.zip"))
    if not files:
        raise SystemExit(f"{options.folder} has no runs-N.zip. Give the folder that gpu_study.py train wrote")
    for file in files:
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                folder = options.out / Path(name).stem
                unpack_run(archive.read(name), folder)
                print(folder)
    rows = json.loads((options.folder / "study.json").read_text())["runs"]
    with (options.out / "study.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return 0


def unpack_run(data: bytes, folder: Path) -> None:
    """Write one run's folder, replacing what an earlier call left."""
    from fadeviz.storage.info import RunInfo
    from fadeviz.storage.snapshots import Snapshot, SnapshotStore

    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        info = RunInfo.from_json(archive.read("run.json"), str(folder))
        store = SnapshotStore(folder, info.run_id)
        steps: dict[int, list[Snapshot]] = {}
        bits = 32
        for name in archive.namelist():
            if name.startswith("maps/") and name.endswith(".z"):
                head = json.loads(archive.read(name.removesuffix(".z") + ".json"))
                bits = min(bits, head["bits"])
                _, step, layer, call, kind = name.removesuffix(".z").split("/")
                value = restored_map(head, archive.read(name))
                steps.setdefault(int(step), []).append(Snapshot(int(step), layer, int(call), kind, value))
        for step, snapshots in steps.items():
            store.write(step, snapshots)
        for name in ("metrics.jsonl", "observation.safetensors"):
            if name in archive.namelist():
                (folder / name).write_bytes(archive.read(name))
    note = f"the maps were packed in {bits} bits, from the least to the largest value of each"
    store.write_info(dataclasses.replace(info, notes=(*info.notes, note)))


def main() -> None:
    """Train, or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="train|unpack")
    training = commands.add_parser("train")
    default = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "outputs" / "gpu_study"
    training.add_argument(
        "--out", type=Path, default=default, help="for the results; default: $OUT, or outputs/gpu_study"
    )
    training.add_argument(
        "--work", type=Path, default=ROOT / "outputs" / "gpu_study_runs", help="for the runs' folders"
    )
    training.add_argument(
        "--until", type=float, default=400, metavar="SECONDS", help="stop training then; default: 400"
    )
    training.add_argument("--jobs", type=int, default=6, help="runs at a time; default: 6")
    training.add_argument(
        "--compilers", type=int, default=14, help="processes that compile kernels before they are needed; default: 14"
    )
    training.add_argument("--verdict", action="store_true", help="what a verdict needs: three seeds, twelve images")
    training.add_argument("--first", type=int, default=0, metavar="N", help="only the N most wanted")
    training.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    training.add_argument("--small", action="store_true", help="tiny sizes, to rehearse")
    training.set_defaults(function=train)
    unpacking = commands.add_parser("unpack")
    unpacking.add_argument("folder", type=Path, help="where train left runs-N.zip")
    unpacking.add_argument("--out", type=Path, default=ROOT / "outputs" / "gpu_study_runs")
    unpacking.set_defaults(function=unpack)
    options = parser.parse_args()
    sys.exit(options.function(options))


if __name__ == "__main__":
    main()
