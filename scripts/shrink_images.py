"""Rewrite PNG files with a palette of 256 colours, for images that are kept in the repository.

    python scripts/shrink_images.py outputs/gallery

Maps in one colour map and captions need few colours: the mean error is below one grey level, and a file is a third to
two thirds as large. Photographs lose a little more. Files that have a palette already are left as they are, and so are
distance-time maps (``kymograph*.png``), whose colour bars would show bands.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image


def shrink(path: Path) -> tuple[int, int]:
    """Rewrite one file where that makes it smaller; its size in bytes before and after."""
    before = path.read_bytes()
    with Image.open(io.BytesIO(before)) as picture:
        if picture.mode == "P":
            return len(before), len(before)
        # On white: figures are saved with an alpha channel that is opaque, or transparent at the rim.
        flat = Image.new("RGBA", picture.size, "white")
        flat.alpha_composite(picture.convert("RGBA"))
    smaller = io.BytesIO()
    flat.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE).save(
        smaller, "PNG", optimize=True
    )
    after = smaller.getvalue()
    if len(after) < len(before):
        path.write_bytes(after)
    return len(before), min(len(before), len(after))


def _images(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*.png")) if not path.name.startswith("kymograph")]


def main() -> None:
    """Shrink every PNG file below the folders named."""
    sizes = [shrink(path) for folder in sys.argv[1:] for path in _images(Path(folder))]
    before, after = (sum(each) / 1e6 for each in zip(*sizes, strict=True)) if sizes else (0.0, 0.0)
    print(f"{len(sizes)} images, {before:.1f} MB before, {after:.1f} MB after")


if __name__ == "__main__":
    main()
