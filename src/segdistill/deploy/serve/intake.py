"""From a request to pixels: what strangers send is bounded, checked, and never touches the disk."""

import asyncio
import sys
from collections.abc import AsyncGenerator

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from segdistill.data.files import FORMATS, Bytes, Range, read_image

PATIENCE = 60.0
"""Seconds in which a request has to have come in."""


class InMemory(MultiPartParser):
    """A parser of forms that leaves files in memory, where starlette would write larger ones to the disk."""

    spool_max_size = sys.maxsize


async def read_body(request: Request, limit: int) -> bytes:
    """The image file in a request: its body, or the one file of a multipart form.

    Args:
        request: whose body has not been read yet.
        limit: bytes that the body may have.

    Raises:
        HTTPException: if there is none, or too much, or it comes too slowly.
    """
    content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(PATIENCE):
            if content == "multipart/form-data":
                body = await _file_of_form(request, limit)
            else:
                body = b"".join([chunk async for chunk in _bounded(request, limit)])
    except TimeoutError:
        raise HTTPException(408, f"the image did not come in within {PATIENCE:g} s") from None
    if not body:
        raise HTTPException(400, "the request has no image; send a file as its body, or as a form's field")
    return body


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    too_much = HTTPException(413, f"the request is larger than {limit} bytes; the server takes no more")
    given = request.headers.get("content-length", "")
    if given.isdecimal() and int(given) > limit:
        raise too_much
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen > limit:
            raise too_much
        yield chunk


async def _file_of_form(request: Request, limit: int) -> bytes:
    parser = InMemory(request.headers, _bounded(request, limit), max_files=1, max_fields=8)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from None
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        return await files[0].read() if files else b""
    finally:
        await form.close()


def decode(body: bytes, image_range: Range | None, max_pixels: int) -> Bytes:
    """The pixels of an image file, as the package reads every image.

    Args:
        body: what the file holds.
        image_range: as for `read_image`.
        max_pixels: the largest image that is decoded; its header tells before.

    Raises:
        HTTPException: if it is none, too large or damaged.
    """
    try:
        return read_image(body, image_range=image_range, max_pixels=max_pixels)
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, UnidentifiedImageError):
            raise HTTPException(415, f"not an image of a kind that is read here: {', '.join(FORMATS)}") from None
        if isinstance(cause, Image.DecompressionBombError):
            raise HTTPException(413, f"the image has {cause}, which is the server's --max-pixels") from None
        raise HTTPException(422, str(error)) from None
