"""Golden pictures: small figures that were looked at, which those drawn today must equal but for rounding.

``pytest --update-golden`` renews them; look at what changed before it is committed.
"""

from pathlib import Path

import numpy as np
from PIL import Image

GOLDEN = Path(__file__).parent / "golden"
FAILURES = Path(__file__).parent / "failures"
"""Where the picture drawn today and the difference are kept if they are not equal; ignored by git."""

LEVELS = 2
"""Largest difference of a pixel, of 255 levels, that is rounding."""
SHARE = 0.002
"""Largest share of pixels that may differ by more: other versions of a library round borders of letters otherwise."""


def check_picture(drawn: Path, name: str, *, update: bool, golden: Path = GOLDEN, failures: Path = FAILURES) -> None:
    """Compare a picture with the golden one of that name, such as ``plots/curves``; or replace that."""
    kept = golden / f"{name}.png"
    if update:
        kept.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_pixels(drawn).astype(np.uint8)).save(kept, optimize=True)
        return
    assert kept.exists(), f"there is no golden picture {kept}. Draw it: pytest --update-golden"
    before, now = (_pixels(file) for file in (kept, drawn))
    if before.shape == now.shape:
        difference = np.abs(before - now).max(-1)
        if (difference > LEVELS).mean() <= SHARE:
            return
        told = f"{(difference > LEVELS).mean():.2%} of the pixels differ"
    else:
        difference, told = (
            np.zeros((1, 1)),
            f"it is {now.shape[1]}x{now.shape[0]}, not {before.shape[1]}x{before.shape[0]}",
        )
    failures.mkdir(exist_ok=True)
    place = failures / name.replace("/", "_")
    drawn_now, differs = place.with_suffix(".drawn.png"), place.with_suffix(".difference.png")
    Image.fromarray(now.astype(np.uint8)).save(drawn_now)
    Image.fromarray(np.minimum(difference * 4, 255).astype(np.uint8)).save(differs)
    raise AssertionError(
        f"{name} is not the golden picture: {told}. Look at {drawn_now} and {differs}; if it is meant, renew it: "
        "pytest --update-golden"
    )


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)
