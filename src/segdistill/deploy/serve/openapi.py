"""The interface in OpenAPI's words; the page `/docs` shows them."""

from collections.abc import Sequence
from typing import Any

from segdistill._version import __version__

Json = dict[str, Any]

CLASSES: Json = {"type": "array", "items": {"type": "string"}, "description": "names, in the order of the ids"}
PALETTE: Json = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
RUNS: Json = {
    "type": "array",
    "items": {"type": "integer"},
    "description": "id, length, id, length, …: ids line by line from the top; only with format=rle",
}
SEGMENTED: Json = {
    "model": {"type": "string", "description": "student, baseline or teacher; not of a truth"},
    "ms": {
        "type": "object",
        "properties": {"read": {"type": "number"}, "segment": {"type": "number"}},
        "description": "milliseconds for decoding the image, and for the model; not of a truth",
    },
    "height": {"type": "integer"},
    "width": {"type": "integer"},
    "classes": CLASSES,
    "shares": {"type": "object", "additionalProperties": {"type": "number"}, "description": "of the pixels, by class"},
    "runs": RUNS,
}
MODEL: Json = {
    "role": {"type": "string", "enum": ["student", "baseline", "teacher"]},
    "name": {"type": "string"},
    "classes": CLASSES,
    "palette": PALETTE,
    "size": {"type": ["array", "null"], "description": "height and width that it resizes images to"},
    "params": {"type": ["integer", "null"]},
}
LIMITS: Json = {"bytes": {"type": "integer"}, "pixels": {"type": "integer"}, "waiting": {"type": "integer"}}
REFUSALS = {
    400: "no image, an unknown parameter, or a form that cannot be read",
    403: "the request is of another site's page",
    404: "there is no such sample",
    408: "the image did not come in within a minute",
    413: "too many bytes or pixels",
    415: "not an image of a kind that is read",
    421: "the name in Host is not this server's",
    422: "a damaged image, or one that the model cannot take",
    503: "too many requests are waiting; try again after the seconds in Retry-After",
}


def describe_api(roles: Sequence[str], max_bytes: int, max_pixels: int) -> Json:
    """The interface as an OpenAPI 3.1 document.

    Args:
        roles: of the models that are served.
        max_bytes: of an upload.
        max_pixels: of an image.
    """
    side = _parameter("side", {"type": "integer", "minimum": 16, "maximum": 8192}, "scale the longer side down to this")
    form = _parameter(
        "format",
        {"type": "string", "enum": ["png", "rle", "json"], "default": "png"},
        "a palette PNG whose values are ids; JSON with runs of ids; JSON without them",
    )
    model = _parameter("model", {"type": "string", "enum": list(roles), "default": roles[0]}, "which network")
    sample = _parameter("sample", {"type": "integer", "minimum": 0}, "a sample's number instead of an upload")
    number = {**_parameter("number", {"type": "integer", "minimum": 0}, "of the sample"), "in": "path"}
    number["required"] = True
    png = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
    upload: Json = {
        "description": f"an image file of at most {max_bytes} bytes and {max_pixels} pixels",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
        },
    }
    uploads = (400, 403, 408, 413, 415, 422, 503)
    ids = {**png, **_json(SEGMENTED)}
    split = {"split": {"type": "string"}, "names": {"type": "array"}, "classes": CLASSES, "palette": PALETTE}
    listed = {"models": {"type": "array", "items": _object(MODEL)}, "limits": _object(LIMITS)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "segdistill", "version": __version__, "description": "Semantic segmentation of an image."},
        "paths": {
            "/predict": {
                "post": {
                    **_operation("Segment an image.", ids, [model, form, sample], (*uploads, 404)),
                    "requestBody": upload,
                }
            },
            "/image": {
                "post": {
                    **_operation("An upload as the student sees it: upright, RGB, 8 bits.", png, [side],
                                 uploads),
                    "requestBody": upload,
                }
            },
            "/models": {"get": _operation("The networks, and what a request may ask for.", _json(listed), [], ())},
            "/samples": {"get": _operation("Images of the student's validation split.", _json(split), [], ())},
            "/samples/{number}": {"get": _operation("A sample's image.", png, [number, side], (404, 503))},
            "/samples/{number}/truth": {"get": _operation("What is true of it.", ids, [number, form], (404, 503))},
        },
    }  # fmt: skip


def _parameter(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _object(properties: Json) -> Json:
    return {"type": "object", "properties": properties}


def _json(properties: Json) -> Json:
    return {"application/json": {"schema": _object(properties)}}


def _operation(summary: str, content: Json, parameters: Sequence[Json], refusals: Sequence[int]) -> Json:
    error = _json({"error": {"type": "string", "description": "one line: what was found, what to do"}})
    answers = {str(status): {"description": REFUSALS[status], "content": error} for status in (*refusals, 421)}
    answers = dict(sorted(answers.items()))
    responses = {"200": {"description": "done", "content": content}, **answers}
    return {"summary": summary, "parameters": list(parameters), "responses": responses}
