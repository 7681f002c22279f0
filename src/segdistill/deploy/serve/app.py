"""The application: what is answered under which address."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from segdistill._options import closest
from segdistill._printing import first_line, one_line
from segdistill._types import Colour
from segdistill._version import __version__
from segdistill.data.files import Bytes, Range
from segdistill.deploy.serve.answers import FORMATS, describe, ids_png, image_png, runs
from segdistill.deploy.serve.guard import Guard
from segdistill.deploy.serve.intake import decode, read_body
from segdistill.deploy.serve.line import Line
from segdistill.deploy.serve.models import Samples, Served
from segdistill.deploy.serve.openapi import describe_api
from segdistill.engine.faults import known_fault

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SIDES = range(16, 8193)
"""What a preview's longer side may be asked to be."""

Read = Callable[[Range | None], Bytes]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Args:
        bytes: of an upload.
        pixels: of an image.
        waiting: requests, besides the one that is worked on.
    """

    bytes: int = 32 * 2**20
    pixels: int = 40_000_000
    waiting: int = 16


def build_app(
    models: Sequence[Served], samples: Samples | None = None, limits: Limits | None = None, names: Sequence[str] = ()
) -> ASGIApp:
    """The page and its interface, as an ASGI application.

    Args:
        models: in the order in which they are shown; the first answers where none is named.
        samples: that the page offers.
        limits: of a request.
        names: by which this machine is reached, besides `localhost` and its own.
    """
    service = _Service(models, samples or Samples(), limits or Limits())
    routes = [
        Route("/", partial(_static, name="index.html")),
        Route("/docs", partial(_static, name="docs.html")),
        Route("/static/{name}", _static),
        Route("/openapi.json", service.openapi),
        Route("/models", service.list_models),
        Route("/samples", service.list_samples),
        Route("/samples/{number}", service.sample),
        Route("/samples/{number}/truth", service.truth),
        Route("/image", service.image, methods=["POST"]),
        Route("/predict", service.predict, methods=["POST"]),
    ]
    handlers: Any = {HTTPException: _refusal, Exception: _failure}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(app, names)


class _Service:
    """What the addresses give."""

    def __init__(self, models: Sequence[Served], samples: Samples, limits: Limits):
        self.models = {model.role: model for model in models}
        self.samples = samples
        self.limits = limits
        self.line = Line(limits.waiting)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(describe_api(list(self.models), self.limits.bytes, self.limits.pixels))

    async def list_models(self, request: Request) -> Response:
        _query(request)
        shown = ("role", "name", "classes", "palette", "size", "params")
        models = [{key: getattr(model, key) for key in shown} for model in self.models.values()]
        limits = {"bytes": self.limits.bytes, "pixels": self.limits.pixels, "waiting": self.limits.waiting}
        return JSONResponse({"models": models, "limits": limits, "version": __version__})

    async def list_samples(self, request: Request) -> Response:
        _query(request)
        shown = ("split", "names", "classes", "palette")
        return JSONResponse({key: getattr(self.samples, key) for key in shown})

    async def sample(self, request: Request) -> Response:
        query = _query(request, side=SIDES)
        read = self._sample(request.path_params["number"])
        with self.line.place():
            return await self.line.work(request, lambda: _image(read(None), query.get("side")))

    async def truth(self, request: Request) -> Response:
        query, number = _query(request, format=FORMATS), self._number(request.path_params["number"])

        def answer() -> Response:
            ids = _given(self.samples.truth, number)
            return _ids(ids, self.samples.classes, self.samples.palette, query.get("format"), {})

        with self.line.place():
            return await self.line.work(request, answer)

    async def image(self, request: Request) -> Response:
        query = _query(request, side=SIDES)
        span = next(iter(self.models.values())).image_range
        with self.line.place():
            read = await self._read(request, query)
            return await self.line.work(request, lambda: _image(read(span), query.get("side")))

    async def predict(self, request: Request) -> Response:
        query = _query(request, model=tuple(self.models), format=FORMATS, sample=range(len(self.samples.names)))
        model = self.models[query.get("model") or next(iter(self.models))]
        with self.line.place():
            read = await self._read(request, query)
            return await self.line.work(request, lambda: _predict(model, read, query.get("format")))

    async def _read(self, request: Request, query: Mapping[str, str]) -> Read:
        if "sample" not in query:
            body = await read_body(request, self.limits.bytes)
            return lambda span: decode(body, span, self.limits.pixels)
        if request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers:
            raise HTTPException(400, "an image and a sample; the request needs one of them")
        return self._sample(query["sample"])

    def _sample(self, number: str) -> Read:
        index = self._number(number)
        return lambda span: _given(self.samples.pixels, index)  # the data set has mapped its values

    def _number(self, text: str) -> int:
        count = len(self.samples.names)
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < count):
            there = f"they are 0 to {count - 1}" if count else "there are none"
            raise HTTPException(404, f"no sample {text}; {there}")
        return int(text)


def _given(read: Callable[[int], Bytes], index: int) -> Bytes:
    try:
        return read(index)
    except ValueError as error:
        raise HTTPException(500, str(error)) from None


def _image(pixels: Bytes, side: str | None) -> Response:
    shape = {"X-Image-Size": f"{pixels.shape[0]} {pixels.shape[1]}"}
    return Response(image_png(pixels, int(side) if side else None), media_type="image/png", headers=shape)


def _predict(model: Served, read: Read, form: str | None) -> Response:
    start = time.perf_counter()
    pixels = read(model.image_range)
    middle = time.perf_counter()
    try:
        ids = model.segment(pixels)
    except (RuntimeError, ValueError, MemoryError) as error:
        size = f"an image of {pixels.shape[0]}×{pixels.shape[1]}"
        if known_fault(error) is not None:
            raise HTTPException(413, f"not enough memory for {size}; send a smaller one") from None
        raise HTTPException(422, f"{model.role} cannot segment {size}: {first_line(error)}") from None
    times = {"read": middle - start, "segment": time.perf_counter() - middle}
    ms = {name: round(1000 * seconds, 3) for name, seconds in times.items()}
    return _ids(ids, model.classes, model.palette, form, {"model": model.role, "ms": ms})


def _ids(
    ids: Bytes, classes: Sequence[str], palette: Sequence[Colour], form: str | None, facts: Mapping[str, Any]
) -> Response:
    timing = ", ".join(f"{name};dur={ms}" for name, ms in facts.get("ms", {}).items())
    headers = {"Server-Timing": timing} if timing else {}
    if form in (None, "png"):
        return Response(ids_png(ids, palette), media_type="image/png", headers=headers)
    answer = {**facts, **describe(ids, classes), **({"runs": runs(ids)} if form == "rle" else {})}
    return JSONResponse(answer, headers=headers)


def _query(request: Request, **known: Sequence[str] | range) -> dict[str, str]:
    """The parameters of an address, if they are such that are known."""
    found: dict[str, str] = {}
    for key, value in request.query_params.multi_items():
        if key not in known:
            raise HTTPException(400, f"no parameter {key!r}{closest(key, known)}")
        if key in found:
            raise HTTPException(400, f"{key} is given twice")
        choices = known[key]
        if isinstance(choices, range):
            if not (value.isascii() and value.isdecimal() and len(value) < 10 and int(value) in choices):
                expected = f"a number from {choices[0]} to {choices[-1]}" if choices else "nothing: there are none"
                raise HTTPException(400, f"{key}={value}: expected {expected}")
        elif value not in choices:
            raise HTTPException(400, f"{key}={value}: expected {' or '.join(choices)}")
        found[key] = value
    return found


async def _static(request: Request, name: str | None = None) -> Response:
    name = name or request.path_params["name"]
    file = {file.name: file for file in PAGE.iterdir()}.get(name)
    if file is None:
        raise HTTPException(404, "there is no such file")
    return Response(file.read_bytes(), media_type=TYPES[file.suffix])


async def _refusal(request: Request, error: HTTPException) -> Response:
    detail = {404: "there is nothing at this address", 405: "this address takes another method"}
    plain = error.detail in ("Not Found", "Method Not Allowed")
    said = detail[error.status_code] if plain else error.detail
    return JSONResponse({"error": one_line(said)}, error.status_code, error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the server failed at this; its terminal says how"}, 500)
