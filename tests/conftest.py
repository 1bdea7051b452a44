"""Where the large shared files are, and what to say where they are not; one thread, as the networks here are tiny."""

import os
from pathlib import Path

import pytest

# Before torch is imported: threads that wait for each other cost more than these small networks do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# Before anything imports triton, as torch's compiler does: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder with weights and data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared files (weights, data) in {SHARED}")
    return SHARED
