"""Do a model's anchors fit the labels, and which would fit better.

An anchor fits a box if no side differs by more than a factor `threshold`. *Best possible recall* is the share of boxes
that some anchor fits; what no anchor fits is never learnt.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.random import Generator
from torch import nn

from utils.base.log import LOGGER

GOOD_RECALL = 0.98  # of the possible recall; from there on anchors are left alone
MIN_SIDE = 2.0  # pixels; nothing smaller can be learnt
JITTER = (0.9, 1.1)  # box sizes vary by augmentation
TINIEST = 1e-9  # pixels; stands in for nothing where a logarithm is taken
SAMPLE = 10_000  # boxes that anchors are searched on
RESTARTS, ROUNDS = 4, 30  # of k-means
MUTATION_CHANCE, MUTATION_SIZE, MUTATION_RANGE = 0.9, 0.1, (0.3, 3.0)


class LabelledImages(Protocol):
    """What of a data set is looked at."""

    shapes: np.ndarray  # (n, 2) width and height of each picture in pixels
    labels: list[np.ndarray]  # per picture (k, 5) class, centre x, centre y, width, height as fractions


def label_sizes(dataset: LabelledImages, imgsz: int) -> np.ndarray:
    """Widths and heights (N, 2) of all labels in pixels, each picture scaled so that its longer side is `imgsz`."""
    shapes = np.asarray(dataset.shapes, dtype=np.float64).reshape(-1, 2)
    scaled = imgsz * shapes / shapes.max(axis=1, keepdims=True)
    sizes = [labels[:, 3:5] * shape for labels, shape in zip(dataset.labels, scaled, strict=True)]
    return np.concatenate(sizes) if sizes else np.zeros((0, 2))


def closeness(sizes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """How well anchors (k, 2) fit boxes (N, 2): (k, N) in 0..1, one over the factor by which the worse side is off."""
    return _closeness(_logarithms(sizes), anchors)


def anchor_recall(sizes: np.ndarray, anchors: np.ndarray, threshold: float) -> tuple[float, float]:
    """Best possible recall of boxes (N, 2), and how many of the anchors (k, 2) fit a box on average."""
    fits = closeness(sizes, anchors) > 1 / threshold
    return float(fits.any(axis=0).mean()), float(fits.sum(axis=0).mean())


def anchor_fitness(sizes: np.ndarray, anchors: np.ndarray, threshold: float) -> float:
    """Mean closeness of each box to its best anchor, 0 for a box that none fits."""
    return _fitness(_logarithms(sizes), anchors, threshold)


def _logarithms(sizes: np.ndarray) -> np.ndarray:
    """(N, 2) to (2, N): there a factor is a difference, which makes a search over anchors cheap."""
    return np.log(np.maximum(sizes, TINIEST)).T


def _closeness(logarithms: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    wide, high = np.log(np.maximum(anchors, TINIEST)).T[:, :, None].astype(logarithms.dtype) - logarithms[:, None]
    return np.exp(-np.maximum(np.abs(wide), np.abs(high)))


def _fitness(logarithms: np.ndarray, anchors: np.ndarray, threshold: float) -> float:
    best = _closeness(logarithms, anchors).max(axis=0)
    return float((best * (best > 1 / threshold)).mean())


def check_anchor_order(head: nn.Module) -> None:
    """Turn the levels' anchors round, in place, where small anchors (in pixels) sit on large strides."""
    stride = head.stride.to(head.anchors).view(-1, 1, 1)
    pixels = head.anchors * stride
    areas = pixels.prod(dim=-1).mean(dim=1)
    if (areas[-1] - areas[0]) * (head.stride[-1] - head.stride[0]) < 0:
        LOGGER.info("the anchors' order is opposite to the strides'; turning it round")
        head.anchors[:] = pixels.flip(0) / stride


def check_anchors(
    dataset: LabelledImages,
    model: nn.Module,
    threshold: float = 4.0,
    imgsz: int = 640,
    rng: Generator | None = None,
) -> None:
    """Replace the model's anchors by ones made for the data set, if they fit badly and the new ones fit better.

    Args:
        model: its last layer has anchors (levels, k, 2) in cells and stride (levels,); may be wrapped (`.module`).
        threshold: the factor `anchor_t` of the hyper-parameters.
        imgsz: side of the training pictures in pixels.
        rng: source of the jitter and of the search; seed 0 where not given.
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
    anchors = kmean_anchors(sizes, n=len(current), img_size=imgsz, thr=threshold, gen=1000, verbose=False, rng=rng)
    better, _ = anchor_recall(jittered, anchors, threshold)
    if better <= recall:
        LOGGER.info("AutoAnchor: the model's anchors fit better than the new ones, keeping them")
        return
    with torch.no_grad():
        new = torch.from_numpy(anchors).to(head.anchors).view_as(head.anchors)
        head.anchors[:] = new / stride
        check_anchor_order(head)
    LOGGER.info(f"AutoAnchor: new anchors {anchors.round().astype(int).tolist()}, BPR {better:.3f}")


def kmean_anchors(
    dataset: LabelledImages | np.ndarray,
    n: int = 9,
    img_size: int = 640,
    thr: float = 4.0,
    gen: int = 1000,
    verbose: bool = True,
    rng: Generator | None = None,
) -> np.ndarray:
    """Anchors for a data set: k-means on the box sizes, then mutation that keeps what fits better.

    Args:
        dataset: a labelled data set, or box sizes (N, 2) in pixels.
        n: how many anchors.
        img_size: side of the training pictures in pixels; not used with box sizes.
        thr: the factor by which a side may be off.
        gen: how many mutations are tried.
        verbose: log the result.
        rng: source of all choices; seed 0 where not given.

    Returns:
        (n, 2) widths and heights in pixels, by rising area.

    Raises:
        ValueError: no box has a side of 2 pixels.
    """
    rng = rng or np.random.default_rng(0)
    sizes = np.asarray(dataset if isinstance(dataset, np.ndarray) else label_sizes(dataset, img_size), dtype=np.float64)
    tiny = int((sizes < 3.0).any(axis=1).sum())
    if tiny:
        LOGGER.warning(f"AutoAnchor: {tiny} of {len(sizes)} boxes have a side below 3 pixels at this picture size")
    sizes = sizes[(sizes >= MIN_SIDE).any(axis=1)]
    if not len(sizes):
        raise ValueError(f"no label is {MIN_SIDE:g} pixels wide or high at image size {img_size}; enlarge --imgsz")
    if len(sizes) > SAMPLE:
        sizes = sizes[rng.choice(len(sizes), SAMPLE, replace=False)]
    sizes = np.maximum(sizes, MIN_SIDE)
    anchors = _evolve(sizes, _cluster(sizes, n, rng), thr, gen, rng)
    anchors = anchors[np.argsort(anchors.prod(axis=1))]
    if verbose:
        recall, fitting = anchor_recall(sizes, anchors, thr)
        LOGGER.info(
            f"AutoAnchor: n={n}, img_size={img_size}, thr={thr}: {recall:.4f} best possible recall, {fitting:.2f}"
            f" anchors fit, fitness {anchor_fitness(sizes, anchors, thr):.4f}; {anchors.round().astype(int).tolist()}"
        )
    return anchors


def _cluster(sizes: np.ndarray, n: int, rng: Generator) -> np.ndarray:
    """n centres (n, 2) of box sizes (N, 2); where there are fewer different boxes, scaled copies fill up."""
    different = np.unique(sizes, axis=0)
    if len(different) <= n:
        copies = different[rng.integers(len(different), size=n - len(different))]
        return np.concatenate((different, copies * rng.uniform(0.5, 2.0, copies.shape))).clip(MIN_SIDE)
    spread = sizes.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    attempts = [_k_means(sizes / scale, _spread_out(different / scale, n, rng)) for _ in range(RESTARTS)]
    return min(attempts, key=lambda attempt: attempt[1])[0] * scale


def _spread_out(points: np.ndarray, n: int, rng: Generator) -> np.ndarray:
    """n starting centres, each drawn in proportion to the squared distance from those before (k-means++)."""
    centres = [points[rng.integers(len(points))]]
    distance = np.full(len(points), np.inf)
    while len(centres) < n:
        distance = np.minimum(distance, ((points - centres[-1]) ** 2).sum(axis=1))
        centres.append(points[rng.choice(len(points), p=distance / distance.sum())])
    return np.array(centres)


def _k_means(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Lloyd's iteration: centres, and the mean squared distance of the points (N, 2) from theirs."""
    for _ in range(ROUNDS):
        distance = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
        nearest = distance.argmin(axis=1)
        count = np.bincount(nearest, minlength=len(centres))[:, None]
        total = np.stack([np.bincount(nearest, points[:, axis], len(centres)) for axis in (0, 1)], axis=1)
        moved = np.where(count > 0, total / np.maximum(count, 1), centres)  # an empty cluster keeps its centre
        if np.array_equal(moved, centres):
            break
        centres = moved
    distance = ((points[:, None] - centres[None]) ** 2).sum(axis=2)
    return centres, float(distance.min(axis=1).mean())


def _evolve(sizes: np.ndarray, anchors: np.ndarray, threshold: float, generations: int, rng: Generator) -> np.ndarray:
    """Stretch anchors at random, keep what raises the fitness."""
    logarithms = _logarithms(sizes).astype(np.float32)
    fitness = _fitness(logarithms, anchors, threshold)
    for _ in range(generations):
        chosen = rng.random(anchors.shape) < MUTATION_CHANCE
        factor = 1 + chosen * rng.random() * rng.standard_normal(anchors.shape) * MUTATION_SIZE
        candidate = (anchors * factor.clip(*MUTATION_RANGE)).clip(MIN_SIDE)
        candidate_fitness = _fitness(logarithms, candidate, threshold)
        if candidate_fitness > fitness:
            anchors, fitness = candidate, candidate_fitness
    return anchors
