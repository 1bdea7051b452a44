"""The front door: what a user calls is at hand after ``import fadeviz``, loads when it is used, and has its type."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fadeviz

ROOT = Path(__file__).resolve().parents[1]
NEEDS_TORCH = {
    "Predictor", "Recorder", "RunConfig", "View", "build_upsampler", "compare", "import_maps", "layers",
    "list_layers", "list_upsamplers", "plan_sweep", "predict", "record_checkpoints", "record_network_checkpoints",
    "replace_upsamplers", "run_bench",
    "run_demo", "run_sweep", "sweep_status", "train",
}  # fmt: skip


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def typed_names():
    """The names that ``if TYPE_CHECKING`` imports, each with the module it comes from."""
    tree = ast.parse(Path(fadeviz.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {name.name: node.module for node in block.body for name in node.names}


def test_names_that_load_are_those_that_are_typed():
    assert typed_names() == fadeviz._MODULE_OF
    assert set(fadeviz.__all__) == {*typed_names(), "__version__"}
    assert fadeviz.__all__ == sorted(fadeviz.__all__)


def test_tab_completion_shows_what_a_user_calls():
    assert python("import fadeviz; print(dir(fadeviz) == fadeviz.__all__)") == "True"


@pytest.mark.parametrize("name", fadeviz.__all__)
def test_every_name_is_there_and_documented(name):
    value = getattr(fadeviz, name)
    assert value.__doc__


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="module 'fadeviz' has no attribute 'opn_run'"):
        fadeviz.opn_run  # noqa: B018
    assert not hasattr(fadeviz, "__path_hooks__")


def test_no_name_hides_a_module():
    """``fadeviz.report`` is a package: a function of that name would be either, by what came first."""
    modules = {path.stem for path in Path(fadeviz.__file__).parent.iterdir()}
    assert not modules & {name for name in fadeviz.__all__ if name != "__version__"}


def test_importing_loads_nothing_large():
    large = ("torch", "numpy", "matplotlib", "PIL", "scipy", "fadeviz.experiment", "fadeviz.run")
    assert python(f"import sys, fadeviz; print([name for name in {large} if name in sys.modules])") == "[]"


def test_torch_is_loaded_by_those_names_alone_that_need_it():
    light = [name for name in fadeviz.__all__ if name not in NEEDS_TORCH]
    assert python(f"import sys\nfrom fadeviz import {', '.join(light)}\nprint('torch' in sys.modules)") == "False"


@pytest.mark.slow  # mypy reads all of torch first
def test_type_checkers_know_the_names(tmp_path):
    """mypy sees a function's signature through the front door, and a name that is not there."""
    pytest.importorskip("mypy")
    code = tmp_path / "snippet.py"
    code.write_text("import fadeviz\nreveal_type(fadeviz.open_run)\nreveal_type(fadeviz.Run)\nfadeviz.opn_run\n")
    options = [
        "--python-version",
        "3.11",
        "--follow-imports",
        "silent",
        "--no-incremental",
        "--cache-dir",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, "-m", "mypy", *options, str(code)], capture_output=True, text=True, cwd=ROOT)
    functions, run, missing, _ = done.stdout.splitlines()
    assert "-> fadeviz.run.Run" in functions
    assert "fadeviz.run.Run" in run
    assert 'Module has no attribute "opn_run"' in missing


def test_python_m_fadeviz_is_the_command_line():
    done = subprocess.run([sys.executable, "-m", "fadeviz", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fadeviz, version {fadeviz.__version__}\n"


def test_the_version_has_one_source():
    assert 'version = { attr = "fadeviz.version.__version__" }' in (ROOT / "pyproject.toml").read_text()
