"""Detections of one image in several views of it, as one list: pieces joined, doubles suppressed, merged or averaged.

Rows are (n, 6) float64 x1, y1, x2, y2, confidence, class in pixels of the image; all lists are the surest first.
"""

from __future__ import annotations

import numpy as np
import torch

from utils.boxes.nms import survivors

EDGE = 0.01  # of a view's side: how near to its edge a box ends that may go on beyond
SAME = 0.5  # IoU, in what two views share, from which two boxes are one object
MERGES = ("nms", "greedy", "wbf")


def overlap(first: np.ndarray, second: np.ndarray, smaller: bool = False) -> np.ndarray:
    """Return the IoU of boxes (..., 4) that broadcast, or the intersection over the smaller area; 0 for empty ones."""
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:4], second[..., 2:4])
    shared = (high - low).clip(0).prod(-1)
    areas = [(boxes[..., 2:4] - boxes[..., :2]).clip(0).prod(-1) for boxes in (first, second)]
    total = np.minimum(*areas) if smaller else areas[0] + areas[1] - shared
    return np.divide(shared, total, out=np.zeros(shared.shape), where=total > 0)


def merge_greedily(rows: np.ndarray, threshold: float, agnostic: bool = False) -> np.ndarray:
    """Let the surest box grow around the boxes of its class that overlap it, then the surest of what is left.

    The overlap, at least `threshold`, is the intersection over the smaller box: a piece counts as part of the whole.
    """
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    merged = []
    while len(rows):
        box, near = rows[0].copy(), overlap(rows[0], rows, smaller=True) >= threshold
        near &= agnostic | (rows[:, 5] == box[5])
        near[0] = True
        for row in rows[near]:
            if overlap(box, row, smaller=True) >= threshold:
                box[:4] = (*np.minimum(box[:2], row[:2]), *np.maximum(box[2:4], row[2:4]))
        merged.append(box)
        rows = rows[~near]
    return np.array(merged).reshape(-1, 6)


def fuse_weighted(rows: np.ndarray, threshold: float, agnostic: bool = False) -> np.ndarray:
    """Average boxes that overlap by more than `threshold` (IoU), weighted by confidence (arXiv:1910.13302).

    Each joins the average it overlaps most, and moves it. The confidence is the surest box's and not the paper's mean,
    as no view is bound to see what another does.
    """
    fused, weights, count = np.zeros_like(rows), np.zeros(len(rows)), 0
    for row in rows[np.argsort(-rows[:, 4], kind="stable")]:
        known = fused[:count]
        near = overlap(row, known) * (agnostic | (known[:, 5] == row[5]))
        best = int(near.argmax()) if count else 0
        if count and near[best] > threshold:
            weights[best] += row[4]
            fused[best, :4] += (row[:4] - fused[best, :4]) * row[4] / weights[best]
        else:
            fused[count], weights[count] = row, row[4]
            count += 1
    return fused[:count]


def _agreement(
    first: np.ndarray, second: np.ndarray, first_views: np.ndarray, second_views: np.ndarray, agnostic: bool
) -> np.ndarray:
    """Return (n, m) how far rows (n, 6) and (m, 6) agree about what the views (n, 4) and (m, 4) of both show.

    The IoU of what is left of both there; 0 below `SAME` and for other classes.
    """
    low = np.maximum(first_views[:, None, :2], second_views[:, :2])
    high = np.maximum(np.minimum(first_views[:, None, 2:], second_views[:, 2:]), low)
    bounds = np.concatenate((low, low), -1), np.concatenate((high, high), -1)
    shared = overlap(np.clip(first[:, None, :4], *bounds), np.clip(second[:, :4], *bounds))
    return shared * (shared >= SAME) * (agnostic | (first[:, None, 5] == second[:, 5]))


def join_pieces(rows: np.ndarray, origins: np.ndarray, views: np.ndarray, agnostic: bool = False) -> np.ndarray:
    """Give the pieces of objects that an edge of their view cuts to the whole boxes, or join them where there is none.

    `origins` (n,) is the number of the view (v, 4) that shows a row; the first view is the whole image. A piece is one
    object with a box of another view if the two agree about what both views show: so a piece as thin as a tenth of
    its object finds it, and a small object inside of a large one is left alone.
    """
    seen = views[origins]
    margin = EDGE * np.tile(seen[:, 2:] - seen[:, :2], 2)
    inner = seen != views[0]
    cut = (inner & (np.abs(rows[:, :4] - seen) < margin)).any(1)
    whole, whole_views = rows[~cut], seen[~cut]
    pieces, piece_views = rows[cut], seen[cut]
    alone = np.ones(len(pieces), dtype=bool)
    for view in np.unique(origins[cut]):
        mine = np.flatnonzero(origins[cut] == view)
        here = np.flatnonzero((origins[~cut] != view) & (overlap(whole, views[view]) > 0))
        agree = _agreement(pieces[mine], whole[here], piece_views[mine], whole_views[here], agnostic)
        agree *= whole[here, 4]
        for piece, row in zip(mine, agree, strict=True):
            if row.any():
                owner = here[row.argmax()]  # which is as sure as the surest piece of it
                whole[owner, 4], alone[piece] = max(whole[owner, 4], pieces[piece, 4]), False
    return np.concatenate((whole, _join(pieces[alone], origins[cut][alone], views, agnostic)))


def _join(pieces: np.ndarray, origins: np.ndarray, views: np.ndarray, agnostic: bool) -> np.ndarray:
    """Return the boxes around all pieces (n, 6) of one object, as sure as the surest of them and of its class."""
    group = np.arange(len(pieces))
    for view in np.unique(origins):
        mine, later = np.flatnonzero(origins == view), np.flatnonzero(origins > view)
        later = later[overlap(views[origins[later]], views[view]) > 0]
        agree = _agreement(pieces[mine], pieces[later], views[origins[mine]], views[origins[later]], agnostic)
        for other in np.unique(origins[later]):
            there = origins[later] == other
            pairs = agree[:, there]
            best = (pairs > 0) & (pairs == pairs.max(0)) & (pairs == pairs.max(1, keepdims=True))
            for i, j in np.argwhere(best):  # of two views, pieces that fit each other best
                group[group == group[later[there][j]]] = group[mine[i]]
    joined = []
    for number in np.unique(group):
        some = pieces[group == number]
        surest = some[some[:, 4].argmax()]
        joined.append((*some[:, :2].min(0), *some[:, 2:4].max(0), *surest[4:]))
    return np.array(joined).reshape(-1, 6)


def merge_views(
    rows: np.ndarray, origins: np.ndarray, views: np.ndarray, merge: str, threshold: float, agnostic: bool = False
) -> np.ndarray:
    """Return one list of what several views (v, 4) of an image show, as `join_pieces` takes it: pieces joined, doubles
    merged by one of `MERGES`. `threshold` is the overlap from which two boxes are one object.
    """
    rows = join_pieces(rows, origins, views, agnostic)
    if merge == "nms":
        found = torch.from_numpy(rows)
        return survivors(found, threshold, agnostic, max(len(rows), 1)).numpy()
    return (merge_greedily if merge == "greedy" else fuse_weighted)(rows, threshold, agnostic)
