"""Pages: figures laid out in whole pixels, with images that lie on them exactly; the same input, the same bytes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FadevizError
from ..storage.files import write_whole
from .fonts import FAMILY, family, letters, spell
from .svg_fonts import embed_fonts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".pdf", ".svg")

MAX_PIXELS = 200_000_000
"""Largest area of a figure; a larger one is a mistake in its scale, and would exhaust the memory."""

STYLE: Any = {
    "font.family": FAMILY,
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": "black",
    "axes.unicode_minus": True,
    "pdf.fonttype": 42,
    "pdf.compression": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "fadeviz",
    "path.snap": True,
    "savefig.bbox": "standard",
    "savefig.transparent": False,
}
"""Settings of matplotlib: text stays text, with its fonts embedded; nothing differs between two runs of the program."""


def check_ending(output: str | os.PathLike[str], what: str) -> Path:
    """The path of a figure that can be written; ``what`` is its name in the message.

    Raises:
        FadevizError: if the file ending is not one of ``ENDINGS``.
    """
    path = Path(output)
    if path.suffix.lower() not in ENDINGS:
        raise FadevizError(
            f"{path}: a {what} cannot be written as {path.suffix or 'a file without an ending'}. "
            f"Endings: {' '.join(ENDINGS)}"
        )
    return path


def new_figure(width: int, height: int, dpi: float) -> Figure:
    """A white figure of the given size in pixels, which pyplot does not manage."""
    from matplotlib.figure import Figure

    # A thousandth of a pixel more than the size, because the renderer rounds down.
    figure = Figure(((width + 1e-3) / dpi, (height + 1e-3) / dpi), dpi=dpi)
    figure.patch.set_facecolor("white")
    return figure


def figure_style() -> Any:
    """:data:`STYLE` with the main font (:func:`~fadeviz.render.fonts.main_family`)."""
    return STYLE | {"font.family": family()}


def save_figure(figure: Figure, path: Path, dpi: float, *, provenance: str = "", transparent: bool = False) -> None:
    """Write a figure as PNG, PDF or SVG, by the file's ending, completely or not at all.

    Args:
        figure: the figure.
        path: the file to write.
        dpi: pixels per inch.
        provenance: what the figure is made of, for the metadata of the file.
        transparent: whether the background is left out, that of the figure and not that of its panels.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    ending = path.suffix.lower()
    # No dates and no versions: the same run gives the same bytes.
    metadata: dict[str, dict[str, str | None]] = {
        ".png": {"Software": None, "Description": provenance or None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": "fadeviz", "Subject": provenance or None},
        ".svg": {"Date": None, "Creator": "fadeviz", "Description": provenance or None},
    }
    data = io.BytesIO()  # through memory: on a full disk matplotlib's PDF has an error of its own
    with rc_context(figure_style()):
        FigureCanvasAgg(figure)
        if transparent:
            figure.patch.set_alpha(0)
        figure.savefig(data, format=ending[1:], dpi=dpi, metadata=metadata[ending])
        content = data.getvalue()
        if ending == ".svg":
            content = embed_fonts(content.decode()).encode()
    write_whole(path, content)


class Page:
    """A figure whose units are pixels from the upper left corner: borders at the back, images, words in front."""

    def __init__(self, figure: Any, width: int, height: int, *, exact: bool) -> None:
        self.figure = figure
        self.width, self.height = width, height
        self.exact = exact
        self.back, self.front = (self._axes(zorder) for zorder in (0, 2))

    def _axes(self, zorder: int) -> Any:
        axes = self.figure.add_axes((0, 0, 1, 1), zorder=zorder, label=str(zorder))
        axes.set_axis_off()
        axes.set_xlim(0, self.width)
        axes.set_ylim(self.height, 0)
        axes.set_autoscale_on(False)
        return axes

    def text(self, x: float, y: float, text: str, size: float, **style: Any) -> None:
        """Text whose upper left corner is at ``(x, y)``, with a font size in points."""
        style = {"va": "top", "ha": "left"} | style
        # parse_math: a layer's or file's name may hold a dollar sign.
        text = spell(text)
        self.front.text(x, y, text, fontsize=size, parse_math=False, **style | letters(text))

    def image(self, box: tuple[int, int, int, int], pixels: NDArray[np.uint8]) -> None:
        """An image ``(H, W, 3)`` in a box (x, y, width, height); on an ``exact`` page it must have the box's size."""
        x, y, width, height = box
        if self.exact:
            # Pixel for pixel: the pixels are given at the box's size, and no renderer places or resamples them.
            self.figure.figimage(pixels, x, self.height - y - height, origin="upper", zorder=1)
            return
        # "none": vector files embed the values themselves, not what would be seen of them at some resolution.
        self.back.imshow(pixels, extent=(x, x + width, y + height, y), interpolation="none", aspect="auto", zorder=2)

    def edge(self, box: tuple[int, int, int, int]) -> None:
        """A grey line of one pixel around a box, which shows where a white image ends."""
        from matplotlib.patches import Rectangle

        x, y, width, height = box
        self.back.add_patch(Rectangle((x - 1, y - 1), width + 2, height + 2, facecolor="0.6", linewidth=0, zorder=1))
