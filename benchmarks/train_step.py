"""How long one whole training step takes, next to other ways of doing it, and where the time goes.

    python -m benchmarks.train_step                                  layouts, precisions, with and without BRA
    python -m benchmarks.train_step --reference bra_reference.py     and with the attention of that file

A step is what `utils.training.trainer` does with a batch: forward, loss, backward, optimiser, weight average. A ratio
says how many times faster the first of two is, from rounds that run all of them in turn in one process.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bra import build
from benchmarks.pairing import interleave, median_ratio
from models.bra.attention import BiLevelRoutingAttention
from models.yolo import Model
from utils.base.callbacks import Callbacks
from utils.base.config import Hyp
from utils.base.devices import select_device, time_sync
from utils.base.networks import copy_attr
from utils.base.options import Parser
from utils.base.paths import check_yaml
from utils.data.samplers import Batch
from utils.training.loss import ComputeLoss
from utils.training.optim import ModelEMA, Schedule, build_optimizer, choose_recipe
from utils.training.precision import Precision
from utils.training.trainer import EpochSettings, Position, Trainer

PARTS = ("forward", "loss", "backward", "step")
LAYER_NOTES = ("i", "f", "np", "type")  # what a model keeps at each of its layers
TOLERANCE = 1e-4
LABELS_PER_IMAGE = 8


class Timed:
    """Calls what it wraps and adds up the seconds, waiting for the device before and after."""

    def __init__(self, call: Callable[..., Any], device: torch.device) -> None:
        self.call, self.device, self.seconds = call, device, 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = time_sync(self.device)
        result = self.call(*arguments)
        self.seconds += time_sync(self.device) - start
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.call, name)


class Contiguous(nn.Module):
    """Calls a network on images that are laid out channel by channel, as PyTorch does without asking."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the raw maps."""
        return self.model(images.contiguous())


class TrainingStep:
    """One model on one batch in one precision; calling it trains for one step.

    Step sizes are tiny, so that every round finds the same weights, up to a hair.
    """

    def __init__(self, model: Model, batch: Batch, device: torch.device, amp: str = "off", last: bool = True) -> None:
        imgsz, count = batch.images.shape[-1], len(batch.images)
        hyp = Hyp.load(check_yaml("hyp.default.yaml"))
        layout = torch.channels_last if last else torch.contiguous_format
        model = copy.deepcopy(model).to(device, memory_format=layout).train()
        model.hyp = asdict(hyp.scaled(model.model[-1].nl, model.nc, imgsz))
        recipe = replace(choose_recipe("auto", hyp, 1, count), lr=1e-9)
        self.batch, self.backward_ended, self.callbacks = batch, 0.0, Callbacks()
        self.callbacks.register_action("on_train_batch_end", callback=self._note_backward)
        settings = EpochSettings(1, imgsz, int(model.stride.max()), clip_norm=hyp.clip_norm or math.inf)
        self.trainer = Trainer(
            model if last else Contiguous(model), model, ComputeLoss(model), build_optimizer(model, recipe),
            Schedule(hyp, recipe, 1, 1, count), ModelEMA(model, tau=hyp.ema_tau), Precision.choose(amp, device),
            settings, self.callbacks,
        )  # fmt: skip

    def _note_backward(self, *_: object) -> None:
        self.backward_ended = time_sync(self.trainer.precision.device)

    def __call__(self) -> None:
        """Do one step, and wait for it."""
        self.trainer.epoch([self.batch], Position())
        time_sync(self.trainer.precision.device)

    def seconds_by_part(self) -> tuple[float, ...]:
        """Do one step, taken apart: seconds of forward, loss, backward (and upload), and of optimiser with average."""
        trainer = self.trainer
        net, loss = trainer.net, trainer.loss
        device = trainer.precision.device
        forward, criterion = Timed(net, device), Timed(loss, device)
        trainer.net, trainer.loss = forward, criterion
        try:
            start = time_sync(device)
            self()
            end = time_sync(device)
        finally:
            trainer.net, trainer.loss = net, loss
        backward = self.backward_ended - start - forward.seconds - criterion.seconds
        return forward.seconds, criterion.seconds, backward, end - self.backward_ended


def batch_of(count: int, imgsz: int, classes: int) -> Batch:
    """Return noise images (count, 3, imgsz, imgsz) and small boxes on them, the same every time."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, imgsz, imgsz), generator=rng, dtype=torch.uint8)
    labels = count * LABELS_PER_IMAGE
    image = torch.arange(count).repeat_interleave(LABELS_PER_IMAGE)[:, None].float()
    kind = torch.randint(classes, (labels, 1), generator=rng).float()
    sides = torch.empty(labels, 2).uniform_(0.04, 0.4, generator=rng)
    centres = sides / 2 + torch.rand(labels, 2, generator=rng) * (1 - sides)
    return Batch(images, torch.cat((image, kind, centres, sides), 1), ("noise",) * count, ())


def with_reference_attention(model: Model, file: Path) -> Model:
    """A copy of the model in which every BRA module is the one that `file` defines, with the same weights.

    Raises ValueError when there is none to replace.
    """
    model = copy.deepcopy(model)
    ours = {name: module for name, module in model.named_modules() if isinstance(module, BiLevelRoutingAttention)}
    if not ours:
        raise ValueError("the model has no BiLevelRoutingAttention to compare with the reference's; give another --cfg")
    for name, module in ours.items():
        rival = type(build("reference", module.dim, file))(
            module.dim,
            n_win=module.n_win,
            num_heads=module.num_heads,
            qk_dim=module.qk_dim,
            qk_scale=module.scale,
            topk=module.topk,
            side_dwconv=module.lepe.kernel_size[0] if module.lepe is not None else 0,
        )
        rival.load_state_dict(module.state_dict())
        copy_attr(rival, module, include=LAYER_NOTES)
        model.set_submodule(name, rival)
    return model


def greatest_difference(one: Model, other: Model, images: Tensor) -> float:
    """Between the raw predictions (logits) of two models on the same images, in training mode.

    Batch statistics keep the signal alive through all layers; with the untrained running averages it would fade, and
    the attention's share of it with it.
    """
    with torch.no_grad():
        levels = [copy.deepcopy(model).to(images.device).train()(images) for model in (one, other)]
    return max(float((a - b).abs().max()) for a, b in zip(*levels, strict=True))


def check_same(one: Model, other: Model, images: Tensor) -> None:
    """Raise ValueError when two models do not predict the same: then a comparison of their speed means nothing."""
    # TF32 convolutions of a GPU differ by more than the tolerance from one layout to the next
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        difference = greatest_difference(one, other, images)
    if not difference <= TOLERANCE:
        raise ValueError(f"predictions with the reference attention differ by {difference:.2g} (allowed {TOLERANCE})")
    print(f"predictions with the reference attention agree, greatest difference {difference:.1e}")


def contenders(
    options: argparse.Namespace, device: torch.device
) -> tuple[dict[str, TrainingStep], list[tuple[str, str]]]:
    """Everything that is run, and the pairs (rival, baseline) to be compared."""
    torch.manual_seed(0)
    model, plain = (Model(cfg, verbose=False) for cfg in (options.cfg, options.plain))
    batch = batch_of(options.batch, options.imgsz, min(model.nc, plain.nc))
    steps = {
        "float32": TrainingStep(model, batch, device),
        "contiguous": TrainingStep(model, batch, device, last=False),
        "bf16": TrainingStep(model, batch, device, amp="bf16"),
        "plain": TrainingStep(plain, batch, device),
    }
    pairs = [("float32", "contiguous"), ("bf16", "float32"), ("float32", "plain")]
    if device.type == "cuda":
        steps["fp16"] = TrainingStep(model, batch, device, amp="fp16")
        pairs.append(("fp16", "float32"))
    if options.reference:
        rival = with_reference_attention(model, options.reference)
        check_same(model, rival, batch.images.to(device) / 255)
        steps["reference"] = TrainingStep(rival, batch, device)
        pairs.append(("float32", "reference"))
    return steps, pairs


def compare(options: argparse.Namespace) -> None:
    """Run everything and print the two tables."""
    device = select_device(options.device)
    print(
        f"{options.cfg} and, as plain, {options.plain}: {options.batch} images of {options.imgsz} px, "
        f"{options.rounds} rounds; {options.threads} threads, {device}, torch {torch.__version__}\n"
        "float32, bf16, fp16: the precision, all channels-last; contiguous: float32 without channels-last"
    )
    steps, pairs = contenders(options, device)
    seconds = interleave(steps, options.rounds)
    print(f"\n{'rival':>12} {'baseline':>12} {'ratio':>8}   times faster")
    for rival, baseline in pairs:
        print(f"{rival:>12} {baseline:>12} {median_ratio(seconds[baseline], seconds[rival]):8.2f}")
    print(f"\n{'where':>12} {'ms':>8} " + " ".join(f"{part:>9}" for part in PARTS) + "   median, shares in %")
    for name, step in steps.items():
        rounds = [step.seconds_by_part() for _ in range(options.rounds)]
        parts = [statistics.median(column) for column in zip(*rounds, strict=True)]
        shares = " ".join(f"{100 * part / sum(parts):9.1f}" for part in parts)
        print(f"{name:>12} {1000 * statistics.median(seconds[name]):8.1f} {shares}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.train_step", description=__doc__.split("\n")[0])
    parser.add_argument("--cfg", default="yolov5n_BiFormer.yaml", help="model with BRA")
    parser.add_argument("--plain", default="yolov5n.yaml", help="the model without")
    parser.add_argument("--reference", type=Path, help="Python file with the BiLevelRoutingAttention to compare with")
    parser.add_argument("--imgsz", type=int, default=320, help="side of the images, a multiple of 32")
    parser.add_argument("--batch", type=int, default=16, help="images in a step")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="", help="'cpu' or '0'; empty for the first GPU, else the CPU")
    options = parser.parse_args(arguments)
    if options.reference is not None and not options.reference.is_file():
        parser.error(f"no file {options.reference}")
    if min(options.imgsz, options.batch, options.rounds, options.threads) < 1 or options.imgsz % 32:
        parser.error("--batch, --rounds and --threads are at least 1, --imgsz a multiple of 32")
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        compare(options)
    except ValueError as error:
        parser.error(str(error))
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
