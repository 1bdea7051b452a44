"""Errors that the user can fix: every message says what was wrong and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Controls, which a terminal obeys; line ends and direction marks, which show a text as another; halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class FadevizError(ValueError):
    """An error that the user can fix: the command line prints it as one line and exits with code 1."""

    def __init__(self, message: str) -> None:
        """``message`` may quote names from files: what a terminal would obey is written out."""
        super().__init__(printable(message))


class RecorderWarning(UserWarning):
    """A :class:`fadeviz.Recorder` could not do something; training continues without it."""


class MissingExtra(FadevizError, ImportError):
    """A library that comes with one of fadeviz's extras is not installed."""

    def __init__(self, extra: str, what: str) -> None:
        """``what`` names what needs the extra ``extra``; the message adds how to install it."""
        super().__init__(f"{what}. Install it, in a clone of fadeviz: {install_command(extra)}")


def install_command(*extras: str) -> str:
    """The command that installs fadeviz with these extras, from a clone: it is not on PyPI yet.

    Example:
        >>> print(install_command("video"))
        pip install ".[video]"
    """
    return f'pip install ".[{",".join(extras)}]"'


def printable(text: str) -> str:
    """The text as one line that does nothing to a terminal: control characters as ``\\n`` or ``\\x1b``.

    Example:
        >>> print(printable("a\\nb"))
        a\\nb
    """
    return _UNPRINTABLE.sub(lambda match: repr(match[0])[1:-1], text)


def nearest_names(name: str, choices: Iterable[str]) -> list[str]:
    """At most three of the choices that are spelled like ``name``, the nearest first."""
    return difflib.get_close_matches(name, sorted(set(choices)), n=3, cutoff=0.5)


def brief(name: object, longest: int = 80) -> str:
    """A name as part of a sentence, truncated if it is very long."""
    text = str(name)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def unknown_name(what: str, name: str, choices: Iterable[str], see: str = "") -> FadevizError:
    """The error for a name that is not in a table: lists the nearest names.

    Args:
        what: the sort of thing that was looked for, e.g. ``"upsampler"``.
        name: the name that was given.
        choices: the names there are.
        see: how to list them all, e.g. ``"fadeviz upsamplers"``.

    Example:
        >>> print(unknown_name("upsampler", "caraf", ["carafe", "fade"], "fadeviz upsamplers"))
        no upsampler 'caraf'. Nearest: 'carafe'. List them: fadeviz upsamplers
    """
    names = sorted(set(choices))
    nearest = nearest_names(name, names)
    if nearest:
        hint = "Nearest: " + ", ".join(repr(n) for n in nearest)
    elif not names:
        hint = "There is none"
    else:
        shown = names if len(names) <= 12 else [*names[:12], "..."]
        hint = "There are: " + ", ".join(shown)
    return FadevizError(f"no {what} {name!r}. {hint}." + (f" List them: {see}" if see else ""))
