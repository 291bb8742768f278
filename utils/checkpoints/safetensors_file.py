"""Weights as safetensors: numbers and text alone, so that a file can neither run code nor ask for more than it has.

The numbers are the model's; all else that `load_checkpoint` returns stands as JSON in the metadata. The package is
optional: without it the error names the command that installs it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.base.files import MIB, printable, replacing

ENDING = ".safetensors"
_KEY = "checkpoint"
_MISSING = "{}: needs the package safetensors, which is not installed: pip install safetensors"


def save_safetensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint's `model`, as `describe_model` returns it, and its other values, which are builtins."""
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ValueError(_MISSING.format(path)) from error
    state = {key: value.contiguous() for key, value in content["model"]["state_dict"].items()}
    rest = {**content, "model": {key: value for key, value in content["model"].items() if key != "state_dict"}}
    with replacing(path, durable=True) as beside:
        save_file(state, beside, {_KEY: json.dumps(rest, ensure_ascii=False)})


def load_safetensors(path: Path) -> dict[str, Any]:
    """Read what `save_safetensors` wrote, on the CPU. Raises ValueError, one line, for any other file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ValueError(_MISSING.format(path)) from error
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(_KEY, "")
            content = json.loads(text) if 0 < len(text) <= MIB else None
            if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
                raise ValueError("its metadata describe no model")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it has no other way
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = printable(" ".join(str(error).split())[:120]) or type(error).__name__
        remedy = "write one with export.py --include safetensors"
        raise ValueError(f"{path}: is no checkpoint of this project, or a damaged one ({reason}); {remedy}") from error
    content["model"]["state_dict"] = state
    return content
