"""Non-maximum suppression as ONNX operators, set behind a network's predictions."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.backends.tools import need
from models.exporters.job import NmsSettings
from utils.boxes.nms import MAX_SIDE, MIN_SIDE

FOUND = "detections"


class _Graph:
    """Adds operators to an ONNX model; tensors go by name."""

    def __init__(self, onnx: Any, model: Any) -> None:
        self.onnx, self.graph, self.count = onnx, model.graph, 0

    def constant(self, value: Any, kind: Any = np.int64) -> str:
        """A tensor that never changes."""
        name = self._name("constant")
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Apply an operator; returns the name of its output, or a list of names of several."""
        names = [self._name(operator) for _ in range(outputs)]
        self.graph.node.append(self.onnx.helper.make_node(operator, list(inputs), names, names[0], **attributes))
        return names[0] if outputs == 1 else names

    def _name(self, what: str) -> str:
        self.count += 1
        return f"nms/{what}_{self.count}"


def with_nms(model: Any, settings: NmsSettings) -> Any:
    """The model with one output `detections` (B, K, 6): x1 y1 x2 y2 in pixels, confidence, class, the surest first.

    Each candidate stands for its best class alone and sides of noise do not count, as in detect.py. Rows of confidence
    0 are padding. The number of pictures may be open.
    """
    onnx = need("onnx", "--nms")
    add, predictions = _Graph(onnx, model), model.graph.output[0].name
    classes = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value - 5
    sizes = add.constant([2, 2, 1, classes])
    centre, size, objectness, kinds = add("Split", predictions, sizes, outputs=4, axis=2)
    half = add("Mul", size, add.constant(0.5, np.float32))
    boxes = add("Concat", add("Sub", centre, half), add("Add", centre, half), axis=2)  # (B, M, 4)
    scores = add("Mul", add("Mul", kinds, objectness), _likely(add, size))  # (B, M, C)
    best, best_class = add("TopK", scores, add.constant([1]), outputs=2, axis=2)  # (B, M, 1) each
    if not settings.agnostic:
        nothing = add.constant(0.0, np.float32)
        best = add("Where", add("Equal", scores, best), scores, nothing)  # (B, M, C), one number a row
    by_class = add("Transpose", best, perm=[0, 2, 1])  # (B, C or 1, M)
    confidence, place = _suppress(add, boxes, by_class, settings)  # (B, K) each; place: class * M + candidate
    per_class = add("Gather", add("Shape", boxes), add.constant(1))
    number = add("Div", place, per_class)
    row = add("Sub", place, add("Mul", number, per_class))
    if settings.agnostic:
        number = add("GatherElements", add("Squeeze", best_class, add.constant([2])), row, axis=1)
    last = add.constant([2])
    corners = add("GatherND", boxes, add("Unsqueeze", row, last), batch_dims=1)  # (B, K, 4)
    number = add("Cast", number, to=onnx.TensorProto.FLOAT)
    columns = corners, add("Unsqueeze", confidence, last), add("Unsqueeze", number, last)
    joined = add("Concat", *columns, axis=2)
    model.graph.node.append(onnx.helper.make_node("Identity", [joined], [FOUND]))
    found = onnx.helper.make_tensor_value_info(FOUND, onnx.TensorProto.FLOAT, ["batch", "candidates", 6])
    del model.graph.output[:]
    model.graph.output.append(found)
    return model


def _likely(add: _Graph, size: str) -> str:
    """Width and height (B, M, 2) -> (B, M, 1): 1 where both are those of a thing, 0 where of noise."""
    least, most = (add.constant(side, np.float32) for side in (MIN_SIDE, MAX_SIDE))
    sides = add("Split", size, add.constant([1, 1]), outputs=2, axis=2)
    width, height = (add("Equal", side, add("Clip", side, least, most)) for side in sides)
    return add("Cast", add("And", width, height), to=add.onnx.TensorProto.FLOAT)


def _suppress(add: _Graph, boxes: str, by_class: str, settings: NmsSettings) -> tuple[str, str]:
    """Confidences (B, K) of the surest survivors, falling, and where they stand in a picture's (classes * M) scores."""
    kept = add(
        "NonMaxSuppression",
        boxes,
        by_class,
        add.constant([settings.per_class]),
        add.constant([settings.iou_thres], np.float32),
        add.constant([settings.conf_thres], np.float32),
    )  # (n, 3) picture, class, candidate
    blank = add("Mul", by_class, add.constant(0.0, np.float32))
    survivors = add("ScatterND", blank, kept, add("GatherND", by_class, kept))  # (B, C, M), 0 where suppressed
    flat = add("Reshape", survivors, add.constant([0, -1]))
    most = add("Gather", add("Shape", flat), add.constant([1]))
    return add("TopK", flat, add("Min", add.constant([settings.in_all]), most), outputs=2, axis=1)
