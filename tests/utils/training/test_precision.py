"""Which precision a training takes: asked for, chosen by the processor's flags, kept by a run that goes on."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

import train
from tests.processes import together
from utils.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from utils.distributed.processes import rank
from utils.training.precision import Precision, bfloat16_on_cpu

CPU = torch.device("cpu")
WITHOUT, WITH = {"avx2": True, "avx512_f": True, "avx512_bf16": False}, {"avx512_f": True, "avx512_bf16": True}
SMALL = {"epochs": 1, "batch_size": 6, "imgsz": 64, "workers": 0, "seed": 3, "loggers": ["none"]}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Gives this process another processor."""
    for name in ("YOLOV5_CPU_BF16", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)

    def become(flags: dict) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(flags))

    return become


@pytest.mark.parametrize(
    "flags, acl, name, says",
    [
        ({}, False, "off", "precision: float32 (this CPU has no bfloat16 instructions)"),
        (WITHOUT, False, "off", "no bfloat16 instructions"),
        (WITH, False, "bf16", "AVX512-BF16"),
        ({"amx_bf16": True, "amx_tile": True}, False, "bf16", "AMX-BF16"),
        ({"neon": True, "bf16": True}, True, "bf16", "Arm BF16"),
        ({"neon": True, "bf16": True}, False, "off", "Arm Compute Library"),
        ({"neon": True, "bf16": False}, True, "off", "no bfloat16 instructions"),
    ],
)
def test_auto_follows_the_flags(processor, monkeypatch, flags, acl, name, says) -> None:
    processor(flags)
    monkeypatch.setattr(torch.backends.mkldnn, "is_acl_available", lambda: acl)
    chosen = Precision.choose("auto", CPU)
    assert chosen.name == name and says in str(chosen) and "\n" not in str(chosen) and not chosen.scaler.is_enabled()


@pytest.mark.parametrize(
    "variable, value, flags, quick",
    [
        ("YOLOV5_CPU_BF16", "0", WITH, False),
        ("YOLOV5_CPU_BF16", "1", WITHOUT, True),
        ("YOLOV5_CPU_BF16", "auto", WITH, True),
        ("YOLOV5_CPU_BF16", "", WITHOUT, False),
        ("ONEDNN_MAX_CPU_ISA", "avx512_core", WITH, False),
        ("DNNL_MAX_CPU_ISA", "AVX2", WITH, False),
        ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", WITH, True),
    ],
)
def test_the_environment_hides_and_shows_the_instructions(
    processor, monkeypatch, variable, value, flags, quick
) -> None:
    processor(flags)
    monkeypatch.setenv(variable, value)
    assert bfloat16_on_cpu()[0] is quick
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "YOLOV5" in variable or bfloat16_on_cpu()[0] is False


def test_what_is_asked_for_is_taken_or_refused(processor, monkeypatch) -> None:
    processor(WITHOUT)
    assert Precision.choose("off", CPU).dtype is None
    slow = Precision.choose("bf16", CPU)
    assert slow.dtype is torch.bfloat16 and "as asked for, though this CPU has no bfloat16" in str(slow)
    with slow.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16
    with pytest.raises(ValueError, match="needs a GPU"):
        Precision.choose("fp16", CPU)
    monkeypatch.setenv("YOLOV5_CPU_BF16", "yes")
    with pytest.raises(ValueError, match="YOLOV5_CPU_BF16=yes: choose 0, 1 or auto"):
        Precision.choose("auto", CPU)


@pytest.mark.parametrize("state, flags, name", [
    ({"precision": "bf16"}, WITHOUT, "bf16"), ({"precision": "off"}, WITH, "off"),
    ({"precision": "fp16"}, WITH, "bf16"),  # begun on a GPU: no CPU can keep it
    ({}, WITH, "off"),  # a file of before the processor was looked at
])  # fmt: skip
def test_a_run_that_goes_on_keeps_its_precision(processor, state, flags, name) -> None:
    processor(flags)
    assert Precision.choose("auto", CPU, state).name == name


def agree() -> str:
    os.environ["YOLOV5_CPU_BF16"] = str(rank())
    return Precision.choose("auto", CPU).name


def test_processes_on_different_machines_agree(tmp_path: Path) -> None:
    """The first process has no bfloat16, the other has."""
    assert together(agree, tmp_path) == ["off", "off"]


def test_auto_trains_validates_and_resumes_in_bfloat16(
    squares: Path, tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"data": str(squares), "cfg": str(tiny_cfg), "project": str(tmp_path), **SMALL}
    monkeypatch.setenv("YOLOV5_CPU_BF16", "1")
    seen = []
    evaluate = train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *given: seen.append(given[4].autocast) or evaluate(*given))
    train.run(name="auto", **given)
    assert set(seen) == {torch.bfloat16} and "precision: bfloat16 (YOLOV5_CPU_BF16=1)" in capsys.readouterr().err
    full = load_checkpoint(tmp_path / "auto/weights/resume.pt")
    assert full["precision"] == "bf16" and full["options"]["amp"] == "auto"
    monkeypatch.setenv("YOLOV5_CPU_BF16", "0")
    seen.clear()
    train.run(resume=str(tmp_path / "auto/weights/last.pt"), epochs=2)
    assert set(seen) == {torch.bfloat16} and "precision: bfloat16 (as the run was begun)" in capsys.readouterr().err
    save_checkpoint(tmp_path / "auto/weights/resume.pt", {key: full[key] for key in full.keys() - {"precision"}})
    seen.clear()
    train.run(resume=str(tmp_path / "auto/weights/last.pt"), epochs=2)
    assert set(seen) == {None}
