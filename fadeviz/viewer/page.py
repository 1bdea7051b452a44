"""The files of the page: markup, style and script, of which parts are the report's."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from .. import report
from ..render.colormap import NON_FINITE, palette
from ..render.normalize import FIXED_RANGES
from ..report import PALETTES
from ..storage.metrics import METRICS
from ..storage.snapshots import CHANNEL_KINDS, KINDS
from ..version import __version__

SHARED = ("basics", "tiles", "playback", "charts")
"""Parts of the report's script that this page has too."""

OWN = ("state", "server", "list", "maps", "curves", "links", "controls")
"""Parts of its own, in the order in which they are joined: one scope."""

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
        "channelKinds": sorted(CHANNEL_KINDS),
        "fixedRanges": {kind: list(limits) for kind, limits in FIXED_RANGES.items()},
        "metrics": {name: {"title": metric.column, "unit": metric.unit} for name, metric in METRICS.items()},
        "palettes": {name: base64.b64encode(palette(name).tobytes()).decode() for name in PALETTES},
        "nonFinite": list(NON_FINITE),
    }
    text = json.dumps(data, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    slots: dict[str, Any] = {"data": text, "version": html.escape(__version__)}
    page = _read("page.html")
    for name, value in slots.items():
        page = page.replace("{{" + name + "}}", value)
    return page


@cache
def style() -> str:
    """The style of the report, and what is different."""
    return files(report).joinpath("page.css").read_text("utf-8") + _read("page.css")


@cache
def script() -> str:
    """The script: the shared parts and the page's own, in one scope."""
    shared = [files(report).joinpath(f"script/{name}.js").read_text("utf-8") for name in SHARED]
    parts = "\n".join([*shared, *(_read(f"script/{name}.js") for name in OWN)])
    return f'"use strict";\n(() => {{\n{parts}}})();\n'


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


__all__ = ["OWN", "POLICY", "SHARED", "markup", "script", "style"]
