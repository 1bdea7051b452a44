"""A network, a data set, an operator and an export target of another package work wherever fadeviz's own do."""

import csv
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from fadeviz_cli.main import main
from PIL import Image

from fadeviz import FadevizError, RunConfig, export_run, open_run, plan_sweep, plugins
from fadeviz.benchmark import parts
from fadeviz.benchmark.plan import StepCase
from fadeviz.data.sets import DATA, all_data, check_data, find_data
from fadeviz.export import TARGETS, all_targets, find_target
from fadeviz.models import NETWORKS, all_networks, build_network, find_network, parse_network
from fadeviz.models.costs import operator_cost
from fadeviz.upsamplers import UPSAMPLERS, all_upsamplers, build_upsampler, find_upsampler, parse_upsampler

OPERATOR = """
from torch import nn
from torch.nn import functional as F

from fadeviz.upsamplers import Upsampler, UpsamplerEntry


class Smooth(Upsampler):
    \"\"\"Nearest-neighbour interpolation, then a depth-wise convolution.\"\"\"

    def __init__(self, in_channels: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.smooth = nn.Conv2d(in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels)

    def forward(self, x, skip=None):
        return self.smooth(F.interpolate(x, scale_factor=2))

    def multiply_adds(self, height, width):
        return 4 * height * width * self.smooth.in_channels * self.kernel_size**2


ENTRY = UpsamplerEntry(Smooth, "Smooth nearest", year=2026, paper="Outside et al.")
"""
NETWORK = """
from torch import nn

from fadeviz.models import Network, Recipe, Site
from fadeviz.models.recipes import sgd, step_decay
from fadeviz.upsamplers import Skip, build_upsampler, parse_upsampler


class TinyNet(Network):
    title = "TinyNet"
    task = "segmentation"
    layers = "up"
    figure_layer = "up"
    stride = 2
    recipe = Recipe(0.05, 0.0, (0.5,), sgd, step_decay)
    reference_size = 32
    sites = (Site(16, 16),)

    def __init__(self, upsampler="bilinear", classes=2, width=1.0, *, depth: int = 1):
        super().__init__()
        channels = max(8, round(16 * width))
        convs = [nn.Conv2d(3 if i == 0 else channels, channels, 3, padding=1) for i in range(depth)]
        self.encoder = nn.Sequential(*convs, nn.ReLU())
        self.head = nn.Conv2d(channels, classes, 1)
        name, options = parse_upsampler(upsampler)
        self.up = build_upsampler(name, channels, **options)

    def forward(self, images):
        feature = self.encoder(images)
        x, indices = self.up.pool(feature)
        return self.head(self.up(x, Skip(feature, indices)))
"""
DATASET = """
import numpy as np

from fadeviz.data import Sample, Splits
from fadeviz.data.sets import DatasetEntry


class Squares:
    def __init__(self, size, seed, count):
        self.size, self.seed, self.count = size, seed, count

    def __getitem__(self, index):
        if index < 0 or (self.count is not None and index >= self.count):
            raise IndexError(index)
        random = np.random.default_rng([self.seed, index])
        mask = np.zeros((self.size, self.size), np.uint8)
        top, left = random.integers(2, self.size // 3, 2)
        mask[top : top + self.size // 2, left : left + self.size // 2] = 1 + index % 2
        image = random.integers(0, 100, (self.size, self.size, 3), np.uint8)
        image[mask > 0] += 100
        return Sample(f"square-{self.seed}-{index}", image, mask)


def load(options):
    info = {"name": "squares", "classes": ["ground", "even", "odd"]}
    return Splits(Squares(options.size, options.seed, None), Squares(options.size, 10**6, 4), info, classes=3)


def load_folder(options):
    return Splits(Squares(options.size, options.seed, 3), Squares(options.size, 10**6, 2), {"name": "boxes"})


SQUARES = DatasetEntry(load)
BOXES = DatasetEntry(load_folder, needs_folder=True, folders=("boxes-*",))
"""
TARGET = """
import csv

from fadeviz.export import ExportTarget
from fadeviz.export.places import new_file


def write_means(selection, out, *, overwrite=False):
    rows = [
        [part.layer, part.kind, step, float(value.mean())]
        for part in selection.parts
        for step, value in zip(part.maps.steps, part.each_step())
    ]
    with new_file(out, ".csv", lambda path: True, overwrite=overwrite) as partial:
        with partial.open("w", newline="") as file:
            csv.writer(file).writerows([["layer", "kind", "step", "mean"], *rows])
    return selection.notes


ENTRY = ExportTarget(write_means, "one .csv file: the mean of every map")
"""
GROUPS = {
    "fadeviz.networks": {"tinynet": "outside.network:TinyNet"},
    "fadeviz.datasets": {"squares": "outside.dataset:SQUARES", "boxes": "outside.dataset:BOXES"},
    "fadeviz.upsamplers": {"smooth": "outside.operator:ENTRY"},
    "fadeviz.exporters": {"means": "outside.target:ENTRY"},
}


def add_distribution(folder, name, groups, version="1.0", **modules):
    """What pip leaves of an installed package: its modules, and its metadata beside them."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for module, text in modules.items():
        (package / f"{module}.py").write_text(textwrap.dedent(text))
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder that holds a package with one of each."""
    folder = tmp_path_factory.mktemp("site-packages")
    add_distribution(folder, "outside", GROUPS, operator=OPERATOR, network=NETWORK, dataset=DATASET, target=TARGET)
    return folder


@pytest.fixture
def installed(outside, monkeypatch):
    """The package in this process."""
    monkeypatch.syspath_prepend(outside)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Add a package to this process."""
    added = []

    def add(name, *args, **kwargs):
        add_distribution(tmp_path / "site", name, *args, **kwargs)
        added.append(name)
        monkeypatch.syspath_prepend(tmp_path / "site")

    yield add
    for name in [name for name in sys.modules if name.partition(".")[0] in added]:
        del sys.modules[name]


def fadeviz(outside, *args, code=0):
    """The command line in a process of its own, where the package is installed."""
    path = os.pathsep.join([str(outside), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fadeviz_cli.main", *map(str, args)],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


TRAINING = (
    *("--network", "tinynet:depth=2", "--data", "squares", "--size", 32, "--steps", 4, "--snapshots", "2:4:2"),
    *("--batch-size", 2, "--observe", 2, "--device", "cpu"),
)


@pytest.fixture(scope="module")
def recorded(outside, tmp_path_factory):
    """A run of the outside network with the outside operator on the outside data set."""
    out = tmp_path_factory.mktemp("runs") / "run"
    fadeviz(outside, "record", "--upsampler", "smooth:kernel_size=5", *TRAINING, "--out", out)
    return out


class TestWholeRuns:
    def test_a_recorded_run(self, recorded):
        run = open_run(recorded)  # reading it does not need the package
        stored = json.loads((recorded / "run.json").read_text())
        assert (stored["title"], stored["network_title"], stored["classes"]) == ("Smooth nearest", "TinyNet", 3)
        assert stored["config"]["lr"] == 0.05
        assert stored["config"]["layers"] == "up"
        assert stored["data"]["name"] == "squares"
        assert run.steps == (0, 2, 4)
        assert run.maps("up").shape == (3, 2, 32, 32)
        assert "Smooth nearest" in run.title

    def test_it_resumes_and_predicts(self, outside, recorded, tmp_path):
        fadeviz(outside, "record", "--resume", "--upsampler", "smooth:kernel_size=5", *TRAINING, "--out", recorded)
        image = tmp_path / "a.png"
        Image.new("RGB", (41, 33), (90, 90, 90)).save(image)
        fadeviz(outside, "predict", recorded, image, "-o", tmp_path / "masks")
        with Image.open(tmp_path / "masks" / "a_mask.png") as mask:
            assert mask.size == (41, 33)
        fadeviz(outside, "compare", recorded, "-o", tmp_path / "panel.png", "--test", 1)
        assert (tmp_path / "panel.png").exists()

    def test_it_is_exported_by_the_outside_target(self, outside, recorded, tmp_path):
        out = tmp_path / "means.csv"
        fadeviz(outside, "export", recorded, "--to", "means", "-o", out, "--kind", "feature")
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["layer"], row["step"]) for row in rows] == [("up", "0"), ("up", "2"), ("up", "4")]
        assert float(rows[0]["mean"]) == pytest.approx(float(open_run(recorded).maps("up")[0].mean()), rel=1e-6)
        refused = fadeviz(outside, "export", recorded, "--to", "means", "-o", tmp_path / "b.csv", "--normalize", "run",
                          code=1)  # fmt: skip
        assert "means writes maps as recorded and draws nothing" in refused.stderr

    def test_a_sweep_trains_it_in_worker_processes(self, outside, tmp_path):
        out = tmp_path / "sweep"
        fadeviz(
            outside, "sweep", "--upsamplers", "smooth,nearest", "--seeds", "0", *TRAINING, "--jobs", 2, "--out", out
        )
        assert open_run(out / "smooth-seed0").steps == open_run(out / "nearest-seed0").steps == (0, 2, 4)

    def test_commands_list_it(self, outside):
        table = fadeviz(outside, "upsamplers", "smooth", "carafe", "--network", "tinynet").stdout
        assert "TinyNet 32x32" in table
        assert "Outside et al. 2026" in table
        assert f"{16 * 10:,}" in table  # 9 weights and a bias for each of 16 channels
        everything = json.loads(fadeviz(outside, "upsamplers", "--json").stdout)
        assert [row["name"] for row in everything] == [*UPSAMPLERS, "smooth"]
        assert everything[-1]["tinynet"]["parameters"] == 160
        assert "up" in fadeviz(outside, "layers", "tinynet", "--upsampler", "smooth").stdout
        for command, name in (("record", "smooth"), ("record", "tinynet"), ("record", "squares"), ("sweep", "smooth")):
            shown = " ".join(fadeviz(outside, command, "--help").stdout.split())
            assert f"{name}." in shown.replace("boxes, squares", "squares")
        assert "means        one .csv file: the mean of every map" in fadeviz(outside, "export", "--help").stdout


@pytest.mark.usefixtures("installed")
class TestTables:
    def test_names_are_found_and_listed(self):
        assert list(all_upsamplers()) == [*UPSAMPLERS, "smooth"]
        assert list(all_networks()) == [*NETWORKS, "tinynet"]
        assert list(all_data("segmentation")) == [*DATA["segmentation"], "boxes", "squares"]
        assert list(all_data("matting")) == list(DATA["matting"])
        assert list(all_targets()) == [*TARGETS, "means"]
        assert find_upsampler("smooth") is all_upsamplers()["smooth"]
        assert find_network("tinynet").title == "TinyNet"
        assert find_target("means").draws is False
        assert find_data("segmentation", "squares").task == "segmentation"

    def test_options_are_checked_as_for_our_own(self):
        assert parse_upsampler("smooth:kernel_size=5") == ("smooth", {"kernel_size": 5})
        assert build_upsampler("smooth", 4, kernel_size=5).kernel_size == 5
        with pytest.raises(FadevizError, match="no option of smooth 'kernel'. Nearest: 'kernel_size'"):
            build_upsampler("smooth", 4, kernel=5)
        with pytest.raises(FadevizError, match="no option of tinynet 'width'"):
            parse_network("tinynet:width=3")
        assert build_network("tinynet", "smooth", classes=5).head.out_channels == 5

    def test_our_networks_take_the_operator(self):
        assert type(build_network("segnet", "smooth", width=1 / 16).decoder[0].upsample).__name__ == "Smooth"
        assert operator_cost("smooth", "segnet").parameters == 10 * (512 + 512 + 256 + 128 + 64)
        assert operator_cost("fade", "tinynet").parameters > 0

    def test_settings_take_it(self):
        config = RunConfig(upsampler="smooth", network="tinynet", data="squares", steps=2)
        assert (config.lr, config.lr_drops, config.layers) == (0.05, (0.5,), "up")
        with pytest.raises(FadevizError, match="size is 33; it must be divisible by 2"):
            RunConfig(network="tinynet", size=33)
        with pytest.raises(FadevizError, match="data squares is for segmentation, but the network is for matting"):
            RunConfig(network="matting", data="squares")
        with pytest.raises(FadevizError, match="data boxes needs its folder"):
            RunConfig(data="boxes")
        with pytest.raises(FadevizError, match="TinyNet does not load weights"):
            build_network("tinynet").load_encoder("imagenet")
        plan = plan_sweep(["smooth:kernel_size=5", "smooth@shuffled"], [0], config)
        assert [trial.name for trial in plan.trials] == ["smooth-kernel_size=5-seed0", "smooth-shuffled-seed0"]

    def test_a_benchmark_of_every_operator_has_it(self, monkeypatch):
        monkeypatch.setattr(parts, "_steps", lambda setting, case, names: names)
        plan = SimpleNamespace(steps=[StepCase(0.25, 64, every=True)])
        (names,) = parts.measure_step(SimpleNamespace(plan=plan, upsamplers=(), cuda=False))
        assert names == (*UPSAMPLERS, "smooth")

    def test_its_folder_is_recognised(self, tmp_path):
        (tmp_path / "boxes-1").mkdir()
        name, problems, splits = check_data(tmp_path)
        assert (name, problems, splits.train.count) == ("boxes", [], 3)
        result = CliRunner().invoke(main, ["data", "check", str(tmp_path)])
        assert (result.exit_code, result.stdout) == (0, f"{tmp_path}: boxes, to train on 3, to test on 2\n")

    def test_near_names_are_hints(self):
        with pytest.raises(FadevizError, match="no upsampler 'smoth'. Nearest: 'smooth'"):
            find_upsampler("smoth")
        with pytest.raises(FadevizError, match="no data set 'sqares'. Nearest: 'squares'"):
            RunConfig(data="sqares")


class TestFaults:
    def test_names_of_our_own_need_no_look(self, monkeypatch):
        monkeypatch.setattr(plugins, "entry_points_of", None)
        RunConfig(upsampler="carafe:kernel_size=3")
        find_target("npz")
        build_network("segnet", "fade", width=1 / 16)

    def test_a_package_that_cannot_be_imported(self, install):
        install("broken", {"fadeviz.upsamplers": {"bad": "broken.operator:ENTRY"}}, operator="import no_such_library")
        with pytest.raises(FadevizError) as error:
            RunConfig(upsampler="bad")
        assert str(error.value) == (
            "broken 1.0: entry point 'bad = broken.operator:ENTRY' of fadeviz.upsamplers cannot be loaded "
            "(ModuleNotFoundError: No module named 'no_such_library'). Repair or uninstall the package"
        )
        assert isinstance(error.value.__cause__, ModuleNotFoundError)
        with pytest.raises(FadevizError, match="broken 1.0: entry point 'bad"):  # a list does not leave it out
            all_upsamplers()
        RunConfig(upsampler="fade")
        result = CliRunner().invoke(main, ["upsamplers", "bad"])
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: broken 1.0: entry point 'bad")
        assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        ("group", "text", "look", "message"),
        [
            ("upsamplers", "ENTRY = 5", find_upsampler, "it is a int; a fadeviz.upsamplers.UpsamplerEntry is needed"),
            ("upsamplers", "", find_upsampler, r"cannot be loaded \(AttributeError: module 'wrong.entry' has no"),
            (
                "upsamplers",
                "from fadeviz.upsamplers import UpsamplerEntry\nENTRY = UpsamplerEntry(int, 'Int')",
                find_upsampler,
                "it does not build a fadeviz.upsamplers.Upsampler",
            ),
            ("networks", "ENTRY = dict", find_network, "it is dict; a subclass of fadeviz.models.Network is needed"),
            (
                "networks",
                "from fadeviz.models import Network\nclass ENTRY(Network):\n    title = 'T'\n    stride = 4",
                find_network,
                "it does not define task, layers, figure_layer, recipe. Define them on the class",
            ),
            (
                "datasets",
                "from fadeviz.data.sets import DatasetEntry\nENTRY = DatasetEntry(print, task='depth')",
                lambda name: find_data("segmentation", name),
                "it is for the task 'depth'; there are segmentation, matting",
            ),
            ("exporters", "ENTRY = print", find_target, "it is a builtin_function_or_method; a fadeviz.export.Export"),
        ],
    )
    def test_an_entry_that_is_something_else(self, install, group, text, look, message):
        install("wrong", {f"fadeviz.{group}": {"odd": "wrong.entry:ENTRY"}}, entry=text)
        with pytest.raises(FadevizError, match=message) as error:
            look("odd")
        assert str(error.value).startswith("wrong 1.0: entry point 'odd = wrong.entry:ENTRY' of fadeviz.")
        assert "\n" not in str(error.value)

    def test_two_packages_with_one_name(self, install):
        for name in ("first", "second"):
            install(name, {"fadeviz.upsamplers": {"smooth": f"{name}.operator:ENTRY"}}, operator=OPERATOR)
        with pytest.raises(FadevizError, match=r"'smooth' is offered by first 1.0 and second 1.0. Uninstall all but"):
            find_upsampler("smooth")
        with pytest.raises(FadevizError, match="first 1.0 and second 1.0"):
            all_upsamplers()

    def test_a_package_with_a_name_of_our_own(self, install):
        install("clash", {"fadeviz.upsamplers": {"fade": "clash.operator:ENTRY"}}, operator=OPERATOR)
        assert find_upsampler("fade") is UPSAMPLERS["fade"]
        with pytest.raises(
            FadevizError, match=r"clash 1.0: .*: fadeviz has its own upsampler 'fade'. Rename the entry"
        ):
            all_upsamplers()

    def test_a_name_that_cannot_be_written(self, install):
        install("odd", {"fadeviz.exporters": {"a,b": "odd.target:ENTRY"}}, target=TARGET)
        with pytest.raises(FadevizError, match="a name has letters, digits"):
            all_targets()

    def test_without_its_package_a_run_says_what_is_missing(self, recorded, tmp_path):
        result = CliRunner().invoke(main, ["predict", str(recorded), str(tmp_path), "-o", str(tmp_path / "out")])
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: no network 'tinynet'.")
        export_run(open_run(recorded), "npz", tmp_path / "a.npz")
        assert Path(tmp_path / "a.npz").exists()
