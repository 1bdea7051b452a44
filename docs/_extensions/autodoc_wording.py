"""Small repairs of what autodoc, napoleon and sphinx-click make of docstrings, types and help texts."""

import re

from docutils import nodes
from sphinx.application import Sphinx

_ARRAY = re.compile(r"~?numpy\.ndarray\[tuple\[~?typing\.Any, \.\.\.\], ~?numpy\.dtype\[([^\[\]]+)\]\]")
_OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z-]*")


_NOTHING = "\\ "  # in reStructuredText


def keep_colons(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Stop napoleon from reading "text: more text", as the first line of an attribute or after Returns, as a type."""
    for place in reversed(range(len(lines))):
        if lines[place].strip() in ("Returns:", "Yields:"):
            indent = len(lines[place]) - len(lines[place].lstrip()) + 4
            lines.insert(place + 1, " " * indent + _NOTHING)
    if what in ("attribute", "data", "property"):
        lines.insert(0, _NOTHING)


def shorten_arrays(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """Write ``NDArray[float64]`` as in the code, not what it stands for."""
    for hints in app.env.current_document.autodoc_annotations.values():
        for parameter, hint in hints.items():
            hints[parameter] = _ARRAY.sub(r"~numpy.typing.NDArray[\1]", hint)


def mark_options(app: Sphinx, context: object, lines: list[str]) -> None:
    """Set options in help texts as code: two hyphens would become a dash."""
    lines[:] = [line if line.startswith("..") else _OPTION.sub(r"``\g<0>``", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the repairs; a priority below 500 comes before the extensions themselves."""
    app.setup_extension("sphinx_click")  # it announces the events
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("object-description-transform", shorten_arrays, priority=400)
    for part in ("description", "options", "arguments", "epilog"):
        app.connect(f"sphinx-click-process-{part}", mark_options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
