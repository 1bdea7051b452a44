"""Where the large shared files are, and what to say where they are not; one thread, as the networks here are tiny."""

import functools
import gc
import os
from pathlib import Path

import pytest

# Before torch is imported: threads that wait for each other cost more than these small networks do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a test measures is measured there and then; test_measured.py lifts this.
os.environ["FADEVIZ_MEASURED"] = "0"

import torch

from fadeviz.data.synthetic import dataset
from golden_pictures import check_picture

# Before anything imports triton, as torch's compiler does: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="Draw the golden pictures in tests/golden anew.")


@pytest.fixture
def golden(request):
    """Compares a picture with the golden one of a name; see golden_pictures.py."""
    return functools.partial(check_picture, update=request.config.getoption("--update-golden"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Where there is a GPU, the Triton kernels run on it, not in the interpreter: `pytest -m gpu` takes them along."""
    if torch.cuda.is_available():
        for item in items:
            if item.path.name == "test_triton.py":
                item.add_marker(pytest.mark.gpu)


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder with weights and data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared files (weights, data) in {SHARED}")
    return SHARED


@pytest.fixture(autouse=True, scope="module")
def _collect_all():
    """Give back what the tests of a module left, and look at nothing of before its tests again and again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def _draw_once(request):
    """Draw a small synthetic horse once, not in every run anew; except where the drawing itself is tested."""
    if "synthetic" in request.module.__name__:
        yield
        return
    drawn, draw = {}, dataset._draw_sample

    def remember(dice, height, width):
        key = dice._entropy, height, width
        if key not in drawn:
            image, alpha = draw(dice, height, width)
            if height * width > 64 * 64:
                return image, alpha
            drawn[key] = image, alpha
        return tuple(part.copy() for part in drawn[key])

    dataset._draw_sample = remember
    yield
    dataset._draw_sample = draw


@pytest.fixture(autouse=True)
def _collect():
    """Find a file, a socket or a process that a test left open in that very test, and not in a neighbour of it."""
    yield
    gc.collect()
    gc.freeze()  # what survived need not be gone through after every test that follows


def pytest_sessionfinish():
    """Let the interpreter end as it does without the above: what it does not give back, libraries report as leaked."""
    gc.unfreeze()
