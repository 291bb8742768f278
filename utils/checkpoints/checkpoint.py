"""Checkpoints in and out, without ever running what a file says.

What is written is a mapping of tensors and builtins. What is read goes through `torch.load(weights_only=True)`. The
checkpoints of YOLOv5 6.1, which are pickled modules, are read with an inert stand-in for every class on a written-out
list: no constructor and no method of theirs runs, their fields are only looked at.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.base.files import MIB, printable, replacing
from utils.base.log import LOGGER
from utils.checkpoints.pickle_check import check_pickle
from utils.checkpoints.safetensors_file import ENDING, load_safetensors
from utils.checkpoints.torch_zip import read_record, read_records

FORMAT = "yolov5-biformer-1"
MAX_PICKLE = 64 * MIB  # everything but the numbers; YOLOv5's largest training checkpoint has less than one
MAX_STRIDES = 100
MAX_REPEATED = MIB  # bytes of an expanded tensor, beyond what it really has

_ROUTING = "BiLevelRoutingAttention KVGather QKVLinear TopkRouting"
_RARE = "CrossConv MixConv2d Sum"
_PYRAMID = "BiFormerBlock BiFormerMerging BiFormerStage BiFormerStem C3BRA DropPath GlobalAttention"
_BLOCKS = f"""
    {_ROUTING} Bottleneck BottleneckCSP C3 C3Ghost C3SPP C3TR Classify Concat Contract Conv DWConv Expand Focus
    GhostBottleneck GhostConv SPP SPPF TransformerBlock TransformerLayer
"""
_TORCH = """
    activation.GELU activation.Hardswish activation.LeakyReLU activation.Mish activation.MultiheadAttention
    activation.ReLU activation.ReLU6 activation.SiLU activation.Sigmoid activation.Softmax activation.Tanh
    batchnorm.BatchNorm2d batchnorm.SyncBatchNorm container.ModuleList container.Sequential conv.Conv2d
    conv.ConvTranspose2d dropout.Dropout flatten.Flatten linear.Identity linear.Linear
    linear.NonDynamicallyQuantizableLinear normalization.LayerNorm padding.ZeroPad2d pooling.AdaptiveAvgPool2d
    pooling.AdaptiveMaxPool2d pooling.AvgPool2d pooling.MaxPool2d upsampling.Upsample
"""
PICKLED_CLASSES = (
    *(f"models.common.{name}" for name in _BLOCKS.split()),
    *(f"models.{file}.{name}" for file in ("experimental", "extra_blocks") for name in _RARE.split()),
    *(f"models.{file}.{name}" for file in ("attention", "bra.attention") for name in _ROUTING.split()),
    *(f"models.biformer.{name}" for name in _PYRAMID.split()),
    *("models.bra_modes.KVDownsample", "models.bra.modes.KVDownsample"),  # before the rooms, and since
    *("models.pointwise.PointwiseLinear", "models.bra.attention.PointwiseLinear"),
    *(f"models.yolo.{name}" for name in ("Detect", "DetectionModel", "Model")),
    *(f"torch.nn.modules.{name}" for name in _TORCH.split()),
)
_ARRAY, _NUMBER, _KIND = "multiarray._reconstruct", "multiarray.scalar", "numpy.dtype"
_NUMPY = (
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in (_ARRAY, _NUMBER)),
    *("numpy.ndarray", _KIND),
)
_UNREADABLE = (
    OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError, MemoryError,
    ArithmeticError, struct.error, pickle.UnpicklingError, NotImplementedError,
)  # fmt: skip


class Pickled:
    """Stands in for an object of a class named in a pickle: it takes no arguments and keeps the fields as they are."""

    path = ""

    def __setstate__(self, state: Any) -> None:
        self.fields: dict[str, Any] = state if isinstance(state, dict) else {}

    def modules(self, name: str, depth: int) -> Iterator[tuple[str, Pickled]]:
        """It and the modules in it, each after the name that it has in the whole."""
        if depth > 32:
            raise ValueError("modules nested without end")
        yield name, self
        for key, child in self.part("_modules").items():
            if isinstance(child, Pickled):
                yield from child.modules(f"{name}.{key}".lstrip("."), depth + 1)

    def part(self, name: str) -> dict[str, Any]:
        """A field that is a mapping (`_parameters`, `_buffers`, `_modules`), empty if it is not there."""
        found = getattr(self, "fields", {}).get(name)
        return dict(found) if isinstance(found, Mapping) else {}


class PickledNumpy:
    """Stands in for numpy's functions: a call and the state given to its result are kept, and read by `value`."""

    path = ""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> np.ndarray | np.generic:
        """The array or number; raises ValueError for one that does not consist of plain numbers."""
        if self.path.endswith(_NUMBER):
            (kind, raw), shape, is_fortran = self.args, tuple[int, ...](), False
        elif self.path.endswith(_ARRAY):
            _, shape, kind, is_fortran, raw = self.state
        else:
            raise ValueError(f"a pickled {self.path} without numbers")
        name, byte_order = str(kind.args[0]), str(kind.state[1])
        if not re.fullmatch(r"[biuf][1248]", name) or byte_order not in "<>|=" or not isinstance(raw, bytes):
            raise ValueError(f"a numpy array of {name}; only plain numbers are read")
        array = np.frombuffer(raw, byte_order + name).reshape(shape, order="F" if is_fortran else "C")
        return array[()] if shape == () else array  # numpy's number, as it was


# -------------------------------------------------------------------------------------------------------- reading
def load_checkpoint(path: str | Path, classes: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint of ours or of YOLOv5 6.1, on the CPU; models become what `describe_model` returns.

    `classes` are dotted names of further classes that pickled modules may have. Raises ValueError, one line with the
    remedy, for a file that is missing, truncated, no checkpoint, or names a class or function that is not allowed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"{path}: there is no such checkpoint; train one, or give the path of a .pt file")
    if path.suffix == ENDING:
        return load_safetensors(path)
    try:
        named = [
            *((name, Pickled) for name in (*PICKLED_CLASSES, *classes)),
            *((name, PickledNumpy) for name in _NUMPY),
        ]
        allowed: list[Any] = [(type(name.rpartition(".")[2], (kind,), {"path": name}), name) for name, kind in named]
        _check_content(path, {name for _, name in allowed})
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, Mapping):
            return {
                str(key): _describe_pickled(value) if isinstance(value, Pickled) else _plain(value, str(key))
                for key, value in content.items()
            }
    except _UNREADABLE as error:
        raise ValueError(f"{path}: {_reason(error)}") from error
    raise ValueError(f"{path}: holds {type(content).__name__}, not a checkpoint; expected a mapping with a model")


def _check_content(path: Path, allowed: Collection[str]) -> None:
    """Compare the parts of a file with each other before torch believes them.

    Raises ValueError for what cannot be: an archive that readers could take for two, a pickle that asks too much.
    """
    size = path.stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    with path.open("rb") as file:
        if (start := file.read(2)) != b"PK":  # the format before PyTorch 1.6: five pickles, then the numbers
            programs = io.BytesIO(start + file.read(MAX_PICKLE))
            for _ in range(5):
                check_pickle(programs, allowed, {}, size)
            return
    records = read_records(path)
    found = {record.name.partition("/")[2]: record for record in records}
    if any(name.rpartition("/")[2] == "constants.pkl" for name in found):
        raise ValueError("TorchScript")
    if "data.pkl" not in found or found["data.pkl"].size > MAX_PICKLE:
        raise ValueError(f"no pickle of at most {MAX_PICKLE >> 20} MiB in it")
    sizes = {name.removeprefix("data/"): part.size for name, part in found.items() if name.startswith("data/")}
    check_pickle(io.BytesIO(read_record(path, found["data.pkl"])), allowed, sizes, 0)


def _reason(error: BaseException) -> str:
    """One line on why a file was not read."""
    text = str(error)
    if named := re.search(r"\bGLOBAL ([\w.]+)", text):
        return (
            f"refused: it would use {named[1][:100]}, which is not on the list of allowed classes and could run code; "
            "save its state_dict() with the program that wrote it"
        )
    lines = text.rpartition("WeightsUnpickler error:")[2].strip().splitlines()
    cause = printable(lines[0].partition(". ")[0][:120]) if lines else type(error).__name__
    if isinstance(error, (LookupError, EOFError, pickle.UnpicklingError, struct.error)):
        cause = "not in PyTorch's file format"
    if "TorchScript" in text:
        cause = "a TorchScript archive"
    return f"is no checkpoint, or a damaged one ({cause}); expected a .pt file of this project or YOLOv5 6.1"


def _describe_pickled(model: Pickled) -> dict[str, Any]:
    """`describe_model` for a pickled module; `classes` has besides the class of every module in it."""
    state: dict[str, Tensor] = {}
    classes: dict[str, str] = {}
    for name, module in model.modules("", 0):
        classes[name] = module.path
        skipped = module.fields.get("_non_persistent_buffers_set") or ()
        tensors = {**module.part("_parameters"), **module.part("_buffers")}
        tensors.pop("anchor_grid", None)  # older releases kept the anchors in pixels too
        for key, tensor in tensors.items():
            if isinstance(tensor, Tensor) and key not in skipped:
                state[f"{name}.{key}".lstrip(".")] = _plain_tensor(tensor, str(key))
    fields = model.fields
    description = {key: _plain(fields.get(key), key) for key in ("yaml", "nc", "names", "hyp", "inplace")}
    stride = fields.get("stride", ())
    if len(stride) > MAX_STRIDES:
        raise ValueError(f"{len(stride)} strides")
    return {**description, "stride": [float(value) for value in stride], "state_dict": state, "classes": classes}


# -------------------------------------------------------------------------------------------------------- writing
def describe_model(model: nn.Module) -> dict[str, Any]:
    """All that is needed to build the model again: its description, classes, strides and a copy of its state."""
    own: Any = model  # nn.Module declares no attributes
    names = own.names
    return {
        "yaml": _plain(own.yaml, "yaml"),
        "nc": int(own.nc),
        "names": [str(name) for name in (names.values() if isinstance(names, Mapping) else names)],
        "stride": [float(stride) for stride in own.stride],
        "hyp": _plain(own.hyp, "hyp"),
        "inplace": bool(own.inplace),
        "state_dict": {key: value.detach().cpu().clone() for key, value in model.state_dict().items()},
    }


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a mapping of tensors and builtins, complete or not at all: a file of that name survives a full disk.

    Numpy values, paths and dataclasses are converted. Raises ValueError for a value that cannot be and OSError when
    writing fails.
    """
    path = Path(path).resolve()
    plain = _plain({"format": FORMAT, **content}, "checkpoint")
    try:
        with replacing(path, durable=True) as beside, beside.open("wb") as file:
            torch.save(plain, file)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        kept = f"the earlier {path.name} is unchanged; " if path.exists() else ""
        cause = getattr(error, "strerror", None) or "the disk took only a part, it may be full"
        raise OSError(f"{path}: could not be written ({cause}); {kept}make room or choose another place") from error


def strip_optimizer(f: str | Path = "best.pt", s: str | Path = "") -> None:
    """Keep what inference needs of a checkpoint, the averaged model in half precision; written to `s` or back to `f`.

    Raises ValueError when there is no model in it. Files in safetensors have no optimizer and stay as they are.
    """
    if Path(f).suffix == ENDING:
        return
    content = load_checkpoint(f)
    model = content.get("ema") or content.get("model")
    if not isinstance(model, dict) or "state_dict" not in model:
        raise ValueError(f"{f}: holds no model to strip")
    for key, value in model["state_dict"].items():
        half = value.half() if value.is_floating_point() else value
        if torch.equal(half.isfinite(), value.isfinite()):  # else half precision cannot hold it
            model["state_dict"][key] = half
    nothing = dict.fromkeys(("ema", "optimizer", "updates", "best_fitness", "scaler") & content.keys())
    target = Path(s or f)
    save_checkpoint(target, {**content, **nothing, "epoch": -1, "model": model})
    LOGGER.info(f"Optimizer stripped from {f},{f' saved as {s},' if s else ''} {target.stat().st_size / 1e6:.1f}MB")


def _plain(value: Any, key: str) -> Any:
    """The value as tensors and builtins; raises ValueError naming the key for what has no such form."""
    if isinstance(value, PickledNumpy):
        value = value.value()
        if key == "best_fitness":  # YOLOv5 6.1 keeps an array of one number
            value = np.ravel(value)[0]
    if isinstance(value, Mapping):
        return {_plain(k, key): _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_plain(part, key) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value), key)
    return _plain_leaf(value, key)


def _plain_tensor(tensor: Tensor, key: str) -> Tensor:
    """The tensor on the CPU; ValueError for what is no plain one, or repeats its numbers until a copy fills memory."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        raise ValueError(f"checkpoint entry {key}: a tensor without plain numbers; convert it first")
    if tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), MAX_REPEATED):
        raise ValueError(f"checkpoint entry {key}: a tensor that repeats its numbers; make it contiguous first")
    return tensor.detach().cpu()


def _plain_leaf(value: Any, key: str) -> Any:
    if isinstance(value, Tensor):
        return _plain_tensor(value, key)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Path, torch.device, torch.dtype)):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return value
    raise ValueError(f"checkpoint entry {key}: {type(value).__name__} is neither tensor nor builtin; convert it first")
