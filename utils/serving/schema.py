"""What /openapi.json says of the addresses that take pictures."""

from __future__ import annotations

from typing import Any

_FILE = {"type": "string", "format": "binary"}
_PARAMETERS = [
    {"name": "conf", "in": "query", "schema": {"type": "number", "minimum": 0, "maximum": 1}},
    {"name": "iou", "in": "query", "schema": {"type": "number", "minimum": 0, "maximum": 1}},
    {"name": "classes", "in": "query", "schema": {"type": "string"}, "description": "numbers or names, with commas"},
    {"name": "size", "in": "query", "schema": {"type": "integer"}, "description": "longer side of the input, pixels"},
]
_NUMBERS = ("xmin", "ymin", "xmax", "ymax", "confidence")
_ROW = {
    "type": "object",
    "properties": {
        **{name: {"type": "number"} for name in _NUMBERS},
        "class": {"type": "integer"},
        "name": {"type": "string"},
    },
}
_ROWS = {"type": "array", "items": _ROW}


def _operation(field: str, content: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    form = {"type": "object", "required": [field], "properties": {field: content}}
    error = {"type": "object", "properties": {"error": {"type": "string"}}}
    refused = {"description": "what is wrong, in one line", "content": {"application/json": {"schema": error}}}
    return {
        "parameters": _PARAMETERS,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": {"description": "the answer", "content": {"application/json": {"schema": answer}}},
            **dict.fromkeys(("400", "404", "408", "413", "415", "503"), refused),
        },
    }


DETECT = _operation("image", _FILE, _ROWS)
DETECT_BATCH = _operation("images", {"type": "array", "items": _FILE}, {"type": "array", "items": _ROWS})
ROUTES = _operation("image", _FILE, {"type": "object"})
