"""A network, a data set, an operator and an export target of another package work wherever fadeviz's own do.

The package is that of docs/extending.md.
"""

import csv
import json
import os
import re
import subprocess
import sys
import tomllib
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

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
MODULES = dict(re.findall(r"^```python\n# mylab/(\w+)\.py\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
"""The package of the documentation, by the names of its modules."""
GROUPS = tomllib.loads(re.search(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1])["project"]["entry-points"]
OPERATOR, TARGET = MODULES["operator"], MODULES["target"]


def add_distribution(folder, name, groups, version="1.0", **modules):
    """What pip leaves of an installed package: its modules, and its metadata beside them."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for module, text in modules.items():
        (package / f"{module}.py").write_text(text)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups.items()]
    (metadata / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder that holds a package with one of each."""
    folder = tmp_path_factory.mktemp("site-packages")
    add_distribution(folder, "mylab", GROUPS, **MODULES)
    return folder


@pytest.fixture
def installed(outside, monkeypatch):
    """The package in this process."""
    monkeypatch.syspath_prepend(outside)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
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

    @pytest.mark.slow
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

    @pytest.mark.slow
    def test_a_sweep_trains_it_in_worker_processes(self, outside, tmp_path):
        out = tmp_path / "sweep"
        fadeviz(
            outside, "sweep", "--upsamplers", "smooth,nearest", "--seeds", "0", *TRAINING, "--jobs", 2, "--out", out
        )
        assert open_run(out / "smooth-seed0").steps == open_run(out / "nearest-seed0").steps == (0, 2, 4)

    @pytest.mark.slow
    def test_commands_list_it(self, outside):
        table = fadeviz(outside, "upsamplers", "smooth", "carafe", "--network", "tinynet").stdout
        assert "TinyNet 32x32" in table
        assert "Outside et al. 2026" in table
        assert f"{16 * 10:,}" in table  # 9 weights and a bias for each of 16 channels
        everything = json.loads(fadeviz(outside, "upsamplers", "--json").stdout)
        assert [row["name"] for row in everything] == [*UPSAMPLERS, "smooth"]
        assert everything[-1]["tinynet"]["parameters"] == 160
        assert "up" in fadeviz(outside, "layers", "tinynet", "--upsampler", "smooth").stdout
        for command, names in (("record", ("smooth", "tinynet", "squares")), ("sweep", ("smooth",))):
            shown = " ".join(fadeviz(outside, command, "--help").stdout.split())
            for name in names:
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
        checked = check_data(tmp_path)
        assert (checked.data, checked.problems, checked.splits.train.count) == ("boxes", (), 3)
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
