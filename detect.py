"""Find objects in images, folders, videos, webcams and streams, and leave annotated copies, labels and crops.

python detect.py                                              # the newest training run, on data/images
python detect.py --weights best.pt --source bus.jpg           # an image or a video
                                   --source 'photos/**/*.jpg' # a folder or a glob
                                   --source 0                 # a webcam
                                   --source rtsp://camera/1   # a stream, or an http(s) address
                                   --source list.txt          # one of all these on each line
python detect.py --weights a.pt b.pt --augment --save-txt --save-crop --classes person 2
python detect.py --weights best.pt --source street.mp4 --tracking --save-txt       # an object keeps its number
python detect.py --weights best.pt --source field.tif --tile 640 --max-det 5000    # large image, small objects
python detect.py --weights best.pt --source bus.jpg --visualize routes             # where the regions look: a page
python detect.py --weights best.pt --source bus.jpg --visualize --query 320,240    # that, and every layer's features
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.api.detections import describe_counts
from models.backends import DetectMultiBackend
from models.bra.routing_maps import record_routes, routing_layers
from utils.base.config import SIDES
from utils.base.devices import select_device, tune_cuda
from utils.base.log import LOGGER, colorstr, set_up_logging
from utils.base.options import SHARE, Range, class_numbers, flag, options
from utils.base.paths import ROOT, choose_weights, claimed, shown
from utils.boxes.merging import MERGES
from utils.checkpoints.checkpoint import strip_optimizer
from utils.data.tiles import OVERLAPS, TILE_SIDES, choose_tiling
from utils.distributed.script import run_script
from utils.drawing.annotator import Annotator, colors
from utils.drawing.fonts import drawable_names
from utils.drawing.writers import Output, OutputNames, VideoWriter, save_one_box, write_image, write_labels
from utils.predict.pipeline import SPEED, Clock, Suppression, find_objects, prepare_image, suppress
from utils.predict.sources import Frame, open_source
from utils.predict.tiled import TileSearch
from utils.predict.tracking import Tracker
from utils.predict.viewer import Viewer
from utils.prepare.named_weights import named_weights
from utils.routes.geometry import RoutingMap
from utils.routes.routing_report import choose_points, parse_points, write_routes


@dataclass(slots=True)
class DetectOptions:
    """The command line of detect.py; every name is also an argument of `run`."""

    weights: list[str] = flag(
        [], "weights of any format, yolov5s.pt by name, several .pt pooled; empty: newest runs/train/*/weights/best.pt"
    )
    source: str = flag(str(ROOT / "data/images"), "image, video, folder, glob, address, webcam, or a .txt of them")
    data: str = flag("", "data set YAML that names the classes, where the weights do not")
    imgsz: list[int] = flag(
        [],
        "side, or height and width, in pixels; as the weights were trained if not given",
        ("--img", "--img-size"),
        bounds=SIDES,
    )
    conf_thres: float = flag(0.25, "lowest confidence of a detection", bounds=SHARE)
    iou_thres: float = flag(0.45, "overlap from which the weaker of two detections goes", bounds=SHARE)
    max_det: int = flag(1000, "most detections in an image", bounds=Range(1))
    device: str = flag("", "'cpu' or '0'; empty for the first GPU, else the CPU")
    view_img: bool = flag(False, "show the results in a window (q ends)")
    save_txt: bool = flag(False, "write labels/*.txt")
    save_conf: bool = flag(False, "add the confidence to labels/*.txt")
    save_crop: bool = flag(False, "write what is inside the boxes to crops/<class>/")
    nosave: bool = flag(False, "write no annotated images and videos")
    tile: int = flag(0, "look at tiles of so many pixels as well as at the whole image", shown="", bounds=TILE_SIDES)
    tile_overlap: float | None = flag(None, "part of its side that a tile shares with the next", (), "0.2", OVERLAPS)
    tile_merge: str | None = flag(None, "how doubles become one detection", shown="nms", choices=MERGES)
    classes: list[str] | None = flag(None, "only these classes, by number or name")
    agnostic_nms: bool = flag(False, "boxes of different classes suppress each other too")
    augment: bool = flag(False, "test-time augmentation: three scales, one mirrored")
    visualize: bool | str = flag(
        False, "draw every layer's feature maps and routes of the first frame of each source; 'routes': only these",
        nargs="?", const=True, type=str, choices=["routes"], metavar="routes",
    )  # fmt: skip
    query: list[str] | None = flag(
        None, "pixels of the image whose regions' routes are drawn; without it the surest detections'", metavar="X,Y"
    )
    update: bool = flag(False, "strip the optimizer from the weights files afterwards")
    project: str = flag(str(ROOT / "runs/detect"), "results go to project/name")
    name: str = flag("exp", "results go to project/name")
    exist_ok: bool = flag(False, "write into project/name even if it exists")
    line_thickness: int = flag(3, "width of the boxes' lines in pixels", bounds=Range(1, 1000))
    hide_labels: bool = flag(False, "draw boxes without labels")
    hide_conf: bool = flag(False, "draw labels without confidences")
    half: bool = flag(False, "16 bits: .pt weights on a GPU, OpenVINO on CPUs that have them")
    trust: bool = flag(False, "open files that can run code (TorchScript, .pt2, engines, TensorFlow) too")
    dnn: bool = flag(False, "OpenCV's DNN module for ONNX files")
    vid_stride: int = flag(1, "look at every n-th frame of videos and streams", bounds=Range(1))
    max_frames: int | None = flag(
        None, "leave a video file after so many frames", shown="ten times what it promises", bounds=Range(1)
    )
    tracking: bool = flag(False, "number the objects of each video and stream, the same from frame to frame")
    track_low: float = flag(
        0.1, "lowest confidence of a detection that continues a track; --conf-thres begins one", bounds=SHARE
    )
    track_buffer: int = flag(30, "frames for which a lost object keeps its number", bounds=Range(0))


def complete(opt: DetectOptions) -> DetectOptions:
    """Fill in the newest weights where none are given; raise ValueError for flags that do not go together."""
    if opt.visualize not in (False, True, "routes"):
        raise ValueError(f"--visualize {opt.visualize}: is 'routes', or stands alone")
    if opt.query and not opt.visualize:
        raise ValueError("--query chooses what --visualize draws: give both, or leave --query out")
    if len(opt.imgsz) > 2:
        raise ValueError(f"--imgsz is one side or height and width, not {len(opt.imgsz)} numbers")
    choose_tiling(opt.tile, opt.tile_overlap, opt.tile_merge)
    if opt.tracking:
        new_tracker(opt)  # says so where a package is missing
    opt = replace(opt, weights=choose_weights(opt.weights))
    return replace(opt, imgsz=opt.imgsz * 2 if len(opt.imgsz) == 1 else opt.imgsz)


def new_tracker(opt: DetectOptions) -> Tracker:
    """Return a tracker for one video or stream."""
    return Tracker(opt.conf_thres, min(opt.track_low, opt.conf_thres), opt.track_buffer, not opt.agnostic_nms)


class Results:
    """Everything that one frame leaves behind; a context manager, so that videos are finished whatever happens."""

    def __init__(self, folder: Path, opt: DetectOptions, names: Sequence[str], outputs: Sequence[Output] = ()) -> None:
        self.opt, self.names = opt, drawable_names(names)
        self.videos: dict[Path, VideoWriter] = {}
        self.files = OutputNames(folder, outputs, names, bool(opt.save_txt or opt.save_crop or opt.visualize))
        self.files.report_changes()
        if opt.tracking and (still := sum(not output.moving for output in outputs)):
            LOGGER.warning(f"--tracking is for videos and streams: no numbers for {still} image{'s' * (still != 1)}")
        self.viewer = Viewer() if opt.view_img else None
        self.stopped = False  # by the person at the window
        self.visualized: set[int] = set()

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *error: object) -> None:
        for video in self.videos.values():
            video.close()
        if self.viewer:
            self.viewer.close()

    def features(self, frame: Frame) -> Path | None:
        """Return where feature maps and routes go: a folder for the first frame of a source, None for the others."""
        if not self.opt.visualize or frame.source in self.visualized:
            return None
        self.visualized.add(frame.source)
        return self.files.features(frame.source)

    def write(self, frame: Frame, detections: Tensor) -> None:
        """Write, and show, what is asked for.

        `detections` (n, 6), or (n, 7) with the number of the track, in pixels of the original, the surest first. An
        image keeps its format where it can be written; videos and streams become MP4.
        """
        found = detections.flip(0).cpu()  # the surest is written and drawn last, on top
        if self.opt.save_txt:
            file = self.files.label(frame.source, frame.number)
            file.unlink(missing_ok=True)  # of an earlier run, which may have found something
            if len(found):
                write_labels(file, found, frame.original.shape[:2], self.opt.save_conf)
        if self.opt.save_crop:
            for row in found:
                file = self.files.crop(frame.source, frame.number, int(row[5]))
                save_one_box(row[:4], frame.original, file, BGR=True)
        if self.opt.nosave and not self.viewer:
            return
        image, file = self.draw(frame.original, found), self.files.drawn(frame.source)
        if not self.opt.nosave:
            self.save(file, image, frame)
        if self.viewer and not self.viewer.show(frame.path, image):
            self.stopped = True

    def save(self, file: Path, image: np.ndarray, frame: Frame) -> None:
        """Write an image, or append one to its video."""
        if frame.kind == "image":
            write_image(file, image)
        else:
            self.videos.setdefault(file, VideoWriter(file, frame.fps)).write(image)

    def draw(self, original: np.ndarray, found: Tensor) -> np.ndarray:
        """Return a copy of the image with boxes and labels."""
        annotator = Annotator(original.copy(), line_width=self.opt.line_thickness, example="".join(self.names))
        for x1, y1, x2, y2, confidence, number, *track in found.tolist():
            name = " ".join([*(f"#{one:.0f}" for one in track), self.names[int(number)]])
            label = "" if self.opt.hide_labels else name if self.opt.hide_conf else f"{name} {confidence:.2f}"
            annotator.box_label((x1, y1, x2, y2), label, color=colors([number, *track][-1], bgr=True))
        return annotator.result()


def detect_frame(
    frame: Frame,
    model: DetectMultiBackend,
    opt: DetectOptions,
    settings: Suppression,
    clock: Clock,
    features: Path | None = None,
) -> tuple[Tensor, list[RoutingMap]]:
    """Return the detections (n, 6) in one frame, boxes in whole pixels of the original; the times go to `clock`.

    With a folder for `features` these are drawn of the whole frame, and the routes of attention layers come back too.
    """

    def network(images: Tensor) -> Tensor:
        return model(images, augment=opt.augment, visualize=None if opt.visualize == "routes" else features)

    dtype = torch.float16 if model.fp16 else torch.float32
    with record_routes(model.model) if features else nullcontext([]) as routes:
        (found,), _ = find_objects(network, [frame.image], settings, clock, model.device, dtype)
    detections = frame.geometry.to_image(found)
    if tiling := choose_tiling(opt.tile, opt.tile_overlap, opt.tile_merge):
        size = opt.imgsz[0], opt.imgsz[1]
        prepare = partial(prepare_image, shape=size, stride=model.stride, auto=model.shape is None)
        search = TileSearch(tiling, partial(model, augment=opt.augment), prepare, model.device, dtype)
        detections = search(frame.original, detections, settings, clock)
    detections[:, :4].round_()
    return detections, routes


def detect(opt: DetectOptions) -> Path:
    """Look at every frame of the source; returns the folder of results. ValueError when nothing could be read."""
    opt = complete(opt)
    points = parse_points(opt.query)
    tune_cuda()
    model = open_model(opt)
    classes = None if opt.classes is None else class_numbers(opt.classes, model.names)
    height, width = model.input_size(opt.imgsz)
    opt = replace(opt, imgsz=[height, width])
    source = open_source(opt.source, (height, width), model.stride, model.shape is None, opt.vid_stride, opt.max_frames)
    plain = Suppression(opt.conf_thres, opt.iou_thres, classes, opt.agnostic_nms, max_det=opt.max_det)
    clock, trackers = Clock(), defaultdict(partial(new_tracker, opt))
    pages: list[Path] = []  # of routes
    with (
        claimed(Path(opt.project) / opt.name, opt.exist_ok) as folder,
        torch.inference_mode(),
        Results(folder, opt, model.names, source.outputs()) as results,
    ):
        model.warmup((1, 3, height, width))
        suppress(torch.ones(1, 1, 6), plain)  # its first call loads a library: no image's time
        for frame in source:
            features = results.features(frame)
            tracker = trackers[frame.source] if opt.tracking and frame.kind != "image" else None
            settings, before = replace(plain, conf_thres=tracker.low) if tracker else plain, clock.network
            detections, routes = detect_frame(frame, model, opt, settings, clock, features)
            clock.settled()
            if tracker:
                detections = torch.from_numpy(tracker.update(detections.cpu().double().numpy()))
            size = "x".join(map(str, frame.image.shape[1:]))
            counts = describe_counts(detections[:, 5].tolist(), model.names)
            LOGGER.info(f"{frame.describe()}{size} {counts}, Done. ({clock.network - before:.3f}s)")
            results.write(frame, detections)
            if routes and features:
                pages.append(write_routes(features, frame, routes, choose_points(frame, points, detections)))
            if results.stopped:
                break
        if not clock.images:
            raise ValueError(f"nothing in {opt.source} could be read; see the warnings above")
    spent = 1000 * np.array([clock.prepare, clock.network, clock.suppress]) / clock.images
    LOGGER.info(SPEED.format(*spent, (1, 3, height, width)))
    finish(opt, results.files, pages)
    return folder


def open_model(opt: DetectOptions) -> DetectMultiBackend:
    """The weights in their runtime. ValueError where they cannot do what is wanted of them."""
    model = DetectMultiBackend(
        opt.weights, select_device(opt.device), dnn=opt.dnn, data=opt.data or None, fp16=opt.half, trust=opt.trust
    )
    if not model.pt and (opt.augment or opt.visualize or opt.update):
        raise ValueError(f"--augment, --visualize and --update are for .pt weights, not {opt.weights[0]}")
    if opt.visualize and not routing_layers(model.model):
        problem = "the weights have no BiLevelRoutingAttention layer whose routes could be drawn"
        if opt.visualize == "routes":
            raise ValueError(f"--visualize routes: {problem}; --visualize alone draws feature maps")
        LOGGER.info(f"feature maps only: {problem}")
    return model


def finish(opt: DetectOptions, files: OutputNames, pages: Sequence[Path]) -> None:
    """Say where the results are; make the weights smaller where that was asked for."""
    if opt.save_txt:
        labels = files.label(0).parent
        count = len(list(labels.glob("*.txt")))
        LOGGER.info(f"{count} label file{'s' * (count != 1)} in {shown(labels)}")
    LOGGER.info(f"Results saved to {colorstr('bold', shown(files.folder))}")
    if pages:
        more = f" (one of {len(pages)} such pages)" * (len(pages) > 1)
        LOGGER.info(f"Where the regions look: open {colorstr('bold', shown(pages[0]))} in a browser{more}")
    if opt.update:
        for weights in opt.weights:
            strip_optimizer(named_weights(weights))


def run(**given: object) -> Path:
    """`detect.run(weights="best.pt", source="photos")`: the command line as keyword arguments; returns the folder."""
    set_up_logging()
    if isinstance(points := given.get("query"), (list, tuple)):  # (x, y) as well as "x,y"
        given["query"] = [",".join(map(str, point)) if isinstance(point, tuple) else point for point in points]
    return detect(options(DetectOptions, given))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status, as `run_script` does."""
    return run_script(DetectOptions, lambda given: run(**given), __doc__, argv, "stopped; what was done is saved")


if __name__ == "__main__":
    sys.exit(main())
