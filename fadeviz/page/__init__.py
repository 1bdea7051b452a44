"""The code of the pages, one source for report, viewer and notebook.

``src/`` is TypeScript, with tests in ``test/``; ``make page`` checks it and builds ``built/``, a script for each page.
The built scripts are in the repository, so that neither using nor testing fadeviz needs Node.
"""

from __future__ import annotations

import base64
import json
from functools import cache
from importlib.resources import files

from ..render.colormap import palette, signed_palette

PALETTES = ("gray", "viridis", "cividis", "magma", "inferno")
"""Colour maps that a reader can choose from."""


@cache
def script(name: str) -> str:
    """The script of a page: report, viewer or notebook."""
    return _read(f"built/{name}.js")


@cache
def style() -> str:
    """The style that report and viewer share."""
    return _read("page.css")


@cache
def maps_markup() -> str:
    """The maps with their controls, the same on both pages; what a page does not need stays hidden."""
    return _read("maps.html")


def palettes() -> dict[str, str]:
    """The colour maps: 256 colours of three bytes each, in base64."""
    return {name: base64.b64encode(palette(name).tobytes()).decode() for name in PALETTES}


def signed_colours() -> str:
    """The colours of values of both signs, in the same form."""
    return base64.b64encode(signed_palette().tobytes()).decode()


def json_text(data: object) -> str:
    """JSON that can stand in a script element: ASCII only, without the characters that could end the element.

    Raises:
        ValueError: if a number is not finite.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


__all__ = ["PALETTES", "json_text", "maps_markup", "palettes", "script", "signed_colours", "style"]
