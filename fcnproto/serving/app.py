"""The page's server: a Starlette application over a `Desk`.

It answers from memory alone: no address leads to a file of the machine. Requests for other hosts than those named are
refused (a page elsewhere could make the browser ask for them), as are those that another page sends.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fcnproto.errors import Error, first_line
from fcnproto.serving.desk import Desk

_FOLDER = Path(__file__).parent
_KINDS = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'"


class _RefusedError(Exception):
    """A request that gets `status` and a line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def application(desk: Desk, hosts: Sequence[str]) -> Starlette:
    """The application. `hosts` are the names (without port) under which it may be asked; "*" is any."""
    pages = {name: (_FOLDER / name).read_bytes() for name in _KINDS}

    def page(name: str) -> Callable[[Request], Any]:
        async def answer(request: Request) -> Response:
            headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
            return Response(pages[name], media_type=_KINDS[name], headers=headers)

        return answer

    async def nets(request: Request) -> Response:
        return JSONResponse(
            {
                "nets": [{"title": net.title, "inputs": net.segmenter.inputs, "blobs": net.blobs} for net in desk.nets],
                "limits": {"megabytes": desk.limits.megabytes, "megapixels": desk.limits.megapixels},
            }
        )

    async def add(request: Request) -> Response:
        _same_origin(request)
        key, image = await run_in_threadpool(desk.add, await _body(request, int(desk.limits.megabytes * 1e6)))
        return JSONResponse({"id": key, "width": image.width, "height": image.height}, status_code=201)

    async def picture(request: Request) -> Response:
        return await run_in_threadpool(lambda: _png(desk.image(request.path_params["key"]).convert("RGB")))

    async def segmentation(request: Request) -> Response:
        number, keys = _asked(request)
        found = await run_in_threadpool(desk.segment, number, keys)
        return JSONResponse(
            [
                {
                    "blob": one.blob,
                    "width": one.labels.shape[1],
                    "height": one.labels.shape[0],
                    "legend": desk.legend(one),
                }
                for one in found
            ]
        )

    async def overlay(request: Request) -> Response:
        number, keys = _asked(request)
        blob = request.query_params.get("blob", "")
        return await run_in_threadpool(lambda: _png(desk.overlay(number, keys, blob)))

    async def pixel(request: Request) -> Response:
        number, keys = _asked(request)
        place = [_whole(request.query_params.get(name, "")) for name in ("x", "y")]
        blob = request.query_params.get("blob", "")
        return JSONResponse(await run_in_threadpool(desk.pixel, number, keys, blob, *place))

    async def blob(request: Request) -> Response:
        number, keys = _asked(request)
        grid, about = await run_in_threadpool(desk.blob, number, keys, request.query_params.get("blob", ""))
        if grid is None:
            return JSONResponse(about)
        answer = _png(grid)
        answer.headers["X-About"] = quote(json.dumps(about))
        return answer

    async def failed(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, _RefusedError) else 404 if isinstance(error, KeyError) else 422
        message = "no such image, net or blob; it may have been dropped for newer ones" if status == 404 else str(error)
        return JSONResponse({"error": message or first_line(error)}, status_code=status)

    routes = [
        Route("/", page("page.html")),
        *(Route(f"/{name}", page(name)) for name in ("page.js", "page.css")),
        Route("/api/nets", nets),
        Route("/api/images", add, methods=["POST"]),
        Route("/api/images/{key}", picture),
        Route("/api/nets/{number}/segmentation", segmentation),
        Route("/api/nets/{number}/overlay", overlay),
        Route("/api/nets/{number}/pixel", pixel),
        Route("/api/nets/{number}/blob", blob),
    ]
    found = Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)],
        exception_handlers={Error: failed, KeyError: failed, _RefusedError: failed},
    )
    found.router.redirect_slashes = False
    return found


def _asked(request: Request) -> tuple[int, dict[str, str]]:
    """The net's number, and the images by input: the query's `image.<input>`."""
    query: Mapping[str, str] = request.query_params
    keys = {name[len("image.") :]: value for name, value in query.items() if name.startswith("image.")}
    return _whole(request.path_params["number"]), keys


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise _RefusedError(422, f"{text[:20]!r} is no whole number")
    return int(text)


def _same_origin(request: Request) -> None:
    """Only the page itself adds images; browsers say which page asks."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise _RefusedError(403, "only this server's own page may add images")


async def _body(request: Request, most: int) -> bytes:
    """The request's body; refused as soon as it has more than `most` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise _RefusedError(413, f"an image may have {most / 1e6:g} MB at most")
        parts.append(part)
    return b"".join(parts)


def _png(image: Image.Image) -> Response:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    return Response(file.getvalue(), media_type="image/png", headers=headers)
