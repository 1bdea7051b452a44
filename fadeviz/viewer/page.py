"""The files of the page: markup and style."""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from .. import page
from ..page import json_text, maps_markup, palettes, signed_colours
from ..render.colormap import NON_FINITE
from ..render.normalize import FIXED_RANGES
from ..storage.metrics import METRICS
from ..storage.snapshots import KINDS
from ..version import __version__

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
"""The content security policy: nothing but what this server sends, and no inline script or style."""


def markup(folders: Sequence[str]) -> str:
    """The page, with the names of the folders and what the script needs to know beforehand."""
    data = {
        "version": __version__,
        "folders": list(folders),
        "kinds": KINDS,
        "fixedRanges": {kind: list(limits) for kind, limits in FIXED_RANGES.items()},
        "metrics": {
            name: {"title": metric.title, "column": metric.column, "unit": metric.unit}
            for name, metric in METRICS.items()
        },
        "palettes": palettes(),
        "signed": signed_colours(),
        "nonFinite": list(NON_FINITE),
    }
    slots = {"data": json_text(data), "maps": maps_markup(), "version": html.escape(__version__)}
    text = _read("page.html")
    for name, value in slots.items():
        text = text.replace("{{" + name + "}}", value)
    return text


@cache
def style() -> str:
    """The style that report and viewer share, and what is different."""
    return page.style() + _read("page.css")


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


__all__ = ["POLICY", "markup", "style"]
