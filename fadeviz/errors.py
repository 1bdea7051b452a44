"""The one exception that means "you can mend this": every message says what was wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FadevizError(ValueError):
    """Something the user can mend: the command line prints it as one line and exits with 1."""


def unknown_name(what: str, name: str, known: Iterable[str], see: str = "") -> FadevizError:
    """The error for a name that is not in a table: lists the nearest names.

    Args:
        what: what was looked for, e.g. ``"upsampler"``.
        name: the name that was given.
        known: the names there are.
        see: how to list them all, e.g. ``"fadeviz upsamplers"``.

    Example:
        >>> print(unknown_name("upsampler", "caraf", ["carafe", "fade"], "fadeviz upsamplers"))
        no upsampler 'caraf'. Nearest: 'carafe'. List them: fadeviz upsamplers
    """
    names = sorted(set(known))
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if nearest:
        hint = "Nearest: " + ", ".join(repr(n) for n in nearest)
    elif not names:
        hint = "There is none"
    else:
        shown = names if len(names) <= 12 else [*names[:12], "..."]
        hint = "There are: " + ", ".join(shown)
    return FadevizError(f"no {what} {name!r}. {hint}." + (f" List them: {see}" if see else ""))
