"""TensorFlow.js' graph model: a frozen graph as JSON, and the numbers of its constants in one binary file.

Google's own converter (tensorflowjs 4.22) cannot be installed beside a TensorFlow younger than 2.19; the format, all
that a browser reads, is small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.backends.tools import need

WEIGHTS = "group1-shard1of1.bin"
KINDS = {"float32": "float32", "float64": "float32", "int32": "int32", "int64": "int32", "bool": "bool"}


def write_graph_model(folder: Path, frozen: Any, notes: dict[str, Any]) -> None:
    """Write a frozen TensorFlow function as model.json and its weights into a new folder.

    Raises ValueError for constants that TensorFlow.js has no kind of number for.
    """
    tf, proto = need("tensorflow", "--include tfjs"), need("google.protobuf.json_format", "--include tfjs")
    graph = frozen.graph.as_graph_def()
    entries, numbers = [], []
    for node in graph.node:
        if node.op != "Const":
            continue
        value = tf.make_ndarray(node.attr["value"].tensor)
        kind = KINDS.get(value.dtype.name)
        if kind is None:
            raise ValueError(f"TensorFlow.js has no {value.dtype.name}, which the constant {node.name} is of")
        entries.append({"name": node.name, "shape": list(value.shape), "dtype": kind})
        numbers.append(np.ascontiguousarray(value.astype(kind)).tobytes())
        _empty(node.attr["value"].tensor)
    topology = proto.MessageToDict(graph)
    content = {
        "format": "graph-model",
        "generatedBy": tf.__version__,
        "convertedBy": "YOLOv5-BiFormer",
        "signature": {
            "inputs": {one.name: _described(one) for one in frozen.inputs},
            "outputs": {one.name: _described(one) for one in frozen.outputs},
        },
        "userDefinedMetadata": notes,
        "modelTopology": topology,
        "weightsManifest": [{"paths": [WEIGHTS], "weights": entries}],
    }
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / WEIGHTS).write_bytes(b"".join(numbers))


def _empty(tensor: Any) -> None:
    """Leave a constant its kind and shape, and take its numbers out."""
    for field, _ in tensor.ListFields():
        if field.name not in ("dtype", "tensor_shape"):
            tensor.ClearField(field.name)


def _described(tensor: Any) -> dict[str, Any]:
    """Name and shape of a graph's input or output, of float32 both."""
    sides = [{"size": str(side)} for side in tensor.shape]
    return {"name": tensor.name, "dtype": "DT_FLOAT", "tensorShape": {"dim": sides}}
