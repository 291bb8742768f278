"""Core ML's programs computed by PyTorch, operator by operator as Apple describes them, for machines without macOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def run_package(folder: Path, images: Tensor) -> Tensor:
    """Float32 images (B, 3, H, W) -> the package's output, with its weights as they were saved."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto import load

    model = coremltools.models.MLModel(str(folder), skip_model_load=True)
    spec = model.get_spec()
    program = load.load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    function = program.functions["main"]
    values: dict[str, Any] = {next(iter(function.inputs)): images}
    for step in function.operations:
        if step.op_type == "const":
            values[step.outputs[0].name] = _constant(step.outputs[0].val)
            continue
        given = {name: _value(one, values) for name, one in step.inputs.items()}
        results = OPERATORS[step.op_type](given)
        results = results if isinstance(results, (tuple, list)) else [results]
        values |= {output.name: result for output, result in zip(step.outputs, results, strict=True)}
    return values[function.outputs[0].name]


def _constant(value: Any) -> Any:
    """Numbers as tensors, texts and truth values as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fi":
        return torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))
    return value


def _value(one: Any, values: dict[str, Any]) -> Any:
    if isinstance(one, (tuple, list)):
        return [values[part.name] for part in one]
    return values[one.name] if one is not None else None


def _ints(value: Any) -> list[int]:
    return [int(part) for part in value]


def _conv(given: dict[str, Any]) -> Tensor:
    left, right = _ints(given["pad"])[::2], _ints(given["pad"])[1::2]
    x = given["x"]
    if given["pad_type"] == "custom":
        x = F.pad(x, [left[1], right[1], left[0], right[0]])
    else:
        assert given["pad_type"] == "valid"
    strides, dilations = _ints(given["strides"]), _ints(given["dilations"])
    return F.conv2d(x, given["weight"], given.get("bias"), strides, 0, dilations, int(given["groups"]))


def _max_pool(given: dict[str, Any]) -> Tensor:
    pad = _ints(given["pad"]) if given["pad_type"] == "custom" else [0, 0, 0, 0]
    x = F.pad(given["x"], [pad[2], pad[3], pad[0], pad[1]], value=float("-inf"))
    return F.max_pool2d(x, _ints(given["kernel_sizes"]), _ints(given["strides"]))


def _slice(given: dict[str, Any]) -> Tensor:
    assert given.get("stride") is None and given.get("begin_mask") is None
    open_ends = given.get("end_mask")
    parts = zip(_ints(given["begin"]), _ints(given["end"]), strict=True)
    ends = [slice(a, None if open_ends is not None and open_ends[i] else b) for i, (a, b) in enumerate(parts)]
    return given["x"][tuple(ends)]


def _pad(given: dict[str, Any]) -> Tensor:
    pairs = torch.as_tensor(given["pad"]).view(-1, 2).flip(0).flatten().tolist()
    assert given["mode"] == "constant"
    return F.pad(given["x"], pairs, value=float(given["constant_val"]))


def _gather(given: dict[str, Any]) -> Tensor:
    assert int(given["batch_dims"]) == 0
    axis, indices = int(given["axis"]), torch.as_tensor(given["indices"]).long()
    found = given["x"].index_select(axis, indices.flatten())
    return found.unflatten(axis, indices.shape) if indices.ndim != 1 else found


def _topk(given: dict[str, Any]) -> tuple[Tensor, Tensor]:
    assert not given["ascending"] and given["return_indices"]
    return tuple(given["x"].topk(int(given["k"]), int(given["axis"])))


def _matmul(given: dict[str, Any]) -> Tensor:
    x, y = given["x"], given["y"]
    x = x.mT if given["transpose_x"] else x
    return x @ (y.mT if given["transpose_y"] else y)


OPERATORS = {
    "add": lambda given: given["x"] + given["y"],
    "sub": lambda given: given["x"] - given["y"],
    "mul": lambda given: given["x"] * given["y"],
    "matmul": _matmul,
    "linear": lambda given: F.linear(given["x"], given["weight"], given.get("bias")),
    "conv": _conv,
    "max_pool": _max_pool,
    "silu": lambda given: F.silu(given["x"]),
    "sigmoid": lambda given: given["x"].sigmoid(),
    "softmax": lambda given: given["x"].softmax(int(given["axis"])),
    "reduce_mean": lambda given: given["x"].mean(_ints(given["axes"]), bool(given["keep_dims"])),
    "concat": lambda given: torch.cat(given["values"], int(given["axis"])),
    "split": lambda given: given["x"].split(_ints(given["split_sizes"]), int(given["axis"])),
    "reshape": lambda given: given["x"].reshape(_ints(given["shape"])),
    "transpose": lambda given: given["x"].permute(_ints(given["perm"])),
    "slice_by_index": _slice,
    "pad": _pad,
    "gather": _gather,
    "topk": _topk,
    "upsample_nearest_neighbor": lambda given: F.interpolate(
        given["x"], scale_factor=(float(given["scale_factor_height"]), float(given["scale_factor_width"]))
    ),
}
