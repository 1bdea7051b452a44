"""Notes of commands, and the library's messages in the words of the command line."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import click

# A call such as Recorder(..., kinds="gate") is Python and stays so; so does an operator's option: fade:gate=off.
_ARGUMENT = re.compile(
    r"""[\w.]+\((?:[^()]|\([^()]*\))*\)
      | (?<![\w.:,/\\="'`{\[-]) (?P<name>[a-z]\w*)
        = (?P<value> \.\.\. | \{[^{}]*\} | [(\[][^()\[\]]*[)\]] | '[^']*' | "[^"]*" | [\w+-](?:[\w.+:/-]*\w)? )""",
    re.VERBOSE,
)


def in_options(message: str, command: click.Command) -> str:
    """A message of the library with a command's options in place of the arguments of a function.

    ``overwrite=True`` becomes ``--overwrite``, ``layer=...`` becomes ``--layer``, ``size=256`` becomes ``--size 256``,
    ``kinds=['gate', 'feature']`` becomes ``--kind gate --kind feature``, and ``layer={'a': 'up1', 'b': 'up2'}`` becomes
    ``--layer a=up1 --layer b=up2``, if the command has a parameter of that name. All else stays as it is.

    Example:
        >>> import click
        >>> command = click.Command("draw", params=[click.Option(["--overwrite"], is_flag=True)])
        >>> in_options("replace it with overwrite=True, or fade=True", command)
        'replace it with --overwrite, or fade=True'
    """
    given = [option for option in command.params if isinstance(option, click.Option)]
    # The same choice is layer=... of a grid, and layers=... of a report, which shows several: --layer of both.
    options = {_long(option.opts)[2:]: option for option in given if option.multiple}
    options |= {option.name or "": option for option in given}

    def spell(match: re.Match[str]) -> str:
        option = options.get(match["name"])
        return match[0] if option is None else _spell(option, match["value"]) or match[0]

    return _ARGUMENT.sub(spell, message)


def _spell(option: click.Option, text: str) -> str:
    """The option with a value, which is Python or a bare word; empty if the command line has no way to say it."""
    name = _long(option.opts)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # a bare word: device=cpu, data_dir=DIR, files=[FILE]
        value = [part.strip() for part in text[1:-1].split(",")] if text[0] in "[(" else text
    else:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = text  # as it was written: 1e-3
    if value is None:
        return ""
    if value is ... or value in ([...], (...,)):
        return name
    if option.is_flag:
        return name if value is True else _long(option.secondary_opts) if value is False else ""
    if isinstance(value, dict):
        value = [f"{key}={part}" for key, part in value.items()]
    values = [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]
    words = values if option.multiple else [",".join(values)]
    return " ".join(f"{name} {shlex.quote(word)}" for word in words)


def _long(names: Iterable[str]) -> str:
    return next((name for name in names if name.startswith("--")), "")


def print_notes(notes: Iterable[str]) -> None:
    """Print notes of the library on standard error, a line each, in the words of the command that runs."""
    for note in notes:
        click.echo(f"note: {in_options(note, click.get_current_context().command)}", err=True)


def print_written(output: Path | str, notes: Iterable[str] = ()) -> None:
    """Print notes, and which file was written."""
    print_notes(notes)
    click.echo(f"wrote {output}")


__all__ = ["in_options", "print_notes", "print_written"]
