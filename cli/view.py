"""The command that serves the page of runs: view."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FOLDER...")
@click.option("--port", type=int, default=0, show_default=True, metavar="N",
              help="Port on 127.0.0.1; 0 takes a free one.")  # fmt: skip
@click.option("--address", default="", metavar="URL",
              help="Where a browser reaches the page, behind a proxy; {port} in it stands for the port: "
                   "https://hub.example.org/user/me/proxy/{port}/.  [default: 127.0.0.1]")  # fmt: skip
@click.option("--no-browser", is_flag=True, help="Do not open the page in a browser.")
def view(folders: tuple[Path, ...], port: int, address: str, no_browser: bool) -> None:
    """Watch the runs below FOLDERs in a browser.

    Lists them, shows and compares their maps, and follows those that are being recorded. The page is served to this
    machine alone, and only reads. Ctrl-C stops it.
    """
    import fadeviz

    with fadeviz.view(folders, port=port, address=address) as viewer:
        click.echo(f"{viewer.url}  (Ctrl-C stops it)")
        try:
            if not no_browser and _has_screen():
                webbrowser.open(viewer.url)
            viewer.wait()
        except KeyboardInterrupt:
            click.echo("stopped")


def _has_screen() -> bool:
    """Whether a browser would open in a window, or at the other end; not one of text in this terminal."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))


__all__ = ["view"]
