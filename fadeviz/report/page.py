"""The page: the HTML around the data, in one file that a browser shows without network access."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from .. import page
from ..version import __version__
from .predictions import ReportPredictions
from .sequences import MapSequences, ReportSelection, shortest
from .text import ClassTable

_LONG_TITLE = 40
"""Letters of a title that is set in smaller type."""

_OPEN_ROWS = 12
"""Most rows of a table of classes that is open at first."""


def render_page(
    content: Mapping[str, Any], selection: ReportSelection, predictions: ReportPredictions | None = None
) -> bytes:
    """The whole file.

    Names in stored runs are not trusted: only :func:`_escape` and :func:`json_text` put them into the page.

    Args:
        content: sentences, tables and data of the page, without the maps.
        selection: the maps.
        predictions: what the models predicted; None leaves the section out.
    """
    markup, style = _read("page.html"), page.style()
    script = page.script("report")
    data = content["data"] | {
        "shown": list(selection.runs),
        "count": selection.images,
        "maps": [_map_data(maps, number) for number, maps in enumerate(selection.sequences)],
        "predictions": None if predictions is None else predictions.data(),
    }
    elements = [
        f'<script type="text/plain" id="sequence-{number}-{run}-{image}">{_base64(packed.data)}</script>'
        for number, maps in enumerate(selection.sequences)
        for (run, image), packed in maps.packed.items()
    ]
    for element, packed in () if predictions is None else predictions.elements():
        elements.append(f'<script type="text/plain" id="{element}">{_base64(packed.data)}</script>')
    slots = {
        "title": _escape(content["title"]),
        "heading": _unbroken(content["title"]),
        "long": ' class="long"' if len(content["title"]) > _LONG_TITLE else "",
        "contents": _contents(predictions is not None),
        "policy": _policy(style, script),
        "style": style,
        "script": script,
        "measured": _escape(content["measured"]),
        "verdicts": _verdicts(content["verdicts"]),
        "comparisons": _comparisons(content["comparisons"]),
        "caveats": _items(content["caveats"]),
        "table": _onsets(*content["table"]),
        "classes": _classes(content["classes"]) if content["classes"] else "",
        "key": _key(content["key"][0], content["key"][2]) if content["key"] else "",
        "explanation": _explanation(content["key"][1]) if content["key"] else "",
        "left_out": _left_out(selection.left_out),
        "predictions": "" if predictions is None else _escape(predictions.sentence),
        "settings": _settings(*content["settings"]),
        "command": _escape(content["command"]),
        "version": _escape(__version__),
        "data": page.json_text(data),
        "maps": page.maps_markup(),
        "sequences": "\n".join(elements),
    }
    # One pass: inserted text is never searched again.
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], markup)
    return text.encode("utf-8", "replace")


def _map_data(maps: MapSequences, number: int) -> dict[str, Any]:
    """The limits of all sequences of a layer and kind, and the elements of the page that hold them."""
    return {
        "layer": maps.layer,
        "kind": maps.kind,
        "shared": {str(image): list(limits) for image, limits in maps.shared.items()},
        "sequences": [
            {
                "run": run,
                "image": image,
                "size": list(maps.sizes[run]),
                "element": f"sequence-{number}-{run}-{image}",
                "low": shortest(packed.low),
                "high": shortest(packed.high),
                "own": list(maps.own[run, image]),
                "holes": packed.holes,
                **({"layer": maps.names[run]} if run in maps.names else {}),
            }
            for (run, image), packed in maps.packed.items()
        ],
    }


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """A content security policy that allows the page its own script and style, and no network access."""

    def digest(text: str) -> str:
        return "'sha256-" + _base64(hashlib.sha256(text.encode()).digest()) + "'"

    return (
        f"default-src 'none'; img-src data: blob:; style-src {digest(style)}; script-src {digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def _items(sentences: Iterable[str]) -> str:
    return "".join(f"<li>{_escape(sentence)}</li>" for sentence in sentences)


def _comparisons(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    opened = " open" if len(sentences) <= 2 else ""  # two operators; more would push the maps off the screen
    note = "<p>Paired over the seeds that both have and over images; p-values are corrected by Holm's method.</p>"
    summary = "Comparisons of the operators"
    return f'<details class="aside"{opened}><summary>{summary}</summary><ul>{_items(sentences)}</ul>{note}</details>'


def _left_out(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    return f'<details class="aside"><summary>Not in this file</summary><ul>{_items(sentences)}</ul></details>'


def _contents(predictions: bool) -> str:
    """The links to the parts of the page, in their order."""
    parts = {"answer": "Answer", "viewer": "Maps", "predictions": "Predictions", "numbers": "Numbers"}
    parts |= {"curves": "Curves", "limitations": "Limits", "runs": "Runs"}
    if not predictions:
        del parts["predictions"]
    return "".join(f'<li><a href="#{part}">{name}</a></li>' for part, name in parts.items())


def _unbroken(text: str) -> str:
    """Text whose short words with a hyphen, such as U-Net, stay on one line."""
    pieces = re.split(r"(\w+(?:-\w+)+)", text)
    return "".join(
        f'<span class="unbroken">{_escape(piece)}</span>' if number % 2 and len(piece) <= 16 else _escape(piece)
        for number, piece in enumerate(pieces)
    )


def _verdicts(operators: Sequence[Mapping[str, Any]]) -> str:
    """An article per operator in each half of the answer: verdict, sentence and the map that the script draws.

    The operators of a half stand together, as they are what a reader compares.
    """
    names = dict.fromkeys(half["row"] for operator in operators for half in operator["halves"])
    parts: list[str] = []
    for name in names:
        articles = []
        for operator in operators:
            for half in operator["halves"]:
                if half["row"] == name:
                    number = half["panel"]
                    panel = "<div>" if number is None else f'<div class="signature" data-panel="{number:d}">'
                    articles.append(
                        f'<article class="verdict"><h4>{_escape(operator["title"])}</h4>'
                        f'<p class="word">{_escape(half["word"])}</p>'
                        f'<p class="sentence">{_escape(half["sentence"])}</p>{panel}</div></article>'
                    )
        rooms = " ".join(f"room{room}-{balanced(len(articles), room)}" for room in range(2, _MOST_COLUMNS + 1))
        heading, shown = f"<h3>{_escape(name)}</h3>", f'<div class="verdicts {rooms}">{"".join(articles)}</div>'
        if parts and len(operators) > _MANY:  # the script closes it on a phone
            parts.append(f'<details class="half printed" open><summary>{heading}</summary>{shown}</details>')
        else:
            parts.append(f'<div class="half">{heading}{shown}</div>')
    few = " few" if len(operators) <= 2 else ""
    return f'<div class="halves{few}">{"".join(parts)}</div>'


_MANY = 3
"""Operators above which the second half of the answer can be closed."""

_MOST_COLUMNS = 7
"""Most verdicts side by side."""


def balanced(count: int, room: int) -> int:
    """Columns for ``count`` items where there is room for ``room``: no last row with a single item.

    Two columns of an odd number are the exception; their last item spans both.

    Example:
        >>> [balanced(count, 4) for count in (1, 3, 4, 5, 7, 9)], balanced(4, 3), balanced(7, 3)
        ([1, 3, 4, 3, 4, 3], 2, 2)
    """
    if count <= room:
        return max(count, 1)
    columns = -(-count // -(-count // room))
    while columns > 2 and count % columns == 1:
        columns -= 1
    return max(columns, min(2, room))


def _key(quantity: str, span: float) -> str:
    """The legend of the distance-time maps: symbols, which the script draws, and colours."""
    low, high = f"\N{MINUS SIGN}{span:g}", f"+{span:g}"
    bar = (
        f'<canvas id="bar" width="256" height="1" role="img" '
        f'aria-label="Colours from blue, {low}, over white, 0, to brown, {high}"></canvas>'
        f'<div class="bar-ends"><span>{low}</span><span>{_escape(quantity)}</span><span>{high}</span></div>'
    )
    return f'<ul id="symbols" class="symbols"></ul><div class="colour-bar">{bar}</div>'


def _explanation(text: str) -> str:
    """How to read the distance-time maps, closed on screens and printed."""
    pointer = '<span class="screen">Point at a map to read its values; click it to go to a step.</span>'
    return (
        f'<details class="aside printed"><summary>How to read these maps</summary>'
        f"<p>{_escape(text)} {pointer}</p></details>"
    )


def _onsets(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = _rows((row[0], row[1:]) for row in rows)
    return f'<div class="onsets">{_table("Onsets", _row("th", head, "col"), body)}</div>'


def _classes(table: ClassTable) -> str:
    """The table of the classes, closed where it would push away what follows."""
    opened = " open" if len(table.rows) <= _OPEN_ROWS else ""
    summary = f"Each class at the last test, worst first ({len(table.rows)} classes)"
    body = _rows((row[0], row[1:]) for row in table.rows)
    notes = "".join(f"<p>{_escape(note)}</p>" for note in table.notes)
    return (
        f'<details class="aside wide"{opened}><summary>{_escape(summary)}</summary>'
        f"{_table('Classes', _row('th', table.head, 'col'), body)}{notes}</details>"
    )


def _settings(names: Sequence[str], different: dict[str, list[str]], common: dict[str, str]) -> str:
    """A table of the settings that differ, one row per setting while that is readable, and a list of the others."""
    parts = []
    if different:
        if len(names) <= 4:
            head, body = ["", *names], _rows(different.items())
        else:
            head = ["folder", *different]
            body = _rows((name, [row[number] for row in different.values()]) for number, name in enumerate(names))
        parts.append(
            "<h3>Different settings</h3>" + _table("Different settings", _row("th", head, "col"), body, "marked")
        )
    if common:
        heading = "Settings" if len(names) == 1 else "Common settings"
        cells = "".join(f"<div><dt>{_escape(k)}</dt><dd>{_escape(v)}</dd></div>" for k, v in common.items())
        parts.append(
            f'<details class="aside wide printed"><summary>{heading} ({len(common)})</summary>'
            f'<dl class="settings">{cells}</dl></details>'
        )
    return "".join(parts)


def _rows(rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    return "".join(f'<tr><th scope="row">{_escape(name)}</th>{_row("td", cells)}</tr>' for name, cells in rows)


def _row(tag: str, cells: Iterable[str], scope: str = "") -> str:
    scoped = f' scope="{scope}"' if scope else ""
    return "".join(f"<{tag}{scoped}>{_escape(cell)}</{tag}>" if cell else "<td></td>" for cell in cells)


def _table(name: str, head: str, body: str, kind: str = "") -> str:
    # Wide tables scroll in a box of their own, which can be reached by keyboard.
    file = name.lower().replace(" ", "_")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_escape(name)}">'
        f'<table class="{kind}" data-file="{file}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
