"""OpenVINO and TensorRT, both made from the ONNX model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from models.backends.tools import need
from models.exporters.converting import cleared
from models.exporters.job import ExportJob, write_notes
from models.exporters.onnx_file import ENTRY, onnx_model

# Only convolutions are computed in whole numbers: the head's arithmetic is in pixels, and routes are compared
FLOAT_OPERATORS = ["Add", "Divide", "MatMul", "Multiply", "ReduceMean", "Sigmoid", "Softmax", "Subtract", "TopK"]
MOST_CALIBRATION = 300  # pictures; more change little


def export_openvino(job: ExportJob) -> Path:
    """A folder of .xml and .bin, in float32, float16 (`half`) or with int8 convolutions (`int8`)."""
    ov = need("openvino", "--include openvino")
    folder, source = job.file("_openvino_model"), job.file("_openvino.onnx")
    settings = job.settings
    quantise = need("nncf", "--int8", "pip install 'nncf>=3.4'") if settings.int8 else None
    need("onnx", "--include openvino").save(onnx_model(job), str(source))
    try:
        model = ov.convert_model(str(source))
    finally:
        source.unlink(missing_ok=True)
    if quantise:
        logging.getLogger("nncf").setLevel(logging.WARNING)  # it lists every operator that it leaves alone
        pictures = job.calibration_pictures()
        data = quantise.Dataset(pictures, lambda picture: picture.numpy())
        scope = quantise.IgnoredScope(types=FLOAT_OPERATORS, validate=False)
        model = quantise.quantize(
            model, data, preset=quantise.QuantizationPreset.MIXED, subset_size=len(pictures), ignored_scope=scope
        )
    model.set_rt_info(job.facts(nms=True).as_json(), ["yolov5", "facts"])
    cleared(folder).mkdir()
    ov.save_model(model, str(folder / f"{job.weights.stem}.xml"), compress_to_fp16=settings.half)
    return folder


def export_engine(job: ExportJob) -> Path:
    """A TensorRT engine for the GPU at hand, its facts in a file beside it, for it has no place for them.

    Every tensor has the precision it has in the ONNX model, which with `half` comes from a network of float16; newer
    releases know no other way. With `dynamic`, `batch` is the largest number of pictures, and `imgsz` the largest size.
    """
    trt = need("tensorrt", "--include engine", "pip install tensorrt, on a machine with an NVIDIA GPU")
    settings, file = job.settings, job.file(".engine")
    if settings.device.type != "cuda":
        raise ValueError("--include engine builds for the GPU it runs on; give --device 0")
    logger = trt.Logger(trt.Logger.VERBOSE if settings.verbose else trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config, parser = builder.create_builder_config(), trt.OnnxParser(network, logger)
    if not parser.parse(onnx_model(replace(job, settings=replace(settings, nms=None))).SerializeToString()):
        raise ValueError(f"TensorRT cannot read the network: {parser.get_error(0)}")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings.workspace * 2**30))
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and coarser than the float32 that was asked for
    if settings.dynamic:
        profile, sides = builder.create_optimization_profile(), settings.imgsz
        least = (job.facts().stride,) * 2 if job.free_sides else sides
        most = (max(settings.batch, 2), 3, *sides)
        profile.set_shape(ENTRY, (1, 3, *least), most, most)
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("TensorRT could not build the engine; see its messages above, or give it more --workspace")
    file.write_bytes(engine)
    write_notes(file, job.facts())
    return file
