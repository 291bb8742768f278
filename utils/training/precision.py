"""Which floating-point type a network is trained in: the one asked for, or the one that the machine is quickest in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch

from utils.distributed.processes import gather

SWITCH = "YOLOV5_CPU_BF16"  # 0: take the processor for one without bfloat16, 1: for one with it, auto: look
KINDS = {"fp16": torch.float16, "bf16": torch.bfloat16, "off": None}
# PyTorch's name of each instruction set, which oneDNN has kernels for
_INSTRUCTIONS = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16", "bf16": "Arm BF16"}
_LIMITS_BELOW = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(slots=True)
class Precision:
    """Which floating-point type the network computes in, why, and the loss scaling that float16 needs."""

    device: torch.device
    dtype: torch.dtype | None
    reason: str = "as asked for"
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)

    @classmethod
    def choose(cls, name: str, device: torch.device, resumed: Mapping[str, Any] | None = None) -> Precision:
        """Return the precision of `fp16`, `bf16`, `off` (float32), or of `auto`: as a resumed run began, else chosen.

        Chosen is float16 on CUDA and, on CPUs, bfloat16 where the processors of all processes have instructions for it.
        `resumed` is the state of the run that goes on. Raise ValueError for float16 on a CPU.
        """
        on_cpu = device.type == "cpu"
        if name == "fp16" and on_cpu:
            raise ValueError("--amp fp16 needs a GPU; on a CPU choose auto, bf16 or off")
        quick, why = True, f"usual on {device.type}"
        if on_cpu:  # the first processor that lacks the instructions decides for all processes
            quick, why = min(gather(bfloat16_on_cpu()), key=itemgetter(0))
        if name != "auto":
            return cls(device, KINDS[name], "as asked for" + f", though {why}" * (name == "bf16" and not quick))
        if resumed is not None:  # files of before `auto` looked at the processor lack it: on a CPU that was float32
            begun = resumed.get("precision", "off" if on_cpu else None)
            if begun in KINDS.keys() - {"fp16" if on_cpu else ""}:  # no CPU can keep what a GPU began
                return cls(device, KINDS[begun], "as the run was begun")
        return cls(device, {"cpu": torch.bfloat16 if quick else None, "cuda": torch.float16}.get(device.type), why)

    @property
    def name(self) -> str:
        """What `--amp` calls it."""
        return next(name for name, dtype in KINDS.items() if dtype is self.dtype)

    def __str__(self) -> str:
        return f"precision: {str(self.dtype or torch.float32).removeprefix('torch.')} ({self.reason})"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that the forward pass runs in."""
        return torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()

    def lowers_scale(self) -> bool:
        """Return whether an overflow of the gradients is no fault: the scaler skips that step and scales less."""
        return self.scaler.is_enabled() and self.scaler.get_scale() >= 1


def bfloat16_on_cpu() -> tuple[bool, str]:
    """Return whether the processor computes in bfloat16 by instructions of its own, and the reason in a few words.

    The processor's flags decide and not a stopwatch, so that the same command computes the same numbers however busy
    the machine is. The environment's YOLOV5_CPU_BF16=0 or 1 overrules them. Raise ValueError for other values.
    """
    switch = os.environ.get(SWITCH, "auto").strip().lower() or "auto"
    if switch not in ("0", "1", "auto"):
        raise ValueError(f"{SWITCH}={switch}: choose 0, 1 or auto")
    if switch != "auto":
        return switch == "1", f"{SWITCH}={switch}"
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if limit.upper() in _LIMITS_BELOW:
        return False, f"oneDNN is limited to {limit.upper()}"
    if not torch.backends.mkldnn.is_available():
        return False, "this PyTorch has no oneDNN"
    flags = torch.cpu.get_capabilities()
    found = next((name for key, name in _INSTRUCTIONS.items() if flags.get(key)), None)
    if found == _INSTRUCTIONS["bf16"] and not torch.backends.mkldnn.is_acl_available():
        return False, "this PyTorch has no Arm Compute Library"
    return (True, f"this CPU has {found}") if found else (False, "this CPU has no bfloat16 instructions")
