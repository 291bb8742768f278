"""How long one whole training step takes, next to other ways of doing it, and where the time goes.

    python -m benchmarks.train_step                                  layouts, precisions, with and without BRA
    python -m benchmarks.train_step --reference bra_reference.py     and with the attention of that file

A step is what `utils.training.trainer` does with a batch: forward, loss, backward, optimiser, weight average. A ratio
says how many times faster the first of two is, from rounds that run all of them in turn in one process.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from utils.training.average import ModelEMA
from utils.training.loss import ComputeLoss
from utils.training.optim import Schedule, build_optimizer, choose_recipe
from utils.training.precision import Precision
from utils.training.trainer import EpochSettings, Trainer

PARTS = ("forward", "loss", "backward", "step")
LAYER_NOTES = ("i", "f", "np", "type")  # what a model keeps at each of its layers
TOLERANCE = 1e-4
LABELS_PER_PICTURE = 8


class Timed:
    """Calls what it wraps and adds up the seconds, waiting for the device before and after."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.seconds = call, 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = time_sync()
        result = self.call(*arguments)
        self.seconds += time_sync() - start
        return result


class TrainingStep:
    """One model on one batch in one precision; calling it trains for one step.

    Step sizes are tiny, so that every round finds the same weights, up to a hair.
    """

    def __init__(
        self, model: Model, images: Tensor, targets: Tensor, amp: str = "off", channels_last: bool = True
    ) -> None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        device = images.device
        self.images, self.targets = images.contiguous(memory_format=layout), targets
        hyp = Hyp.load(check_yaml("hyp.default.yaml"))
        model = copy.deepcopy(model).to(device, memory_format=layout).train()
        model.hyp = asdict(hyp.scaled(model.model[-1].nl, model.nc, images.shape[-1]))
        recipe = replace(choose_recipe("auto", hyp, 1, len(images)), lr=1e-9)
        self.trainer = Trainer(
            model,
            model,
            ComputeLoss(model),
            build_optimizer(model, recipe),
            Schedule(hyp, recipe, 1, 1, len(images)),
            ModelEMA(model, tau=hyp.ema_tau),
            Precision.choose(amp, device),
            EpochSettings(1, images.shape[-1], int(model.stride.max()), clip_norm=hyp.clip_norm),
            Callbacks(),
        )

    def __call__(self) -> None:
        """One step, waited for."""
        self.trainer.backward(self.images, self.targets)
        self.trainer.step()
        time_sync()

    def seconds_by_part(self) -> tuple[float, ...]:
        """One step, taken apart: seconds of forward, loss, backward, and of optimiser with weight average."""
        trainer = self.trainer
        net, loss = trainer.net, trainer.loss
        trainer.net, trainer.loss = forward, criterion = Timed(net), Timed(loss)
        try:
            start = time_sync()
            trainer.backward(self.images, self.targets)
            middle = time_sync()
            trainer.step()
            end = time_sync()
        finally:
            trainer.net, trainer.loss = net, loss
        backward = middle - start - forward.seconds - criterion.seconds
        return forward.seconds, criterion.seconds, backward, end - middle


def batch_of(count: int, imgsz: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Noise pictures (count, 3, imgsz, imgsz) in 0..1 and small boxes on them, the same every time."""
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, imgsz, imgsz, generator=rng)
    labels = count * LABELS_PER_PICTURE
    image = torch.arange(count).repeat_interleave(LABELS_PER_PICTURE)[:, None].float()
    kind = torch.randint(classes, (labels, 1), generator=rng).float()
    sides = torch.empty(labels, 2).uniform_(0.04, 0.4, generator=rng)
    centres = sides / 2 + torch.rand(labels, 2, generator=rng) * (1 - sides)
    return images.to(device), torch.cat((image, kind, centres, sides), 1).to(device)


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
    """Between the raw predictions (logits) of two models on the same pictures, in training mode.

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
    images, targets = batch_of(options.batch, options.imgsz, min(model.nc, plain.nc), device)
    steps = {
        "float32": TrainingStep(model, images, targets),
        "contiguous": TrainingStep(model, images, targets, channels_last=False),
        "bf16": TrainingStep(model, images, targets, amp="bf16"),
        "plain": TrainingStep(plain, images, targets),
    }
    pairs = [("float32", "contiguous"), ("bf16", "float32"), ("float32", "plain")]
    if device.type == "cuda":
        steps["fp16"] = TrainingStep(model, images, targets, amp="fp16")
        pairs.append(("fp16", "float32"))
    if options.reference:
        rival = with_reference_attention(model, options.reference)
        check_same(model, rival, images)
        steps["reference"] = TrainingStep(rival, images, targets)
        pairs.append(("float32", "reference"))
    return steps, pairs


def compare(options: argparse.Namespace) -> None:
    """Run everything and print the two tables."""
    device = select_device(options.device)
    print(
        f"{options.cfg} and, as plain, {options.plain}: {options.batch} pictures of {options.imgsz} px, "
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
        parts = [statistics.median(column) for column in zip(*(step.seconds_by_part() for _ in range(options.rounds)))]
        shares = " ".join(f"{100 * part / sum(parts):9.1f}" for part in parts)
        print(f"{name:>12} {1000 * statistics.median(seconds[name]):8.1f} {shares}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m benchmarks.train_step", description=__doc__.split("\n")[0])
    parser.add_argument("--cfg", default="yolov5n_BiFormer.yaml", help="model with BRA")
    parser.add_argument("--plain", default="yolov5n.yaml", help="the model without")
    parser.add_argument("--reference", type=Path, help="Python file with the BiLevelRoutingAttention to compare with")
    parser.add_argument("--imgsz", type=int, default=320, help="side of the pictures, a multiple of 32")
    parser.add_argument("--batch", type=int, default=16, help="pictures in a step")
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
