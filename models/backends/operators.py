"""Compute a `torch.export` file (.pt2) from the parts of it that cannot act: numbers, and operators named on a list.

`torch.export.load` unpickles example inputs, weights and objects, evaluates expressions and guards, calls any attribute
of torch that a node names, and compiles source made of the names in the graph. None of that is needed to compute: the
graph is JSON, the weights are bytes, and every size is known once an image is there.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.backends.metadata import NOTES
from utils.base.files import MIB
from utils.checkpoints.torch_zip import read_record, read_records

MAX_JSON = 256 * MIB  # of a graph; one of a thousand nodes has about 2 MiB
MAX_NUMBER = 1 << 62  # of sizes that are computed

_ATEN = """
    abs add add_ addcdiv addcmul addmm alias amax amin arange argmax argmin avg_pool1d avg_pool2d baddbmm batch_norm
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d bitwise_and bitwise_not bitwise_or bmm broadcast_tensors
    cat ceil celu chunk clamp clamp_ clamp_max clamp_min clone concat constant_pad_nd contiguous conv1d conv2d
    conv_transpose2d convolution copy copy_ cos cumsum detach detach_ div div_ dropout einsum elu eq exp exp_ expand
    expand_as feature_dropout flatten flip floor floor_divide full full_like gather ge gelu glu group_norm gt
    hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ index index_put index_select instance_norm
    layer_norm le leaky_relu leaky_relu_ lift_fresh_copy linear linspace log log1p log_softmax logical_and logical_not
    logical_or lt masked_fill masked_fill_ matmul max max_pool1d max_pool2d maximum mean meshgrid min minimum mish mish_
    movedim mul mul_ narrow native_batch_norm native_group_norm native_layer_norm ne neg new_full new_ones new_zeros
    numpy_T ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu prod reciprocal reflection_pad2d relu
    relu6 relu6_ relu_ remainder repeat repeat_interleave replication_pad2d reshape reshape_as roll round rsqrt rsub
    scalar_tensor scaled_dot_product_attention scatter select selu sigmoid sigmoid_ sign silu silu_ sin slice softmax
    softplus sort split split_with_sizes sqrt squeeze stack std sub sub_ sum sym_numel sym_size sym_stride t tanh tanh_
    tile to topk transpose tril triu type_as unbind unflatten unfold unsqueeze upsample_bicubic2d upsample_bilinear2d
    upsample_nearest2d var view view_as where zeros zeros_like _softmax _to_copy _unsafe_view
"""
ATEN = frozenset(_ATEN.split())
CHECKS = frozenset(  # of sizes and types when the graph was made; nothing comes of them
    "_assert_async _assert_scalar _assert_tensor_metadata promote_types sym_constrain_range "
    "sym_constrain_range_for_size".split()
)
NUMBERS: Mapping[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in "add sub mul floordiv truediv mod neg".split()},
    **{f"_operator.{name}": getattr(operator, name) for name in "eq ne lt le gt ge and_ or_ not_".split()},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{"torch.sym_max": max, "torch.sym_min": min, "torch.sym_int": int, "torch.sym_float": float},
    "torch.sym_not": operator.not_,
}
_NUMERIC = "uint8 int8 int16 int32 int64 float16 float32 float64".split()
_DTYPES = {i: getattr(torch, name) for i, name in enumerate(_NUMERIC, 1)} | {12: torch.bool, 13: torch.bfloat16}
_STRIDED = 7
_CONSTANTS: Mapping[str, Mapping[int, Any]] = {
    "as_scalar_type": _DTYPES,
    "as_memory_format": {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format},
    "as_layout": {_STRIDED: torch.strided},
}
_SYMBOLS = ("as_sym_int", "as_sym_float", "as_sym_bool")
_HELD = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}


class NotListed(ValueError):
    """The file needs something that could act; the message says what."""


class _Name(NamedTuple):
    """A value that the graph has computed by then."""

    name: str


class _Step(NamedTuple):
    """One node: what is called with what, the results' names (None: not wanted), and what is needed no more."""

    function: Callable[..., Any]
    arguments: list[Any]
    keywords: dict[str, Any]
    results: list[Any]
    spread: bool
    over: list[str]


class Graph:
    """A list of operators, each on the results of earlier ones; `graph` is the JSON of `torch.export`."""

    def __init__(self, graph: Mapping[str, Any], device: torch.device) -> None:
        self.device = device
        ends: list[list[str]] = []
        for given in (graph["inputs"], graph["outputs"]):
            if other := {str(kind) for one in given for kind in one if len(one) > 1 or kind != "as_tensor"}:
                raise NotListed(f"an input or output that is no tensor ({min(other)[:40]})")
            ends.append([str(one["as_tensor"]["name"]) for one in given])
        self.inputs, self.outputs = ends
        steps = [step for node in graph["nodes"] if (step := self._step(node)) is not None]
        self.steps: list[_Step] = []
        alive = set(self.outputs)
        for step in reversed(steps):
            used = {*_names(step.arguments), *_names(step.keywords.values()), *_names(step.results)}
            self.steps.append(step._replace(over=sorted(used - alive)))
            alive |= used
        self.steps.reverse()

    def __call__(self, *given: Any) -> tuple[Any, ...]:
        """The outputs for inputs in their order."""
        values = dict(zip(self.inputs, given, strict=True))
        for step in self.steps:
            keywords = {key: _filled(part, values) for key, part in step.keywords.items()}
            found = step.function(*_filled(step.arguments, values), **keywords)
            _keep(step.results, found if step.spread else [found], values)
            for name in step.over:
                values.pop(name, None)
        return tuple(values[name] for name in self.outputs)

    def _step(self, node: Mapping[str, Any]) -> _Step | None:
        """A node as what is called; None for one that only checks. Raises NotListed for anything else."""
        target, function = str(node["target"]), None
        found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.([A-Za-z]\w*)", target)
        if found is None:
            function = CALLS.get(target)
        elif found[1] in CHECKS:
            return None
        elif found[1] in ATEN:
            overload = getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
            function = overload if isinstance(overload, torch._ops.OpOverload) else None
        if function is None:
            raise NotListed(f"the operator {target[:100]}")
        arguments = [self._argument(given["arg"]) for given in node["inputs"] if not given["name"]]
        keywords = {str(given["name"]): self._argument(given["arg"]) for given in node["inputs"] if given["name"]}
        if target in NUMBERS:  # their arguments have names of no meaning
            arguments, keywords = [*arguments, *keywords.values()], {}
        results = [_results(output) for output in node["outputs"]]
        return _Step(function, arguments, keywords, results, len(results) > 1 or target in BLOCKS, [])

    def _argument(self, given: Mapping[str, Any]) -> Any:
        """A value, a `_Name` for one that is computed, or a list of these."""
        ((kind, value),) = given.items()
        if kind == "as_device":
            return self.device
        if kind == "as_graph":
            return Graph(value["graph"], self.device)
        if kind == "as_optional_tensors":
            return [self._argument(part) for part in value]
        if kind in _CONSTANTS and value in _CONSTANTS[kind]:
            return _CONSTANTS[kind][value]
        if kind not in _READERS:
            raise NotListed(f"an argument of the kind {str(kind)[:40]}")
        return _READERS[kind](value)


class Program:
    """A `.pt2` file: its graph with its weights on a device, and `notes`, what our exporter wrote beside them.

    Raises NotListed for a file that needs what could act, ValueError and what json, torch and look-ups raise for one
    that is damaged.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        self.file, self.records = file, {part.name.partition("/")[2]: part for part in read_records(file)}
        self.notes = self._read(f"extra/{NOTES}").decode() if f"extra/{NOTES}" in self.records else ""
        if [name for name in self.records if name.startswith("models/")] != ["models/model.json"]:
            raise NotListed("another model than one of the name `model`")
        module = json.loads(self._read("models/model.json"))["graph_module"]
        tensors = {**self._tensors("constants", device), **self._tensors("weights", device)}
        self.graph = Graph(module["graph"], device)
        self.fixed = _inputs(module["signature"], tensors)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> the first output."""
        return self.graph(*(images if tensor is None else tensor for tensor in self.fixed))[0]

    def _read(self, name: str) -> bytes:
        record = self.records[name]
        if record.size > MAX_JSON and not name.startswith("data/"):
            raise ValueError(f"{name} has {record.size:,} bytes")
        return read_record(self.file, record)

    def _tensors(self, kind: str, device: torch.device) -> dict[str, Tensor]:
        """The weights, or the constants, by name; those that share bytes share them here."""
        found: dict[str, Tensor] = {}
        read: dict[str, Tensor] = {}
        for name, entry in json.loads(self._read(f"data/{kind}/model_{kind}_config.json"))["config"].items():
            place, meta = str(entry["path_name"]), entry["tensor_meta"]
            if entry["use_pickle"] or not place.startswith(("weight_", "tensor_")) or meta["layout"] != _STRIDED:
                raise NotListed(f"a pickle or an object among its {kind}")
            dtype = _DTYPES[meta["dtype"]]
            if place not in read:
                content = bytearray(self._read(f"data/{kind}/{place}"))
                read[place] = torch.frombuffer(content, dtype=torch.uint8).clone() if content else torch.empty(0).byte()
            sizes, strides = ([int(side["as_int"]) for side in meta[key]] for key in ("sizes", "strides"))
            flat = read[place].view(dtype)
            found[name] = flat.as_strided(sizes, strides, int(meta["storage_offset"]["as_int"])).to(device)
        return found


def _inputs(signature: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Tensor | None]:
    """The tensors that are a graph's inputs, with None in the one place of the images."""
    specs = [next(iter(spec.items())) for spec in signature["input_specs"]]
    kinds, outputs = [kind for kind, _ in specs], {kind for spec in signature["output_specs"] for kind in spec}
    if kinds.count("user_input") != 1 or outputs != {"user_output"}:
        raise NotListed("another signature than one tensor of images")
    if other := set(kinds) - {"user_input", *_HELD}:
        raise NotListed(f"an input of the kind {min(other)[:40]}")
    return [tensors[spec[_HELD[kind]]] if kind in _HELD else None for kind, spec in specs]


def _symbol(value: Mapping[str, Any]) -> Any:
    """A tensor or number that is computed, or a number."""
    ((kind, content),) = value.items()
    if kind in ("name", "as_name"):
        return _Name(str(content))
    if kind not in ("as_int", "as_float", "as_bool"):
        raise NotListed(f"a number of the kind {str(kind)[:40]}")
    return content


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "as_none": lambda value: None,
    **dict.fromkeys(("as_int", "as_bool", "as_string", "as_ints", "as_bools"), lambda value: value),
    "as_float": float,
    "as_floats": lambda value: [float(part) for part in value],
    **dict.fromkeys(("as_tensor", *_SYMBOLS), _symbol),
    **dict.fromkeys(
        ("as_tensors", *(f"{kind}s" for kind in _SYMBOLS)), lambda value: [_symbol(part) for part in value]
    ),
}


def _results(output: Mapping[str, Any]) -> Any:
    """The `_Name` of an output, a list of them, or None."""
    ((kind, value),) = output.items()
    if kind not in ("as_none", "as_tensors", "as_tensor", *_SYMBOLS):
        raise NotListed(f"an output of the kind {str(kind)[:40]}")
    return _READERS[kind](value)


def _names(parts: Any) -> Iterator[str]:
    """The names in a list of arguments or results."""
    for part in parts:
        if isinstance(part, _Name):
            yield part.name
        elif isinstance(part, list):
            yield from _names(part)


def _filled(part: Any, values: Mapping[str, Any]) -> Any:
    """An argument, or a list of them, with values in place of names."""
    if type(part) is _Name:
        return values[part.name]
    return [_filled(one, values) for one in part] if type(part) is list else part


def _keep(results: list[Any], found: Any, values: dict[str, Any]) -> None:
    """Give results their names."""
    for result, value in zip(results, found, strict=bool(results)):
        if isinstance(result, list):
            _keep(result, value, values)
        elif result is not None:
            values[result.name] = value


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a few numbers, whose result is no larger than a size can be."""

    def compute(*given: Any) -> Any:
        """Raise ValueError for tensors and for huge results."""
        if not all(isinstance(value, (int, float)) for value in given):
            raise ValueError("a size that is no number")
        found = function(*given)
        if abs(found) > MAX_NUMBER:
            raise ValueError(f"a size above {MAX_NUMBER}")
        return found

    return compute


def _autocast(kind: str, dtype: torch.dtype, enabled: bool, cache: bool, body: Graph, *given: Any) -> Any:
    """A part of the graph in other precision, or expressly not."""
    with torch.autocast(kind, dtype, enabled, cache):
        return body(*given)


BLOCKS: Mapping[str, Callable[..., Any]] = {  # parts of the graph in another mode; there are no gradients here
    "torch.ops.higher_order.wrap_with_autocast": _autocast,
    "torch.ops.higher_order.wrap_with_set_grad_enabled": lambda enabled, body, *given: body(*given),
}
CALLS = {target: _bounded(function) for target, function in NUMBERS.items()} | {**BLOCKS}
