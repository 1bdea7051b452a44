"""Where the large shared files are, and what to say where they are not."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder with oracles, weights and data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared files (oracles, weights, data) in {SHARED}")
    return SHARED
