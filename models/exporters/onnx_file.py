"""ONNX: the network, slimmed on request, suppression inside if wanted; and what is made of it: OpenVINO, TensorRT."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim

from models.backends.metadata import keep_metadata
from models.backends.tools import need
from models.exporters.job import DEFAULT_OPSET, ExportJob, ExportSettings, Predictor, cleared, quiet
from utils.base.log import LOGGER
from utils.boxes.nms import MAX_SIDE, MIN_SIDE

ENTRY, EXIT, FOUND = "images", "output", "detections"  # the names v6.1 gives; suppression inside gives the last
LEAST_OPSET = 12
LEAST_NMS_OPSET = 13  # from here on the axes of Split, Squeeze and Unsqueeze are inputs
# Only convolutions are computed in whole numbers: the head's arithmetic is in pixels, and routes are compared
FLOAT_OPERATORS = ["Add", "Divide", "MatMul", "Multiply", "ReduceMean", "Sigmoid", "Softmax", "Subtract", "TopK"]


def export_onnx(job: ExportJob) -> Path:
    """One `.onnx` file, weights inside."""
    file = job.file(".onnx")
    need("onnx", "--include onnx").save(onnx_model(job), str(file))
    return file


def onnx_model(job: ExportJob) -> Any:
    """The checked ONNX model with metadata. Raises ValueError for an opset that cannot be had."""
    onnx, settings = need("onnx", "--include onnx"), job.settings
    if settings.nms and settings.opset < LEAST_NMS_OPSET:
        raise ValueError(f"--nms needs --opset {LEAST_NMS_OPSET} or more, not {settings.opset}")
    if settings.opset < LEAST_OPSET:
        raise ValueError(f"--opset {settings.opset} is too old; give {LEAST_OPSET} or more, {DEFAULT_OPSET} by default")
    model = _written_by_pytorch(job)
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if found != settings.opset:  # the exporter quietly wrote another
        raise ValueError(f"--opset {settings.opset} cannot be written, the exporter made {found}; leave --opset out")
    LOGGER.info(f"ONNX opset {found}")
    if settings.simplify:
        model = need("onnxslim", "--simplify").slim(model)
    if settings.nms:
        model = with_nms(model, settings)
    _name_open_sides(model)
    del model.metadata_props[:]
    for key, value in job.metadata(nms=True).as_strings().items():
        pair = model.metadata_props.add()
        pair.key, pair.value = key, value
    model.producer_name = "yolov5"
    onnx.checker.check_model(model)
    return model


def _written_by_pytorch(job: ExportJob) -> Any:
    """The network as ONNX, by `torch.export`, or by the older exporter, which alone writes opsets below 18."""
    need("onnxscript", "--include onnx")
    settings, free_sides = job.settings, job.has_free_sides()
    is_new, buffer = settings.opset >= DEFAULT_OPSET, io.BytesIO()
    how: dict[str, Any] = {"input_names": [ENTRY], "output_names": [EXIT], "verbose": settings.verbose}
    if settings.dynamic and is_new:
        how["dynamic_shapes"] = (dict.fromkeys((0, 2, 3) if free_sides else (0,), Dim.DYNAMIC),)
    elif settings.dynamic:
        entry, exit_ = ({2: "height", 3: "width"}, {1: "candidates"}) if free_sides else ({}, {})
        how["dynamic_axes"] = {ENTRY: {0: "batch", **entry}, EXIT: {0: "batch", **exit_}}
    given: tuple[Any, ...] = (Predictor(job.model), (job.example(),), None if is_new else buffer)
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(*given, dynamo=is_new, opset_version=settings.opset, **how)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0][:120]
        other = DEFAULT_OPSET - 1 if is_new else DEFAULT_OPSET  # of the other exporter
        raise ValueError(
            f"--opset {settings.opset} cannot hold this network ({reason}); try --opset {other}"
        ) from error
    return program.model_proto if program else need("onnx", "--include onnx").load_from_string(buffer.getvalue())


def _name_open_sides(model: Any) -> None:
    """Give the open sides of input and outputs names that people know."""
    named = [(model.graph.input[0], ("batch", "", "height", "width"))]
    for value, names in named + [(output, ("batch", "candidates", "")) for output in model.graph.output]:
        for side, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name and not side.dim_value:
                side.dim_param = name


class _Graph:
    """Adds operators to an ONNX model; tensors go by name."""

    def __init__(self, onnx: Any, model: Any) -> None:
        self.onnx, self.graph, self.count = onnx, model.graph, 0

    def constant(self, value: Any, kind: Any = np.int64) -> str:
        """A tensor that never changes."""
        self.count += 1
        name = f"nms/constant_{self.count}"
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.asarray(value, dtype=kind), name))
        return name

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Apply an operator; returns the name of its output, or a list of names of several."""
        self.count += outputs
        names = [f"nms/{operator}_{self.count - i}" for i in range(outputs)]
        self.graph.node.append(self.onnx.helper.make_node(operator, list(inputs), names, names[0], **attributes))
        return names[0] if outputs == 1 else names


def with_nms(model: Any, settings: ExportSettings) -> Any:
    """The model with one output `detections` (B, K, 6): x1 y1 x2 y2 in pixels, confidence, class, the surest first.

    Each candidate stands for its best class alone and sides of noise do not count, as in detect.py. Rows of confidence
    0 are padding. The number of images may be open.
    """
    onnx = need("onnx", "--nms")
    add, predictions = _Graph(onnx, model), model.graph.output[0].name
    classes = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value - 5
    sizes = add.constant([2, 2, 1, classes])
    centre, size, objectness, kinds = add("Split", predictions, sizes, outputs=4, axis=2)
    half = add("Mul", size, add.constant(0.5, np.float32))
    boxes = add("Concat", add("Sub", centre, half), add("Add", centre, half), axis=2)  # (B, M, 4)
    least, most = (add.constant(side, np.float32) for side in (MIN_SIDE, MAX_SIDE))
    sides = add("Split", size, add.constant([1, 1]), outputs=2, axis=2)
    likely = add("And", *(add("Equal", side, add("Clip", side, least, most)) for side in sides))  # no noise
    likely = add("Cast", likely, to=onnx.TensorProto.FLOAT)  # (B, M, 1)
    scores = add("Mul", add("Mul", kinds, objectness), likely)  # (B, M, C)
    best, best_class = add("TopK", scores, add.constant([1]), outputs=2, axis=2)  # (B, M, 1) each
    if not settings.agnostic_nms:
        nothing = add.constant(0.0, np.float32)
        best = add("Where", add("Equal", scores, best), scores, nothing)  # (B, M, C), one number a row
    by_class = add("Transpose", best, perm=[0, 2, 1])  # (B, C or 1, M)
    confidence, place = _suppress(add, boxes, by_class, settings)  # (B, K) each; place: class * M + candidate
    per_class = add("Gather", add("Shape", boxes), add.constant(1))
    number = add("Div", place, per_class)
    row = add("Sub", place, add("Mul", number, per_class))
    if settings.agnostic_nms:
        number = add("GatherElements", add("Squeeze", best_class, add.constant([2])), row, axis=1)
    last = add.constant([2])
    corners = add("GatherND", boxes, add("Unsqueeze", row, last), batch_dims=1)  # (B, K, 4)
    number = add("Cast", number, to=onnx.TensorProto.FLOAT)
    columns = corners, add("Unsqueeze", confidence, last), add("Unsqueeze", number, last)
    model.graph.node.append(onnx.helper.make_node("Identity", [add("Concat", *columns, axis=2)], [FOUND]))
    found = onnx.helper.make_tensor_value_info(FOUND, onnx.TensorProto.FLOAT, ["batch", "candidates", 6])
    del model.graph.output[:]
    model.graph.output.append(found)
    return model


def _suppress(add: _Graph, boxes: str, by_class: str, settings: ExportSettings) -> tuple[str, str]:
    """Confidences (B, K) of the surest survivors, falling, and where they stand in an image's (classes * M) scores."""
    overlap, least = (add.constant([value], np.float32) for value in (settings.iou_thres, settings.conf_thres))
    kept = add("NonMaxSuppression", boxes, by_class, add.constant([settings.topk_per_class]), overlap, least)
    # (n, 3) image, class, candidate
    blank = add("Mul", by_class, add.constant(0.0, np.float32))
    survivors = add("ScatterND", blank, kept, add("GatherND", by_class, kept))  # (B, C, M), 0 where suppressed
    flat = add("Reshape", survivors, add.constant([0, -1]))
    most = add("Gather", add("Shape", flat), add.constant([1]))
    return add("TopK", flat, add("Min", add.constant([settings.topk_all]), most), outputs=2, axis=1)


def export_openvino(job: ExportJob) -> Path:
    """A folder of .xml and .bin, in float32, float16 (`half`) or with int8 convolutions (`int8`)."""
    ov, settings = need("openvino", "--include openvino"), job.settings
    folder, source = job.file("_openvino_model"), job.file("_openvino.onnx")
    quantise = need("nncf", "--int8", "pip install 'nncf>=3.4'") if settings.int8 else None
    need("onnx", "--include openvino").save(onnx_model(job), str(source))
    try:
        model = ov.convert_model(str(source))
    finally:
        source.unlink(missing_ok=True)
    if quantise:
        logging.getLogger("nncf").setLevel(logging.WARNING)  # it lists every operator that it leaves alone
        images = job.calibration()
        data = quantise.Dataset(images, lambda image: image.numpy())
        scope = quantise.IgnoredScope(types=FLOAT_OPERATORS, validate=False)
        preset = quantise.QuantizationPreset.MIXED
        model = quantise.quantize(model, data, preset=preset, subset_size=len(images), ignored_scope=scope)
    model.set_rt_info(job.metadata(nms=True).as_json(), ["yolov5", "facts"])
    cleared(folder).mkdir()
    ov.save_model(model, str(folder / f"{job.weights.stem}.xml"), compress_to_fp16=settings.half)
    return folder


def export_engine(job: ExportJob) -> Path:
    """A TensorRT engine for the GPU at hand, its metadata in a file beside it, for it has no place for them.

    Every tensor has the precision it has in the ONNX model, which with `half` comes from a network of float16; newer
    releases know no other way. With `dynamic`, `batch` is the largest number of images, and `imgsz` the largest size.
    """
    trt = need("tensorrt", "--include engine", "pip install tensorrt, on a machine with an NVIDIA GPU")
    settings, file = job.settings, job.file(".engine")
    if settings.device.type != "cuda":
        raise ValueError("--include engine builds for the GPU it runs on; give --device 0")
    logger = trt.Logger(trt.Logger.VERBOSE if settings.verbose else trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config, parser = builder.create_builder_config(), trt.OnnxParser(network, logger)
    if not parser.parse(onnx_model(replace(job, settings=replace(settings, nms=False))).SerializeToString()):
        raise ValueError(f"TensorRT cannot read the network: {parser.get_error(0)}")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace * 2**30))
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and coarser than the float32 that was asked for
    if settings.dynamic:
        profile, sides = builder.create_optimization_profile(), settings.imgsz
        least = (job.metadata().stride,) * 2 if job.has_free_sides() else sides
        most = (max(settings.batch, 2), 3, *sides)
        profile.set_shape(ENTRY, (1, 3, *least), most, most)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("TensorRT could not build the engine; see its messages above, or give it more --workspace")
    file.write_bytes(engine)
    keep_metadata(file, job.metadata())
    return file
