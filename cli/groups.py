"""Groups of commands that report errors of the user as one line, with exit code 1."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Any

import click

from fadeviz.errors import FadevizError, printable

from .messages import in_options

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Commands(click.Group):
    """A group whose commands end with one line and exit code 1 for errors that the user can correct."""

    def invoke(self, ctx: click.Context) -> Any:
        """See :meth:`click.Command.invoke`."""
        try:
            return super().invoke(ctx)
        except FadevizError as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "") or self
            raise click.ClickException(in_options(str(error), command)) from error
        except OSError as error:
            if error.filename is None:  # not a file that the user named
                if error.errno not in _CANNOT_WRITE:
                    raise
                # Our own files are named in their errors: this one is about what the command prints.
                raise click.ClickException(f"cannot write to standard output: {error.strerror}") from error
            raise click.ClickException(printable(f"{error.filename}: {error.strerror}")) from error
        except KeyboardInterrupt:  # during imports, or in a command that does not train
            click.echo("interrupted", err=True)
            sys.exit(128 + signal.SIGINT)


__all__ = ["Commands"]
