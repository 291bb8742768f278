"""Do a model's anchors fit the labels, and which would fit better.

An anchor fits a box if no side differs by more than a factor `threshold`. *Best possible recall* is the share of boxes
that some anchor fits; what no anchor fits is never learnt.
"""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.random import Generator

from utils.base.log import LOGGER

GOOD_RECALL = 0.98  # of the possible recall; from there on anchors are left alone
MIN_SIDE = 2.0  # pixels; nothing smaller can be learnt
JITTER = (0.9, 1.1)  # box sizes vary by augmentation
TINIEST = 1e-9  # pixels; stands in for nothing in a ratio
SAMPLE = 10_000  # boxes that anchors are searched on
ATTEMPTS, ROUNDS = 10, 30  # of k-means
MUTATION_CHANCE, MUTATION_SIZE, MUTATION_RANGE = 0.9, 0.1, (0.3, 3.0)


class LabelledImages(Protocol):
    """What of a data set is looked at."""

    shapes: np.ndarray  # (n, 2) width and height of each image in pixels
    labels: list[np.ndarray]  # per image (k, 5) class, centre x, centre y, width, height as fractions


def label_sizes(dataset: LabelledImages, imgsz: int) -> np.ndarray:
    """Return widths and heights (N, 2) of all labels in pixels, the longer side of each image, or a tile of it, scaled
    to `imgsz`.
    """
    shapes = np.asarray(dataset.shapes, dtype=np.float64).reshape(-1, 2)
    tile = getattr(dataset, "tile", 0) or np.inf
    scaled = imgsz * shapes / np.minimum(shapes.max(axis=1, keepdims=True), tile)
    sizes = [labels[:, 3:5] * shape for labels, shape in zip(dataset.labels, scaled, strict=True)]
    return np.concatenate(sizes) if sizes else np.zeros((0, 2))


def closeness(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return how well anchors (k, 2) fit boxes (N, 2): (k, N) in 0..1, one over the factor by which the worse side is
    off."""
    wide, high = np.maximum(sizes, TINIEST).T[:, None] / anchors.T[:, :, None].astype(sizes.dtype)
    return np.minimum(np.minimum(wide, 1 / wide), np.minimum(high, 1 / high))


def anchor_recall(sizes: np.ndarray, anchors: np.ndarray, threshold: float) -> tuple[float, float]:
    """Return the best possible recall of boxes (N, 2), and how many of the anchors (k, 2) fit a box on average."""
    fits = closeness(sizes, anchors) > 1 / threshold
    return float(fits.any(axis=0).mean()), float(fits.sum(axis=0).mean())


def anchor_fitness(sizes: np.ndarray, anchors: np.ndarray, threshold: float) -> float:
    """Return the mean closeness of each box to its best anchor, 0 for a box that none fits."""
    best = closeness(sizes, anchors).max(axis=0)
    return float((best * (best > 1 / threshold)).mean())


def check_anchor_order(head: Any) -> None:
    """Turn the levels' anchors round, in place, where small anchors (in pixels) sit on large strides."""
    stride = head.stride.to(head.anchors).view(-1, 1, 1)
    pixels = head.anchors * stride
    areas = pixels.prod(dim=-1).mean(dim=1)
    if (areas[-1] - areas[0]) * (head.stride[-1] - head.stride[0]) < 0:
        LOGGER.info("the anchors' order is opposite to the strides'; turning it round")
        head.anchors[:] = pixels.flip(0) / stride


def check_anchors(
    dataset: LabelledImages, model: Any, threshold: float = 4.0, imgsz: int = 640, rng: Generator | None = None
) -> None:
    """Replace the model's anchors by ones made for the data set, if they fit badly and the new ones fit better.

    The model's last layer has anchors (levels, k, 2) in cells and stride (levels,); it may be wrapped (`.module`).
    `threshold` is the factor `anchor_t` of the hyper-parameters, `imgsz` the side of the training images in pixels,
    `rng` the source of the jitter and of the search; seed 0 where not given.
    """
    rng = rng or np.random.default_rng(0)
    head = getattr(model, "module", model).model[-1]
    stride = head.stride.to(head.anchors).view(-1, 1, 1)
    sizes = label_sizes(dataset, imgsz)
    if not len(sizes):
        LOGGER.warning("AutoAnchor: there are no labels to fit anchors to, keeping the model's")
        return
    jittered = sizes * rng.uniform(*JITTER, (len(sizes), 1))
    current = (head.anchors * stride).reshape(-1, 2).double().cpu().numpy()
    recall, fitting = anchor_recall(jittered, current, threshold)
    summary = f"AutoAnchor: {fitting:.2f} anchors/target, {recall:.3f} best possible recall (BPR)."
    if recall > GOOD_RECALL:
        LOGGER.info(f"{summary} The anchors fit the data set")
        return
    LOGGER.info(f"{summary} The anchors fit the data set badly, looking for better ones")
    anchors = search_anchors(sizes, len(current), imgsz, threshold, 1000, rng)
    better, _ = anchor_recall(jittered, anchors, threshold)
    if better <= recall:
        LOGGER.info("AutoAnchor: the model's anchors fit better than the new ones, keeping them")
        return
    with torch.no_grad():
        head.anchors[:] = torch.from_numpy(anchors).to(head.anchors).view_as(head.anchors) / stride
        check_anchor_order(head)
    LOGGER.info(f"AutoAnchor: new anchors {anchors.round().astype(int).tolist()}, BPR {better:.3f}")


def kmean_anchors(
    dataset: LabelledImages | np.ndarray, n: int = 9, img_size: int = 640, thr: float = 4.0, gen: int = 1000,
    verbose: bool = True,
) -> np.ndarray:  # fmt: skip
    """Return (n, 2) anchors for a data set, or for box sizes (N, 2) in pixels, as `search_anchors` finds them.

    `img_size` is the side of the training images, `thr` the factor by which a side may be off, `gen` how many mutations
    are tried; `verbose` logs the result.
    """
    sizes = np.asarray(dataset if isinstance(dataset, np.ndarray) else label_sizes(dataset, img_size), dtype=np.float64)
    anchors = search_anchors(sizes, n, img_size, thr, gen, np.random.default_rng(0))
    if verbose:
        recall, fitting = anchor_recall(sizes, anchors, thr)
        LOGGER.info(
            f"AutoAnchor: n={n}, img_size={img_size}, thr={thr}: {recall:.4f} best possible recall, {fitting:.2f}"
            f" anchors fit, fitness {anchor_fitness(sizes, anchors, thr):.4f}; {anchors.round().astype(int).tolist()}"
        )
    return anchors


def search_anchors(
    sizes: np.ndarray, n: int, imgsz: int, threshold: float, generations: int, rng: Generator
) -> np.ndarray:
    """Return (n, 2) widths and heights in pixels, by rising area: k-means on box sizes (N, 2), then mutation that keeps
    what fits better.

    The means are taken of logarithms, in which a factor is a distance. Raise ValueError where no box has a side of 2
    pixels.
    """
    if tiny := int((sizes < 3.0).any(axis=1).sum()):
        LOGGER.warning(f"AutoAnchor: {tiny} of {len(sizes)} boxes have a side below 3 pixels at this image size")
    sizes = sizes[(sizes >= MIN_SIDE).any(axis=1)]
    if not len(sizes):
        raise ValueError(f"no label is {MIN_SIDE:g} pixels wide or high at image size {imgsz}; enlarge --imgsz")
    if len(sizes) > SAMPLE:
        sizes = sizes[rng.choice(len(sizes), SAMPLE, replace=False)]
    sizes = np.maximum(sizes, MIN_SIDE).astype(np.float32)
    different = np.unique(sizes, axis=0).astype(np.float64)
    if len(different) > n:
        cv2.setRNGSeed(int(rng.integers(2**31)))
        enough = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, ROUNDS, 1e-4)
        labels = np.zeros((len(sizes), 1), dtype=np.int32)
        _, _, means = cv2.kmeans(np.log(sizes), n, labels, enough, ATTEMPTS, cv2.KMEANS_PP_CENTERS)
        anchors = np.exp(means.astype(np.float64))
    else:  # scaled copies fill up
        copies = different[rng.integers(len(different), size=n - len(different))]
        anchors = np.concatenate((different, copies * rng.uniform(0.5, 2.0, copies.shape))).clip(MIN_SIDE)
    fitness = anchor_fitness(sizes, anchors, threshold)
    for _ in range(generations):
        chosen = rng.random(anchors.shape) < MUTATION_CHANCE
        factor = 1 + chosen * rng.random() * rng.standard_normal(anchors.shape) * MUTATION_SIZE
        candidate = (anchors * factor.clip(*MUTATION_RANGE)).clip(MIN_SIDE)
        if (better := anchor_fitness(sizes, candidate, threshold)) > fitness:
            anchors, fitness = candidate, better
    return anchors[np.argsort(anchors.prod(axis=1))]
