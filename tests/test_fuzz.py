"""Whatever a file or an option holds: it is read, or refused in one line; nothing hangs or is written elsewhere.

Each test takes some hundred inputs, and thousands with ``-m slow``. The inputs are the same every time.
"""

import copy
import faulthandler
import io
import json
import os
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fadeviz.data.download
import fadeviz.experiment
from fadeviz import FadevizError, open_run
from fadeviz.data.synthetic import dataset as synthetic
from fadeviz.data.weizmann_horse import check_weizmann, load_weizmann
from fadeviz.experiment import read_config
from fadeviz.storage.check import check_run, repair_run
from fadeviz.storage.info import RunInfo
from fadeviz.storage.schedule import parse_schedule, parse_steps
from fadeviz.storage.snapshots import KINDS, SnapshotStore, read_metrics
from fadeviz.sweep import parse_seeds, read_plan
from render_runs import make_run


def counts(quick, many):
    """A test with a few inputs, and with many as a slow one."""
    return pytest.mark.parametrize(
        "count", [pytest.param(quick, id="quick"), pytest.param(many, id="many", marks=pytest.mark.slow)]
    )


def try_all(count, strategy, check):
    """Call ``check`` with so many inputs; one that takes longer than a minute is a hang."""
    done = 0

    @settings(
        max_examples=count, derandomize=True, deadline=60_000, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def run(value):
        nonlocal done
        done += 1
        faulthandler.dump_traceback_later(120, exit=True)
        try:
            check(value)
        finally:
            faulthandler.cancel_dump_traceback_later()

    run()
    assert done >= min(count, 40)


def tried(function, *args):
    """What a function returns, or None where it refuses in one line."""
    try:
        return function(*args)
    except FadevizError as error:
        refused = str(error)
    assert refused.strip()
    assert "\n" not in refused
    return None


# --- what is put in the place of what belongs there -----------------------------------------------------------------

TEXTS = [
    "",
    " ",
    "\x00",
    "\x1b[2J",
    "\n",
    "../../x",
    "/etc/passwd",
    "ü馬🐎",
    "\ud800",
    "nan",
    "NaN",
    "1e999",
    "0",
    "-1",
    "x" * 400,
    "a:b@c,d=e",
    "<script>",
    "fade",
    "feature",
    "decoder.3.upsample/0/feature",
    "finished",
    "%s{kind}",
]
NUMBERS = [
    0,
    1,
    -1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
changes = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["replace", "delete", "double", "wrap", "rename"]), values),
    min_size=1,
    max_size=3,
)


def places(tree):
    """Every (container, key) of a tree of dicts and lists."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def changed(tree, steps):
    tree = copy.deepcopy(tree)
    for where, how, value in steps:
        found = list(places(tree))
        if not found:
            break
        holder, key = found[where % len(found)]
        if how == "replace":
            holder[key] = value
        elif how == "delete":
            del holder[key]
        elif how == "wrap":
            holder[key] = [holder[key]]
        elif isinstance(holder, dict):
            holder[str(value)[:40] if how == "rename" else f"{key}_"] = (
                holder.pop(key) if how == "rename" else holder[key]
            )
        else:
            holder.append(holder[key])
    return tree


harms = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "insert", "drop", "zero", "repeat"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=4,
)


def harmed(data, steps):
    for how, share, more in steps:
        place = min(int(share * len(data)), max(0, len(data) - 1))
        if how == "cut":
            data = data[:place]
        elif how == "flip" and data:
            data = data[:place] + bytes([data[place] ^ (more[0] or 1)]) + data[place + 1 :]
        elif how == "insert":
            data = data[:place] + more + data[place:]
        elif how == "drop":
            data = data[:place] + data[place + len(more) :]
        elif how == "zero":
            data = data[:place] + b"\0" * len(more) + data[place + len(more) :]
        elif how == "repeat":
            data = data[:place] + data[place : place + 50] * 3 + data[place + 50 :]
    return data


def as_json(tree):
    return json.dumps(tree).encode("utf-8", "surrogatepass")


# --- texts ----------------------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-3, 400).map(str), st.sampled_from(["", "1e3", "１", "9" * 12, "9" * 30, "0x10", "-0", " 7 ", "1_0"])
)
parts = st.one_of(
    numbers,
    st.lists(numbers, min_size=1, max_size=5).map(":".join),
    st.lists(numbers, max_size=5).map(lambda fields: ":".join(["log", *fields])),
    st.text(max_size=6),
)
schedules = st.one_of(st.text(max_size=30), st.lists(parts, max_size=5).map(",".join))


@counts(300, 4000)
def test_schedules(count):
    def check(value):
        text, last = value
        steps = tried(parse_steps, text, last)
        if steps is not None:
            assert steps == sorted(set(steps))
            assert steps[0] >= 0
            assert last is None or steps[-1] <= last
            assert list(tried(parse_schedule, text, last)) == sorted({0, *steps})
        seeds = tried(parse_seeds, text)
        assert seeds is None or len(set(seeds)) == len(seeds) > 0

    try_all(count, st.tuples(schedules, st.none() | st.integers(0, 10**13)), check)


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    run = make_run(tmp_path / "run", size=(6, 8), steps=(0, 10, 20), channels=3)
    store = SnapshotStore(run.path, run.run_id)
    info = {
        **run.info.to_dict(),
        "schedule": [0, 10, 20],
        "result": {"miou": 0.5},
        "seconds": {"training": 1.5},
        "parameters": 7,
    }
    info |= {
        "data": {"name": "drawn", "notes": ["none"]},
        "versions": {"torch": "2"},
        "kinds": ["feature"],
        "device": "cpu",
    }
    store.write_info(RunInfo.from_dict(info))
    for step in range(1, 21):
        store.append_metrics({"step": step, "loss": 1 / step, "lr": 0.1, **({"miou": 0.5} if step % 5 == 0 else {})})
    return run.path


def use(folder):
    """All that a run is asked, but for drawing."""
    tried(read_config, folder)
    tried(check_run, folder)
    run = tried(open_run, folder)
    if run is None:
        return
    for ask in (
        lambda: (run.name, run.title, repr(run), run.run_id, run.broken),
        lambda: run.steps,
        lambda: run.layers,
        lambda: run.observation,
        run.metrics,
        *(lambda kind=kind: run.default_layer(kind) for kind in KINDS),
        *(lambda kind=kind: np.asarray(run.maps(kind=kind)) for kind in ("feature", "channels", "gate")),
        lambda: np.asarray(run.maps(image=1)),
    ):
        tried(ask)
    obey(["info", str(folder)])


def obey(args):
    """A command does what it is told or says why not: exit code 0, 1 or 2, and no traceback."""
    result = CliRunner().invoke(main, args)
    assert result.exception is None or isinstance(result.exception, SystemExit), (args, result.exception)
    assert result.exit_code in (0, 1, 2), (args, result.output)
    assert not set(result.output) & set("\x1b\x00"), args
    return result


@counts(60, 1500)
def test_run_json_with_something_else_in_it(count, run_folder):
    whole = json.loads((run_folder / "run.json").read_text())

    def check(steps):
        (run_folder / "run.json").write_bytes(as_json(changed(whole, steps)))
        use(run_folder)

    try_all(count, changes, check)


@counts(60, 1500)
def test_run_json_with_damaged_bytes(count, run_folder):
    whole = (run_folder / "run.json").read_bytes()

    def check(steps):
        data = harmed(whole, steps)
        (run_folder / "run.json").write_bytes(data)
        use(run_folder)
        if data != whole:
            faults = tried(check_run, run_folder)
            assert faults is None or faults or json.loads(data) == json.loads(whole)

    try_all(count, harms, check)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        '{"format": 1e999}',
        '{"format": NaN, "run_id": "x"}',
        "null",
        "\ufeff{}",
        "",
    ],
    ids=lambda text: text[:10],
)
@pytest.mark.parametrize("file", ["run.json", "metrics.jsonl", "manifest.json"])
def test_absurd_json(run_folder, file, text):
    (run_folder / file).write_text(text)
    use(run_folder)
    tried(read_plan, run_folder)


def parted(file):
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def parted_or_none(file):
    try:
        return parted(file)
    except (ValueError, struct.error):
        return None


def joined(header, body):
    text = as_json(header)
    return struct.pack("<Q", len(text)) + text + body


@counts(60, 1500)
@pytest.mark.parametrize("name", ["snapshots/step_000010.safetensors", "observation.safetensors"])
def test_maps_with_another_header(count, run_folder, name):
    header, body = parted(run_folder / name)

    def check(steps):
        (run_folder / name).write_bytes(joined(changed(header, steps), body))
        use(run_folder)

    try_all(count, changes, check)


@counts(60, 800)
@pytest.mark.parametrize("name", ["snapshots/step_000000.safetensors", "observation.safetensors"])
def test_maps_with_damaged_bytes(count, run_folder, name):
    whole = (run_folder / name).read_bytes()
    parts = parted_or_none(run_folder / name)

    def check(steps):
        data = harmed(whole, steps)
        (run_folder / name).write_bytes(data)
        use(run_folder)
        now = parted_or_none(run_folder / name)
        if now is None or now[1] != parts[1]:  # the header has no checksum of its own
            assert name in [fault.file for fault in check_run(run_folder)]

    try_all(count, harms, check)


@counts(60, 700)
def test_metrics(count, run_folder):
    file = run_folder / "metrics.jsonl"
    whole = file.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]

    def check(value):
        steps, damage = value
        data = b"\n".join(as_json(line) for line in changed(lines, steps))
        file.write_bytes(harmed(data, damage) if damage else data)
        use(run_folder)
        read_metrics(file)
        repair_run(run_folder)
        assert "metrics.jsonl" not in [fault.file for fault in check_run(run_folder)]

    try_all(count, st.tuples(changes, st.just([]) | harms), check)


@counts(12, 250)
def test_commands_on_a_run_of_a_stranger(count, run_folder, tmp_path):
    """Drawn and measured as well, which takes longer."""
    kept = {name: (run_folder / name).read_bytes() for name in ("run.json", "metrics.jsonl", "observation.safetensors")}
    told = json.loads(kept["run.json"])
    lines = [json.loads(line) for line in kept["metrics.jsonl"].splitlines()]
    header, body = parted(run_folder / "observation.safetensors")
    commands = [
        ("grid", "a.png"),
        ("grid", "a.svg"),
        ("animate", "a.gif"),
        ("report", "a.html"),
        ("plot", "a.png"),
        ("analyze", None),
    ]

    def check(value):
        steps, which, (command, output) = value
        for name, data in kept.items():
            (run_folder / name).write_bytes(data)
        if which == "run.json":
            (run_folder / which).write_bytes(as_json(changed(told, steps)))
        elif which == "metrics.jsonl":
            (run_folder / which).write_bytes(b"\n".join(as_json(line) for line in changed(lines, steps)))
        else:
            (run_folder / which).write_bytes(joined(changed(header, steps), body))
        more = ["-o", str(tmp_path / output)] if output else []
        if command == "plot":
            more += ["--kind", "quality"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # letters that no font has
            obey([command, str(run_folder), *more])

    try_all(count, st.tuples(changes, st.sampled_from(sorted(kept)), st.sampled_from(commands)), check)


@counts(60, 1000)
def test_manifests(count, tmp_path):
    run = {
        "name": "fade-seed0",
        "folder": "fade-seed0",
        "operator": "fade",
        "seed": 0,
        "status": "running",
        "settings": {"upsampler": "fade", "labels": "true", "seed": 0},
    }
    other = {**run, "name": "carafe-seed1", "operator": "carafe:init=xavier@shuffled", "seed": 1}
    told = {"format": 1, "settings": {"size": 64, "steps": 5, "lr": 0.1, "lr_drops": [0.5]}, "runs": [run, other]}

    def check(value):
        steps, damage = value
        data = as_json(changed(told, steps))
        (tmp_path / "manifest.json").write_bytes(harmed(data, damage) if damage else data)
        plan = tried(read_plan, tmp_path)
        for trial in plan.trials if plan else ():
            tried(plan.config, trial)
            assert "/" not in trial.name
            assert (tmp_path / trial.name).parent == tmp_path

    try_all(count, st.tuples(changes, st.just([]) | harms), check)


# --- images -------------------------------------------------------------------------------------------------------


def image_bytes(mode, size, form):
    data = io.BytesIO()
    Image.new(mode, size, 1 if mode in ("1", "L", "P", "I", "I;16") else None).save(data, form)
    return data.getvalue()


def claims(width, height):
    """A small PNG that says it is of this size."""
    data = image_bytes("L", (4, 4), "PNG")
    ihdr = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + data[33:]


ODD_PICTURES = [
    b"",
    b"text",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    claims(1, 1 << 30),
    claims(1 << 15, 1 << 15),
    claims(7000, 7000),
    claims(0, 4),
    *(image_bytes(mode, (8, 6), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(image_bytes(mode, (8, 6), "JPEG") for mode in ("L", "RGB", "CMYK")),
    image_bytes("F", (8, 6), "TIFF"),
    image_bytes("RGB", (1, 900), "PNG"),
    image_bytes("L", (1, 1), "BMP"),
    image_bytes("P", (3, 3), "GIF"),
]
NAMES = [
    ".hidden.jpg",
    "horse0.JPG",
    "horse0.png",
    "ü馬.jpg",
    "a\nb.jpg",
    "x" * 200 + ".png",
    "-rf.jpg",
    "horse1.txt",
    "%s.jpg",
    "\x1b[2J.png",
]


@counts(60, 700)
@pytest.mark.parametrize("layout", [("rgb", "figure_ground", "jpg"), ("horse", "mask", "png")])
def test_folders_of_pictures(count, tmp_path, layout):
    images, masks, ending = layout
    rng = np.random.default_rng(0)
    whole = {}
    for index in range(3):
        mask = np.zeros((12, 16), np.uint8)
        mask[3:9, 3 + index : 12] = 255
        for folder, pixels in ((images, rng.integers(0, 255, (12, 16, 3), np.uint8)), (masks, mask)):
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "JPEG" if ending == "jpg" else "PNG")
            whole[f"{folder}/horse{index}.{ending}"] = data.getvalue()
    files = sorted(whole)
    mischief = st.one_of(
        st.tuples(st.just("harm"), st.sampled_from(files), harms),
        st.tuples(st.just("put"), st.sampled_from(files), st.sampled_from(ODD_PICTURES)),
        st.tuples(st.just("rename"), st.sampled_from(files), st.sampled_from(NAMES)),
        st.tuples(st.just("remove"), st.sampled_from(files), st.none()),
        st.tuples(st.just("folder"), st.sampled_from(files), st.none()),
        st.tuples(st.sampled_from(["loop", "pipe", "device", "terabyte"]), st.sampled_from(files), st.none()),
        st.tuples(
            st.just("add"),
            st.sampled_from([images, masks]),
            st.tuples(st.sampled_from(NAMES), st.sampled_from(ODD_PICTURES)),
        ),
    )

    def check(steps):
        root = tmp_path / "set"
        shutil.rmtree(root, ignore_errors=True)
        for name, data in whole.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        for how, name, more in steps:
            path = root / name
            if how == "add":
                (path / more[0]).write_bytes(more[1])
                continue
            if not path.is_file():
                continue
            if how == "rename":
                path.rename(path.with_name(more))
            elif how in ("harm", "put"):
                path.write_bytes(harmed(path.read_bytes(), more) if how == "harm" else more)
            else:
                path.unlink()
                if how == "folder":
                    path.mkdir()
                elif how == "loop":
                    path.symlink_to(path)
                elif how == "device":
                    path.symlink_to("/dev/zero")
                elif how == "pipe":
                    os.mkfifo(path)
                elif how == "terabyte":
                    with path.open("wb") as file:
                        file.truncate(2**40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files
            problems = check_weizmann(root)
            splits = tried(load_weizmann, str(root), 32)
            for part in (splits.train, splits.test) if splits else ():
                for index in range(part.count):
                    sample = tried(part.__getitem__, index)
                    if not problems:
                        assert sample.image.shape == (32, 32, 3)
        assert all("\n" not in problem for problem in problems)

    try_all(count, st.lists(mischief, min_size=1, max_size=4), check)


# --- the command line -----------------------------------------------------------------------------------------------

HOSTILE = [
    "",
    "0",
    "-1",
    "1",
    "3",
    "7.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 20,
    "abc",
    "../escaped",
    "../escaped.png",
    "../escaped.html",
    "out",
    "out.png",
    "out.svg",
    "out.gif",
    "out.html",
    "out/{kind}.png",
    "run",
    "/dev/null",
    "/dev/null/x.png",
    "a\nb",
    "{kind}",
    "%s",
    "\x1b[2J",
    ":",
    ",",
    ",,,",
    "0:",
    "log:1:2",
    "log:1:100:5",
    "0:5",
    "[",
    "*",
    "**",
    "ü",
    "x" * 300,
    "fade:",
    "fade:gate=",
    "fade@",
    "fade@shuffled",
    "carafe:group=0",
    "carafe:kernel_size=-3",
    "pixel_shuffle:icnr=maybe",
    "segnet",
    "feature",
    "gate",
    "all",
    "5,95",
    "99,1",
    "http://127.0.0.1:1/x.zip",
    "file:///etc/passwd",
    "0" * 64,
    "frame",
    "shared",
    "gray",
    "magma",
    "true",
    "cpu",
    "cuda",
    "fp16",
    "decoder.3.upsample",
    "-",
    "--",
    "-h",
]


def commands(group=main, path=()):
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


class _Enough(Exception):
    """Raised in place of a training."""


ALL = list(commands())


@st.composite
def command_lines(draw):
    path, command = draw(st.sampled_from(ALL))
    args = list(path)
    if path[0] in ("record", "sweep", "demo"):
        args += ["--steps", "2"]
    if path[0] in ("record", "sweep"):
        args += ["--size", "32", "--width", "0.125", "--observe", "1", "--snapshots", "1"]
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            amount = draw(st.integers(0, 2)) if parameter.nargs != 1 else 1
            args += [draw(st.sampled_from(["run", "run", *HOSTILE])) for _ in range(amount)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    wanted = [p for p in options if p.required or draw(st.integers(0, 9)) < 2]
    for parameter in wanted:
        args.append(parameter.opts[-1])
        if not parameter.is_flag:
            values = (
                ["out.png", "out.gif", "out.html", "out", *HOSTILE] if parameter.name in ("output", "out") else HOSTILE
            )
            args.append(draw(st.sampled_from(values)))
    return args


@counts(60, 1500)
def test_command_lines(count, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthetic, "TEST_DRAWINGS", 2)
    monkeypatch.setattr(fadeviz.data.download, "WAIT_SECONDS", 0.0)

    def no_training(*args, **options):
        raise FadevizError("a training would begin here")

    monkeypatch.setattr("fadeviz.experiment.training_run.fit", no_training)
    monkeypatch.setattr("fadeviz.benchmark.bench.measure", no_training)
    monkeypatch.setattr("fadeviz.run_sweep", no_training)
    null = Path("/dev/null").stat().st_mode
    work = tmp_path / "work"

    def check(args):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(run_folder, work / "inner" / "run")
        monkeypatch.chdir(work / "inner")
        result = CliRunner().invoke(main, args)
        assert result.exception is None or isinstance(result.exception, SystemExit), (args, result.exception)
        assert result.exit_code in (0, 1, 2), (args, result.output)
        outside = {file.name for file in work.iterdir()} - {"inner"}
        assert not outside or "../escaped" in " ".join(args), args  # only where it was told to
        assert Path("/dev/null").stat().st_mode == null
        assert sorted(file.name for file in tmp_path.iterdir()) == ["run", "work"]
        partial = [file for file in work.rglob(".*") if "partial" in file.name]
        assert not partial, args

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try_all(count, command_lines(), check)
