"""SavedModels and frozen graphs in TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backends.base import ExportedBackend
from models.backends.hush import hushed
from models.backends.runtimes import notes_beside, notes_inside
from models.backends.tools import is_there, need

INSTALL = "pip install tensorflow-cpu, in an environment of its own (docs/deploy.md)"


def load_tensorflow(purpose: str, install: str = INSTALL) -> Any:
    """TensorFlow, without its talk about processors. Raises ValueError where it is missing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with hushed():
        if is_there("triton"):
            import_module("triton")  # after TensorFlow, with which it shares names of C++, it ends the program
        return need("tensorflow", purpose, install)


def _refusals(tf: Any) -> tuple[type[Exception], ...]:
    """What TensorFlow and the reader of its files raise beside Python's own."""
    return tf.errors.OpError, need("google.protobuf.message", "TensorFlow").Error


def channels_last(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) -> (B, H, W, 3), as TensorFlow has pictures."""
    return np.ascontiguousarray(images.cpu().numpy().transpose(0, 2, 3, 1))


class SavedModelBackend(ExportedBackend):
    """`_saved_model` folders, on the CPU."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        facts, tf = notes_inside(files[0]), load_tensorflow("a SavedModel")
        try:
            with hushed():
                model = tf.saved_model.load(str(files[0]))
            self.call = model.signatures["serving_default"]
            self.entry = next(iter(self.call.structured_input_signature[1]))
        except (OSError, ValueError, RuntimeError, LookupError, AttributeError, StopIteration, *_refusals(tf)) as error:
            raise ValueError(f"{files[0]}: TensorFlow cannot open it; export it again") from error
        super().__init__(files[0], facts, torch.device("cpu"), model)
        self.tf = tf

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions."""
        found = self.call(**{self.entry: self.tf.constant(channels_last(images))})
        return torch.from_numpy(next(iter(found.values())).numpy())


class GraphDefBackend(ExportedBackend):
    """`.pb` files, on the CPU: the graph's one placeholder is its input, its last operator the output."""

    def __init__(self, files: Sequence[Path], device: torch.device, fp16: bool) -> None:
        facts, tf = notes_beside(files[0]), load_tensorflow("a frozen graph")
        try:
            graph = tf.Graph().as_graph_def()
            graph.ParseFromString(files[0].read_bytes())
            entry = next(node.name for node in graph.node if node.op == "Placeholder")
            ends = (f"{entry}:0", f"{graph.node[-1].name}:0")
            with hushed():
                whole = tf.compat.v1.wrap_function(lambda: tf.compat.v1.import_graph_def(graph, name=""), [])
                call = whole.prune(*(whole.graph.as_graph_element(name) for name in ends))
        except (OSError, ValueError, RuntimeError, StopIteration, LookupError, *_refusals(tf)) as error:
            raise ValueError(f"{files[0]}: TensorFlow cannot open it; export it again") from error
        super().__init__(files[0], facts, torch.device("cpu"), call)
        self.tf = tf

    def run(self, images: Tensor) -> Tensor:
        """Float32 pictures (B, 3, H, W) -> predictions."""
        return torch.from_numpy(self.model(self.tf.constant(channels_last(images))).numpy())
