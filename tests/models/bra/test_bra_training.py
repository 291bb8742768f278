"""A detector with each mode of the attention: described, trained, resumed, fused, detecting; alone and in processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import train
from models.backends import DetectMultiBackend
from models.bra.attention import BiLevelRoutingAttention
from models.experimental import load_model
from models.yolo import Model
from tests.models.bra.test_attention_modes import MODES
from utils.boxes.nms import non_max_suppression
from utils.checkpoints.checkpoint import describe_model, load_checkpoint, save_checkpoint

BASE = {"imgsz": 64, "epochs": 2, "batch_size": 6, "workers": 0, "device": "cpu", "noval": True}


def described(arguments: list[Any]) -> dict[str, Any]:
    """Strides 8 and 16 of eight to sixteen channels; the attention sees maps of 8 x 8, which 3 x 3 regions pad."""
    return {
        "nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0,
        "anchors": [[10, 10, 16, 16, 24, 24], [30, 30, 40, 40, 50, 50]],
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
        "head": [
            [-1, 1, "BiLevelRoutingAttention", arguments], [-1, 1, "Conv", [16, 3, 2]],
            [[3, 4], 1, "Detect", ["nc", "anchors"]],
        ],
    }  # fmt: skip


def detector(mode: str) -> Model:
    """Untrained, but with confident answers, so that there is something to suppress."""
    torch.manual_seed(0)
    model = Model(described([{"n_win": 3, "num_heads": 2, "topk": 2, **MODES[mode]}]), verbose=False)
    for conv in model.model[-1].m:
        conv.bias.data.view(model.model[-1].na, -1)[:, 4:] += 4
    return model


def stepped(model: Model, optimizer: torch.optim.Optimizer, number: int) -> None:
    """Two steps towards answers of nothing."""
    for step in range(2):
        torch.manual_seed(10 * number + step)
        sum(level.square().mean() for level in model(torch.rand(4, 3, 64, 64))).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("mode", MODES)
def test_trains_resumes_fuses_and_detects(mode: str, tmp_path: Path) -> None:
    whole = detector(mode)
    optimizer = torch.optim.AdamW(whole.parameters(), 0.003)
    stepped(whole, optimizer, 0)
    assert len(optimizer.state) == len(list(whole.parameters()))  # every parameter learns
    file = tmp_path / "last.pt"
    save_checkpoint(file, {"model": describe_model(whole), "optimizer": optimizer.state_dict()})
    stepped(whole, optimizer, 1)
    content = load_checkpoint(file)
    again = load_model(content)
    optimizer = torch.optim.AdamW(again.parameters(), 0.003)
    optimizer.load_state_dict(content["optimizer"])
    stepped(again, optimizer, 1)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())

    save_checkpoint(file, {"model": describe_model(whole)})
    images = torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    model = load_model(load_checkpoint(file)).eval()
    with torch.no_grad():
        expected = model(images)[0]
        fused = model.fuse()(images)[0]
        found = DetectMultiBackend(file)(images)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-3)  # pixels and probabilities
    torch.testing.assert_close(found, fused)
    boxes, before = (non_max_suppression(rows, conf_thres=0.02) for rows in (found, expected))
    assert all(0 < len(a) == len(b) for a, b in zip(boxes, before, strict=True))


class Torn(Exception):
    pass


@pytest.mark.parametrize("mode", ["masked, soft, learned", "conv", "fracpool"])
def test_a_resumed_run_ends_where_a_whole_one_does(
    mode: str, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train.py itself, its images left out."""
    cfg = tmp_path / "cfg.yaml"
    cfg.write_text(yaml.safe_dump(described([{"n_win": 3, "num_heads": 2, "topk": 2, **listed(MODES[mode])}])))
    given = {"data": str(squares), "cfg": str(cfg), "project": str(tmp_path / "runs"), **BASE}
    monkeypatch.setattr("utils.training.setup.subscribe_loggers", lambda *args: None)
    monkeypatch.setattr(train.Run, "finish", lambda self: ())
    train.run(name="whole", **given)
    saved = train.CheckpointWriter.save

    def stop_after_the_first_epoch(self: train.CheckpointWriter, improved: bool = False) -> None:
        saved(self, improved)
        if self.progress.last_epoch == 0:
            raise Torn

    with monkeypatch.context() as patch:
        patch.setattr(train.CheckpointWriter, "save", stop_after_the_first_epoch)
        with pytest.raises(Torn):
            train.run(name="cut", **given)
    train.run(resume=str(tmp_path / "runs/cut/weights/last.pt"))
    whole, cut = (load_checkpoint(tmp_path / "runs" / name / "weights/last.pt") for name in ("whole", "cut"))
    assert whole["epoch"] == cut["epoch"] == 1
    for kind in ("model", "ema"):
        states = whole[kind]["state_dict"], cut[kind]["state_dict"]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def listed(arguments: dict[str, Any]) -> dict[str, Any]:
    """As YAML writes them: lists, no tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}


# ---- descriptions
def attention_of(arguments: list[Any]) -> BiLevelRoutingAttention:
    return Model(described(arguments), verbose=False).model[3]


def test_no_arguments_are_the_defaults() -> None:
    layer = attention_of([])
    assert (layer.dim, layer.n_win, layer.num_heads, layer.topk, layer.mask_padding) == (16, 7, 8, 4, False)


def test_arguments_by_position_and_by_name() -> None:
    """The order of positions is the published one; what came later follows it."""
    by_position = [5, 2, 8, "head", 2, 2, 3, "conv", 3, "qkv", True, True, True, 5, True, True, [3, 2], "reference"]
    names = (
        "n_win num_heads qk_dim qk_scale kv_per_win kv_downsample_ratio kv_downsample_kernel kv_downsample_mode topk "
        "param_attention param_routing diff_routing soft_routing side_dwconv auto_pad mask_padding region_size backend"
    ).split()
    layers = attention_of(by_position), attention_of([dict(zip(names, by_position, strict=True))])
    layers[0].load_state_dict(layers[1].state_dict())
    x = torch.randn(1, 16, 7, 8)
    assert torch.equal(layers[0](x), layers[1](x))
    assert layers[0].region_size == layers[1].region_size == (3, 2)
    mixed = attention_of([5, 2, {"topk": 3}])
    assert (mixed.n_win, mixed.num_heads, mixed.topk) == (5, 2, 3)


# ---- several processes
@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one, which needs no launcher."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_distributed_gradients_are_the_plain_ones(one_process: None) -> None:
    """In every mode and without a search for unused parameters: the second step would fail if there were any."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for mode in MODES:
        found = []
        for wrap in (lambda model: model, DistributedDataParallel):
            model = detector(mode)
            net = wrap(model)
            for step in range(2):
                torch.manual_seed(step)
                sum(level.square().mean() for level in net(images)).backward()
            found.append([parameter.grad for parameter in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), mode
