"""What the server answers: the page, the list of runs, maps and figures. It reads, and changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import FadevizError, printable
from ..page import script
from ..render.selection import FigureContent, MapSelection
from ..storage.schedule import parse_steps
from ..storage.snapshots import PREDICTION
from . import page
from .figures import FORMATS, draw
from .index import RunIndex
from .reading import MapName, RunReader

MOST_RUNS = 64
"""Most runs in one figure."""

LOCAL = ("127.0.0.1", "localhost", "::1")
"""The names by which a browser on this machine, or at the other end of a tunnel, reaches the server."""

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", page.POLICY.encode()),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)

_TOKEN = "{token:str}"


class BadRequest(FadevizError):
    """A request that no page of this server makes."""


def make_app(index: RunIndex, host: str = "", prefix: str = "") -> ASGIApp:
    """The application that serves the runs of an index.

    Args:
        index: the runs.
        host: a name in the Host header that is answered, besides those of this machine.
        prefix: what a proxy may leave before the path of a request.
    """
    reader = RunReader(index)
    folders = [printable(str(folder)) for folder in index.folders]

    def root(request: Request) -> Response:
        return Response(page.markup(folders), media_type="text/html; charset=utf-8")

    def style(request: Request) -> Response:
        return Response(page.style(), media_type="text/css; charset=utf-8")

    def page_script(request: Request) -> Response:
        return Response(script("viewer"), media_type="text/javascript; charset=utf-8")

    def runs(request: Request) -> Response:
        session, _, version = request.query_params.get("since", "").partition(".")
        since = _whole("since", version) if session == index.session else 0
        return _json(index.changes(since))

    def details(request: Request) -> Response:
        return _json(reader.details(request.path_params["token"]))

    def images(request: Request) -> Response:
        return _json(reader.images(request.path_params["token"]))

    def logged(request: Request) -> Response:
        return _json(reader.logged(request.path_params["token"]))

    def image(request: Request) -> Response:
        query = request.query_params
        what, number = query.get("what", "image"), _number(query, "image")
        if what == PREDICTION:
            data = reader.prediction(request.path_params["token"], _number(query, "step"), number)
        elif what in ("image", "truth"):
            data = reader.image(request.path_params["token"], what, number)
        else:
            raise BadRequest(f"what={what!r}: image, truth or {PREDICTION} is needed")
        return Response(data, media_type="image/png")

    def values(request: Request) -> Response:
        step = _number(request.query_params, "step")
        found = reader.values(request.path_params["token"], step, _map_name(request.query_params))
        size = ",".join(map(str, found.shape))
        data = found.astype("<f4", copy=False).tobytes()
        return Response(data, media_type="application/octet-stream", headers={"x-size": size})

    def ranges(request: Request) -> Response:
        query, name = request.query_params, _map_name(request.query_params)
        other = None
        if "less" in query:
            other = (query["less"], name._replace(layer=query.get("less_layer", name.layer)))
        return _json(reader.ranges(request.path_params["token"], name, other))

    def figure(request: Request) -> Response:
        query = request.query_params
        tokens = [token for token in query.get("runs", "").split(",") if token]
        if not 0 < len(tokens) <= MOST_RUNS:
            raise BadRequest(f"a figure of {len(tokens)} runs: 1 to {MOST_RUNS} are drawn at once. Choose fewer")
        ending = query.get("format", "png")
        kind = query.get("kind", "feature")
        options: dict[str, Any] = {"kind": kind, "image": _number(query, "image")}
        if query.get("steps"):
            options["steps"] = parse_steps(query["steps"])
        if kind != PREDICTION:
            options |= {"layer": _layers(query, len(tokens)), "call": _number(query, "call"),
                        "normalize": query.get("normalize", "frame")}  # fmt: skip
            if "channel" in query:
                options["channel"] = _number(query, "channel")
        opened = [reader.run(token) for token in tokens]
        if isinstance(options.get("layer"), list):
            names = options["layer"]
            options["layer"] = {run.address: name for run, name in zip(opened, names, strict=True)}
        colormap = "gray" if kind == PREDICTION else query.get("colormap", "gray")
        content = FigureContent(difference=query.get("difference") == "1")
        drawing = draw(opened, MapSelection(**options), ending, colormap, content)
        headers = {
            "content-disposition": f'attachment; filename="{drawing.name}"',
            "x-notes": quote(json.dumps(list(drawing.notes))),
        }
        return Response(drawing.data, media_type=FORMATS[ending], headers=headers)

    routes = [
        _route("/", root),
        _route("/page.css", style),
        _route("/page.js", page_script),
        _route("/api/runs", runs),
        _route(f"/api/run/{_TOKEN}", details),
        _route(f"/api/run/{_TOKEN}/images", images),
        _route(f"/api/run/{_TOKEN}/logged", logged),
        _route(f"/api/run/{_TOKEN}/image", image),
        _route(f"/api/run/{_TOKEN}/map", values),
        _route(f"/api/run/{_TOKEN}/ranges", ranges),
        _route("/api/figure", figure),
    ]
    return _Guard(Starlette(routes=routes), {*LOCAL, host.lower()} - {""}, prefix)


class _Guard:
    """Refuses what no page of this server asks for, and sets headers that keep others from reading the answers."""

    def __init__(self, app: ASGIApp, hosts: Set[str], prefix: str) -> None:
        self.app, self.hosts, self.prefix = app, hosts, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if self.prefix and scope["path"].startswith(f"{self.prefix}/"):
            scope = {**scope, "path": scope["path"][len(self.prefix) :]}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if sum(name == b"host" for name, _ in scope["headers"]) != 1 or _host_name(host) not in self.hosts:
            # A page elsewhere whose name leads here (DNS rebinding), or a proxy that nobody has named.
            return _error(f"not served as {printable(host)!r}: start fadeviz view with --address URL, the address "
                          "that the browser shows", 403)  # fmt: skip
        if scope["method"] not in ("GET", "HEAD"):
            return _error("this server is read-only: GET alone", 405)
        if scope["path"].startswith("/api/") and headers.get(b"sec-fetch-site", b"none") not in (
            b"same-origin",
            b"none",
        ):
            return _error("asked for by the page of another server", 403)
        return None


def _host_name(host: str) -> str:
    """The name in a Host header, without its port: ``localhost:8000`` is ``localhost``, ``[::1]:80`` is ``::1``."""
    match = re.fullmatch(r"(?:\[([0-9a-f:]+)\]|([^:\[\]/@]+))(?::[0-9]{1,5})?", host.strip().lower())
    return (match[1] or match[2]) if match else ""


def _route(path: str, answer: Callable[[Request], Response]) -> Route:
    """A route whose errors are one line of text. Answers read files, so each is given a thread."""

    async def endpoint(request: Request) -> Response:
        try:
            return await run_in_threadpool(answer, request)
        except BadRequest as error:
            return _error(str(error), 400)
        # What may happen while one looks, such as a run that is removed, is an answer: a browser would log a failure.
        except FadevizError as error:
            return _error(str(error), 200)
        except OSError as error:
            return _error(f"cannot be read: {error.strerror or error}", 200)

    typed: Callable[[Request], Awaitable[Response]] = endpoint
    return Route(path, typed, methods=["GET"])


def _json(values: Any, status: int = 200) -> Response:
    return Response(json.dumps(values, allow_nan=False), status, media_type="application/json")


def _error(message: str, status: int) -> Response:
    return _json({"error": printable(message)}, status)


def _map_name(query: Mapping[str, str]) -> MapName:
    channel = _number(query, "channel") if "channel" in query else None
    layer, kind = query.get("layer", ""), query.get("kind", "")
    return MapName(layer, kind, _number(query, "call"), _number(query, "image"), channel)


def _layers(query: Mapping[str, str], count: int) -> str | list[str] | None:
    """The layer of all runs; or, as a JSON list, one for each."""
    text = query.get("layers", "")
    if not text:
        return query.get("layer") or None
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise BadRequest("layers=...: a JSON list with a name for each run is needed")
    return names[0] if len(set(names)) == 1 else names


def _number(query: Mapping[str, str], name: str) -> int:
    return _whole(name, query.get(name, "0"))


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 12:
        raise BadRequest(f"{name}={text!r}: a whole number is needed")
    return int(text)


__all__ = ["LOCAL", "MOST_RUNS", "make_app"]
