"""The server of the page, in a thread of this process and for this machine alone."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Sequence
from html import escape
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from ..errors import FadevizError, MissingExtra, printable
from .index import RunIndex

_HOST = "127.0.0.1"


class Viewer:
    """A running server. As the last line of a notebook cell, its page is shown below the cell.

    Attributes:
        url: the address of the page in a browser.
        port: the port on 127.0.0.1.

    Example::

        viewer = fadeviz.view("outputs")
        viewer          # in a notebook: the page
        viewer.close()
    """

    def __init__(self, folders: Sequence[str | os.PathLike[str]], port: int, address: str) -> None:
        """See :func:`view`, which makes it."""
        try:
            import uvicorn

            from .app import make_app
        except ImportError as error:
            raise MissingExtra("view", "the viewer needs starlette and uvicorn, which are not installed") from error
        index = RunIndex(folders)
        listening = _listen(port)
        self.port: int = listening.getsockname()[1]
        try:
            self.url, host, prefix = _address(address, self.port)
            config: Any = uvicorn.Config(
                make_app(index, host, prefix),
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=200,
                timeout_graceful_shutdown=1,
            )
        except BaseException:
            listening.close()
            raise
        self._server = uvicorn.Server(config)
        self._socket = listening
        self._thread = threading.Thread(target=self._serve, name="fadeviz-view", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        if not self._server.started:
            listening.close()
            raise FadevizError(f"the viewer could not be started on port {self.port}. Choose another with port=...")

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()

    @property
    def running(self) -> bool:
        """Whether the page is served."""
        return self._thread.is_alive() and not self._server.should_exit

    def wait(self) -> None:
        """Return when the server has ended; an interrupt (Ctrl-C) is raised as usual."""
        while self._thread.is_alive():
            self._thread.join(0.2)

    def close(self) -> None:
        """Stop the server and free its port."""
        self._server.should_exit = True
        self._thread.join(10)

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Viewer({self.url!r}{'' if self.running else ', closed'})"

    def _repr_html_(self) -> str:
        if not self.running:
            return "<p>This viewer is closed: fadeviz.view(...) starts another.</p>"
        url = escape(self.url, quote=True)
        return (
            f'<iframe src="{url}" title="fadeviz" width="100%" height="760" style="border: 1px solid #8886" '
            f'allow="clipboard-write"></iframe><p><a href="{url}" target="_blank" rel="noopener">{url}</a></p>'
        )


def view(
    folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, port: int = 0, address: str = ""
) -> Viewer:
    """Serve a page that lists the runs below folders, shows their maps, and follows those being recorded.

    It is served from a thread on 127.0.0.1 until ``close()``, or the end of the process. It only reads, and nothing but
    the runs in these folders; symlinks out of them are not followed.

    Args:
        folders: one folder, or several.
        port: the port; 0 takes a free one.
        address: the URL at which a browser reaches the page, where that is another machine's name or behind a proxy;
            ``{port}`` in it stands for the port: ``https://hub.example.org/user/me/proxy/{port}/``.

    Returns:
        The running server, which a notebook shows as its page.

    Raises:
        FadevizError: if a folder does not exist, the port cannot be used, or the address is no URL.
        MissingExtra: if starlette or uvicorn is not installed.

    Example::

        viewer = fadeviz.view("outputs")
        print(viewer.url)
        viewer.close()
    """
    given = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    return Viewer(given, port, address)


def _listen(port: int) -> socket.socket:
    """A socket on this machine's own address.

    Raises:
        FadevizError: if the port is none, or cannot be used.
    """
    if not 0 <= port <= 65535:
        raise FadevizError(f"port={port}: must be from 0 (a free one) to 65535")
    # Only of sockets that say TCP asyncio sends at once; else each answer would wait 40 ms for the receipt of its head.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would allow a second server on the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((_HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise FadevizError(f"port {port} is in use. Choose another, or a free one: port=0") from error
        raise FadevizError(f"port {port} cannot be used: {error.strerror or error}. Choose another: port=0") from error
    return listening


def _address(address: str, port: int) -> tuple[str, str, str]:
    """The URL of the page, the host name in it if it was given, and the path before the page's own.

    Raises:
        FadevizError: if it is no URL.
    """
    if not address:
        return f"http://{_HOST}:{port}/", "", ""
    url = address.replace("{port}", str(port))
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
    except ValueError:
        valid, parts = False, urlsplit("")
    if not valid or printable(url) != url:
        raise FadevizError(
            f"address={address!r}: a URL is needed, e.g. https://hub.example.org/user/me/proxy/{{port}}/"
        )
    # With its slash: the page's own addresses are relative to it.
    return url.rstrip("/") + "/", parts.hostname or "", parts.path.rstrip("/")


__all__ = ["Viewer", "view"]
