"""What runs on a CPU runs on a GPU, with the same answers: `pytest -m gpu`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import detect
import train
import val
from benchmarks import train_step
from models.bra.attention import BiLevelRoutingAttention
from models.yolo import Model
from tests.known_detector import CONFIDENCE, NAMES, expected_boxes, write_weights
from utils.base.callbacks import Callbacks
from utils.base.config import Hyp
from utils.checkpoints.checkpoint import load_checkpoint
from utils.data.samplers import Batch
from utils.drawing.writers import write_image
from utils.training.loss import ComputeLoss
from utils.training.optim import ModelEMA, Recipe, Schedule, build_optimizer
from utils.training.precision import Precision
from utils.training.trainer import EpochSettings, Position, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BASE = {"imgsz": 64, "epochs": 1, "batch_size": 4, "workers": 0, "device": "0"}


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Convolutions of float32 really compute in it: TF32 would differ from the CPU in the fourth digit."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal up to a share of the expected values' own spread."""
    difference = (found.detach().float().cpu() - expected.detach().float()).abs().max()
    assert difference <= tolerance * expected.detach().float().std(), float(difference)


# ---- the scripts
@pytest.mark.parametrize("amp", ["auto", "bf16", "off"])
def test_training(squares: Path, tiny_cfg: Path, tmp_path: Path, amp: str) -> None:
    train.run(
        data=str(squares), cfg=str(tiny_cfg), project=str(tmp_path), amp=amp, save_period=1, **BASE | {"epochs": 2}
    )
    table = pd.read_csv(tmp_path / "exp/results.csv", skipinitialspace=True)
    assert table["epoch"].tolist() == [0, 1] and np.isfinite(table.to_numpy(dtype=float)).all()
    state = load_checkpoint(tmp_path / "exp/weights/last.pt")["model"]["state_dict"]
    assert all(torch.isfinite(value.float()).all() and value.device.type == "cpu" for value in state.values())
    scaler = load_checkpoint(tmp_path / "exp/weights/epoch1.pt")["scaler"]
    assert bool(scaler) == (amp == "auto")  # float16 needs the loss scaled, bfloat16 does not


def test_resuming_takes_the_loss_scale_along(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    given = dict(data=str(squares), cfg=str(tiny_cfg), project=str(tmp_path), save_period=1, **BASE | {"epochs": 3})
    train.run(**given)
    whole = pd.read_csv(tmp_path / "exp/results.csv", skipinitialspace=True)
    train.run(resume=str(tmp_path / "exp/weights/epoch1.pt"))
    again = pd.read_csv(tmp_path / "exp/results.csv", skipinitialspace=True)
    assert again["epoch"].tolist() == [0, 1, 2] and np.isfinite(again.to_numpy(dtype=float)).all()
    losses = ["train/box_loss", "train/obj_loss", "train/cls_loss"]
    assert np.allclose(again[losses].iloc[2], whole[losses].iloc[2], rtol=0.05)


def test_batch_size_that_fits(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    train.run(data=str(squares), cfg=str(tiny_cfg), project=str(tmp_path), **BASE | {"batch_size": -1})
    assert load_checkpoint(tmp_path / "exp/weights/best.pt")["epoch"] == -1


@pytest.mark.parametrize("half", [False, True])
def test_validation(tmp_path: Path, half: bool) -> None:
    """The known detector on an image that has exactly what it finds."""
    boxes = expected_boxes()
    corners = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1) / 32
    for split in ("train", "val"):
        write_image(tmp_path / f"set/images/{split}/a.png", np.full((32, 32, 3), 90, np.uint8))
        label = tmp_path / f"set/labels/{split}/a.txt"
        label.parent.mkdir(parents=True)
        label.write_text("".join(f"1 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in corners.tolist()))
    data = tmp_path / "set/data.yaml"
    data.write_text(f"train: images/train\nval: images/val\nnames: {NAMES}\n", encoding="utf-8")
    summary, maps, speed = val.run(
        weights=str(write_weights(tmp_path / "known.pt")),
        data=str(data),
        imgsz=32,
        batch_size=1,
        workers=0,
        device="0",
        half=half,
        task="speed",  # its batches have no margin, where the detector would fire as well
        project=str(tmp_path / "val"),
    )
    assert min(summary[:4]) > 0.99 and maps[1] > 0.99 and min(speed) >= 0


@pytest.mark.parametrize("half", [False, True])
def test_detection(tmp_path: Path, half: bool) -> None:
    weights = write_weights(tmp_path / "known.pt")
    write_image(tmp_path / "in/a.png", np.full((32, 32, 3), 90, np.uint8))
    folder = detect.run(
        weights=str(weights),
        source=str(tmp_path / "in"),
        imgsz=32,
        device="0",
        half=half,
        save_txt=True,
        save_conf=True,
        project=str(tmp_path / "runs"),
    )
    rows = np.loadtxt(folder / "labels/a.txt")
    assert rows.shape == (16, 6) and set(rows[:, 0]) == {1} and np.allclose(rows[:, 5], CONFIDENCE, atol=2e-3)
    corners = rows[:, 1:3] * 32 - rows[:, 3:5] * 16
    assert np.allclose(corners, corners.round(), atol=1e-3)  # whole pixels
    assert (folder / "a.png").is_file()


def test_training_step_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    train_step.main(["--imgsz", "64", "--batch", "2", "--rounds", "1", "--device", "0"])
    text = capsys.readouterr().out
    assert "cuda:0" in text and "fp16" in text and "backward" in text


# ---- the attention
BACKENDS = ("auto", "sdpa", "reference", "export", "triton")


def attention_pair(seed: int = 0, **given: object) -> tuple[BiLevelRoutingAttention, BiLevelRoutingAttention]:
    """The same module on the CPU, where every backend is the plain one, and on the GPU."""
    torch.manual_seed(seed)
    module = BiLevelRoutingAttention(64, **given)
    on_gpu = copy.deepcopy(module).cuda()
    module.backend = "reference"
    return module, on_gpu


def passes(module: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output, gradient at the input, and gradients of all parameters, which are cleared afterwards."""
    found = [*passed_through(module, x, dtype), *(parameter.grad for parameter in module.parameters())]
    module.zero_grad(set_to_none=True)
    return found


def passed_through(module: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Output, and the gradient at the input of a fixed sum of outputs; `dtype` under autocast."""
    x = x.clone().requires_grad_(True)
    with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        out = module(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device)
    (out.float() * weights).sum().backward()
    return out, x.grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 64, 20, 20), (1, 64, 13, 9), (2, 64, 5, 5)], ids=str)
def test_attention_as_on_the_cpu(backend: str, shape: tuple[int, ...]) -> None:
    cpu, gpu = attention_pair(backend=backend)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected, found = passed_through(cpu, x), passed_through(gpu, x.cuda())
    for mine, theirs in zip(found, expected, strict=True):
        close(mine, theirs, 2e-4)
    for (name, mine), theirs in zip(gpu.named_parameters(), cpu.parameters(), strict=True):
        assert mine.grad is not None, name
        # keys' biases shift every logit of a query alike: their gradient is zero but for rounding
        scale = theirs.grad.abs().max().clamp(min=1e-2)
        assert ((mine.grad.cpu() - theirs.grad).abs().max() / scale) < 1e-3, name


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.01), (torch.bfloat16, 0.08)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_attention_under_autocast(backend: str, channels_last: bool, dtype: torch.dtype, tolerance: float) -> None:
    # all regions are routed to: rounding would otherwise send some regions elsewhere, which is no error
    cpu, gpu = attention_pair(n_win=3, topk=9, backend=backend)
    x = torch.randn(2, 64, 12, 15, generator=torch.Generator().manual_seed(0))
    on_gpu = x.cuda().contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    out, grad = passed_through(gpu, on_gpu, dtype)
    assert out.dtype is dtype
    for mine, theirs in zip((out, grad), passed_through(cpu, x), strict=True):
        close(mine, theirs, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_that_selects_under_autocast_stays_finite(backend: str, dtype: torch.dtype) -> None:
    _, gpu = attention_pair(backend=backend)
    out, grad = passed_through(gpu, 30 * torch.randn(2, 64, 40, 40, device="cuda"), dtype)
    assert torch.isfinite(out).all() and torch.isfinite(grad).all()


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS promises nothing, and PyTorch refuses
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_repeats_bit_for_bit(backend: str, dtype: torch.dtype | None, deterministic: None) -> None:
    _, gpu = attention_pair(backend=backend)
    x = torch.randn(4, 64, 40, 44, device="cuda")
    first, *others = [passes(gpu, x, dtype) for _ in range(3)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_in_a_cuda_graph(backend: str) -> None:
    """Captured once, forward and backward, and replayed on other numbers: nothing may wait for the CPU."""
    _, gpu = attention_pair(backend=backend)
    x = torch.randn(2, 64, 20, 24, device="cuda")
    expected = passes(gpu, x)
    sample = torch.randn_like(x, requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(gpu), (sample,))
    for mine, theirs in zip(passes(graphed, x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_compiles_without_graph_break(backend: str) -> None:
    torch._dynamo.reset()
    _, gpu = attention_pair(backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(gpu, fullgraph=True, backend=counter)
    for batch in (2, 3, 4):
        x = torch.randn(batch, 64, 20, 24, device="cuda")
        for mine, theirs in zip(passes(compiled, x), passes(gpu, x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    assert counter.frame_count <= 2
    torch._dynamo.reset()


# ---- model, loss, weight average
def model_of(cfg: str | Path) -> Model:
    torch.manual_seed(0)
    model = Model(cfg, verbose=False).train()
    model.hyp = vars_of(Hyp().scaled(model.model[-1].nl, model.nc, 64))
    return model


def vars_of(hyp: Hyp) -> dict[str, object]:
    return {name: getattr(hyp, name) for name in hyp.__slots__}


def test_model_as_on_the_cpu() -> None:
    model = model_of("yolov5n_BiFormer.yaml").eval()
    for block in model.modules():  # running averages of an untrained model would let the signal fade
        if isinstance(block, nn.BatchNorm2d):
            block.momentum = None
    x = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.train()(x)
        expected, _ = model.eval()(x)
        found, _ = copy.deepcopy(model).cuda()(x.cuda())
    assert torch.allclose(found.cpu(), expected, rtol=1e-3, atol=1e-2)  # pixels and probabilities


@pytest.mark.parametrize("amp", ["fp16", "bf16", "off"])
def test_training_steps_of_the_nano_model(amp: str) -> None:
    """The first loss is the same with every backend, the loss scale holds, and every weight moves."""
    device, hyp = torch.device("cuda:0"), Hyp(warmup_epochs=0, nominal_batch=4)
    images = torch.randint(256, (4, 3, 320, 320), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    targets = torch.tensor([[i, i, 0.3 + 0.1 * i, 0.5, 0.2, 0.3] for i in range(4)])
    batch = Batch(images, targets, ("x",) * 4, ())
    first: dict[str, Tensor] = {}
    for backend in BACKENDS:
        model = model_of("yolov5n_BiFormer.yaml").to(device, memory_format=torch.channels_last)
        for layer in model.modules():
            if isinstance(layer, BiLevelRoutingAttention):
                layer.backend = backend
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        recipe = Recipe("AdamW", 0.003, 0.9, 0.0005)
        one = Trainer(
            model, model, ComputeLoss(model), build_optimizer(model, recipe), Schedule(hyp, recipe, 1, 5, 4),
            ModelEMA(model), Precision.choose(amp, device), EpochSettings(1, 320, 32), Callbacks(),
        )  # fmt: skip
        first[backend] = torch.tensor(one.epoch([batch], Position()))
        for _ in range(4):
            assert all(torch.isfinite(torch.tensor(one.epoch([batch], Position()))))
        assert amp != "fp16" or one.precision.scaler.get_scale() >= 1024
        still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
        assert not still
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    for items in first.values():  # rounding may send a region elsewhere, which moves a loss a little
        assert torch.allclose(items, first["reference"], rtol=1e-3 if amp == "off" else 0.02)


@pytest.mark.parametrize("box_iou", ["CIoU", "SIoU", "WIoUv3"])
@pytest.mark.parametrize("labels", [0, 40])
def test_loss_as_on_the_cpu(tiny_cfg: Path, box_iou: str, labels: int) -> None:
    cpu = model_of(tiny_cfg)
    cpu.hyp["box_iou"] = box_iou
    gpu = copy.deepcopy(cpu).cuda()
    rng = torch.Generator().manual_seed(0)
    raw = [torch.randn(2, 3, 64 // int(s), 64 // int(s), 7, generator=rng) for s in cpu.stride]
    targets = torch.cat(
        (
            torch.randint(2, (labels, 2), generator=rng).float(),  # image, class
            0.1 + 0.8 * torch.rand(labels, 2, generator=rng),
            0.1 + 0.5 * torch.rand(labels, 2, generator=rng),
        ),
        1,
    )
    results = []
    for model, device in ((cpu, "cpu"), (gpu, "cuda")):
        levels = [level.to(device).detach().requires_grad_(True) for level in raw]
        loss, items = ComputeLoss(model)(levels, targets.to(device))
        loss.sum().backward()
        results.append([loss, items, *(level.grad for level in levels)])
    for expected, found in zip(*results, strict=True):
        assert found.device.type == "cuda" and torch.allclose(found.cpu(), expected, rtol=1e-4, atol=1e-6)


def test_loss_is_in_float32_under_autocast(tiny_cfg: Path) -> None:
    model = model_of(tiny_cfg).cuda()
    targets = torch.tensor([[0, 1, 0.5, 0.5, 0.4, 0.4]], device="cuda")
    with torch.autocast("cuda", torch.float16):
        levels = model(torch.rand(2, 3, 64, 64, device="cuda"))
    assert levels[0].dtype is torch.float16
    loss, items = ComputeLoss(model)(levels, targets)
    assert loss.dtype is items.dtype is torch.float32 and torch.isfinite(loss).all()


def test_weight_average_as_on_the_cpu(tiny_cfg: Path) -> None:
    models = [model_of(tiny_cfg), model_of(tiny_cfg).cuda()]
    averages = [ModelEMA(model) for model in models]
    for model, average in zip(models, averages, strict=True):
        for _ in range(3):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1)
            average.update(model)
    states = [average.ema.state_dict() for average in averages]
    assert all(torch.allclose(states[1][key].cpu(), value, atol=1e-6) for key, value in states[0].items())
