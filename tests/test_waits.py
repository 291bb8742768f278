"""How often a GPU is waited for: the real trainer, suppression and loss on a pretended one, which has no numbers.

A wait empties the queue of a GPU's work, and a copy that is not asynchronous waits as well. Here tensors on "cuda" are
PyTorch's fake ones; mixing them with others is an error of theirs. Stand-ins answer where the device would be asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from models.yolo import Model
from utils.base.callbacks import Callbacks
from utils.base.config import Hyp
from utils.data.samplers import Batch
from utils.predict.pipeline import Clock, Suppression, find_objects
from utils.training.loss import ComputeLoss, constant
from utils.training.optim import ModelEMA, Recipe, Schedule, build_optimizer
from utils.training.precision import Precision
from utils.training.trainer import EpochSettings, Position, Trainer

CUDA = torch.device("cuda:0")
SIDE, FOUND = 64, 40  # pixels; candidates that the pretended GPU finds
MODELS = ["yolov5n.yaml", "yolov5n_BiFormer.yaml", "yolov5s.yaml", "yolov5s_BiFormer.yaml"]


class Pretended(TorchDispatchMode):
    """Runs what concerns "cuda" on fake tensors, all else as it is, and counts waits, blocking copies and operators."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits, self.copies, self.operators = Counter[str](), Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        from_gpu = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        to_gpu = torch.device(kwargs.get("device") or ("cuda" if from_gpu else "cpu")).type == "cuda"
        if not (from_gpu or to_gpu):
            with _disable_current_modes():
                return func(*args, **kwargs)
        self.operators[name] += 1
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], to_gpu) if name == "_to_copy" else (args[1], isinstance(args[0], FakeTensor))
            if isinstance(source, FakeTensor) and not target:
                self.waits["copy"] += 1
                with _disable_current_modes():
                    return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
            if not isinstance(source, FakeTensor) and target and source.ndim:
                self.copies["asynchronous" if kwargs.get("non_blocking") else "blocking"] += 1
                if name == "_to_copy":
                    with self.fake:
                        return torch.empty(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=CUDA)
        answers = {
            "nonzero": lambda: torch.zeros(FOUND, tensors[0].ndim, dtype=torch.long, device=CUDA),
            "nms": lambda: torch.zeros(FOUND // 2, dtype=torch.long, device=CUDA),
        }
        if name == "_local_scalar_dense":
            self.waits["item"] += 1
            return 1
        with self.fake:
            if name in answers:
                self.waits[name] += 1
                return answers[name]()
            return func(*args, **kwargs)


def on_pretended_gpu(model: Model, gpu: Pretended) -> Model:
    """Replace every tensor of a model by a fake one on the GPU."""

    def moved(tensor: Tensor) -> Tensor:
        with gpu.fake:
            layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA, memory_format=layout)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = None if parameter is None else nn.Parameter(moved(parameter))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else moved(buffer)
    model.stride = model.model[-1].stride = moved(model.stride)
    return model


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    """A GPU that PyTorch believes in; gradients come from nowhere, as autograd asks a real one for its streams."""

    class Mark:
        def __init__(self, enable_timing: bool) -> None:
            self.record = lambda stream: None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *given, **more: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda device: None)
    torch._C._ensureCUDADeviceGuardSet()
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "Event", Mark)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    lifting = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    constant.cache_clear()
    with Pretended() as pretended:
        yield pretended
    constant.cache_clear()
    torch._C._set_only_lift_cpu_tensors(lifting)


def batch_of(count: int) -> Batch:
    targets = torch.tensor([[image, image % 3, 0.5, 0.5, 0.2, 0.3] for image in range(count) for _ in range(3)])
    names = tuple(f"{image}.jpg" for image in range(count))
    return Batch(torch.zeros(count, 3, SIDE, SIDE, dtype=torch.uint8), targets, names, ())


@pytest.mark.parametrize("cfg, amp", zip(MODELS, ["bf16", "fp16", "fp16", "bf16"], strict=True))
def test_a_training_step_waits_once(cfg: str, amp: str, gpu: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    with _disable_current_modes():
        model = Model(cfg, verbose=False).train()
    model.hyp = asdict(Hyp().scaled(model.model[-1].nl, model.nc, SIDE))
    on_pretended_gpu(model, gpu)

    def backward(loss: Tensor) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(Tensor, "backward", backward)
    hyp, recipe = Hyp(warmup_epochs=0, nominal_batch=4), Recipe("AdamW", 1e-3, 0.9, 0.0005)
    one = Trainer(
        model, model, ComputeLoss(model, shared=True), build_optimizer(model, recipe), Schedule(hyp, recipe, 1, 3, 4),
        ModelEMA(model), Precision.choose(amp, CUDA), EpochSettings(1, SIDE, 32), Callbacks(),
    )  # fmt: skip
    for count in (gpu.waits, gpu.copies, gpu.operators):
        count.clear()
    steps = 2
    one.epoch([batch_of(4)] * steps, Position())
    assert gpu.waits == {"copy": steps}
    assert gpu.copies["blocking"] == 3, "the mean so far, once an epoch, and two constants, once a run"
    assert gpu.copies["asynchronous"] == 2 * steps  # images and targets
    layers = sum(isinstance(module, nn.SiLU) for module in model.modules())
    assert layers > 50 and gpu.operators["silu"] == layers * steps and not gpu.operators["silu_"]
    assert gpu.operators["clone"] < layers * steps / 2, "activations are not copied"


@pytest.mark.parametrize("cfg, images", zip(MODELS, [1, 32, 2, 3], strict=True))
def test_a_batch_of_validation_waits_three_times(cfg: str, images: int, gpu: Pretended) -> None:
    with _disable_current_modes():
        model = Model(cfg, verbose=False).eval()
    model.hyp = asdict(Hyp().scaled(model.model[-1].nl, model.nc, SIDE))
    on_pretended_gpu(model, gpu)
    loss, settings, clock = ComputeLoss(model), Suppression(0.001, 0.6, multi_label=True, max_det=300), Clock()
    for number in range(2):
        for count in (gpu.waits, gpu.copies):
            count.clear()
        batch = batch_of(images)
        with torch.no_grad():
            found, (_, raw) = find_objects(model, batch.images, settings, clock, CUDA)
        loss(raw, batch.targets.to(CUDA, non_blocking=True))
        assert len(found) == images and all(rows.device.type == "cpu" for rows in found) and len(clock.moments) > number
        assert gpu.waits == {"nonzero": 1, "nms": 1, "copy": 1}
    assert gpu.copies == {"asynchronous": 2}


def test_waits_copies_and_mixing_are_seen(gpu: Pretended) -> None:
    """What the tests above would not forgive."""
    there, here = torch.zeros(4, device=CUDA), torch.ones(4)
    assert not gpu.waits and not gpu.copies
    bool(there[0]), there.cpu(), there.nonzero()
    assert gpu.waits == {"copy": 1, "item": 1, "nonzero": 1}
    here.to(CUDA), there.copy_(here), torch.tensor([1.0, 2.0], device=CUDA), here.to(CUDA, non_blocking=True)
    assert gpu.copies == {"blocking": 3, "asynchronous": 1}
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(DynamicOutputShapeException):
        there[there > 0]
