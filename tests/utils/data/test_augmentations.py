"""Images and labels must move together: painted objects are looked for in the pixels afterwards."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.base.config import Hyp
from utils.data import augmentations
from utils.data.augmentations import (
    Sample,
    copy_paste,
    cutout,
    flip,
    hsv_factors,
    mixup,
    mosaic4,
    mosaic9,
    random_perspective,
    rare_effects,
    train_transforms,
)
from utils.data.painting import Sketch, Warp, augment_hsv, hist_equalize, paint, warp_image

STILL = replace(Hyp(), degrees=0.0, translate=0.0, scale=0.0, shear=0.0, perspective=0.0, mosaic9=0.0)
ZOOM = replace(STILL, scale=0.5, translate=0.1)
TURN = replace(ZOOM, degrees=25.0, shear=5.0)
TILT = replace(TURN, perspective=0.0004)
COLOURS = np.array([(b, g, r) for b in (0, 255) for g in (0, 255) for r in (0, 255)], np.uint8)
PALETTE = np.concatenate((COLOURS, np.full((1, 3), 114))).astype(np.int32)
OCTAGON = np.array(((1, -0.5), (1, 0.5), (0.5, 1), (-0.5, 1), (-1, 0.5), (-1, -0.5), (-0.5, -1), (0.5, -1)))
NO_LABELS = np.zeros((0, 5), np.float32)


def noise(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def painted(kinds: list[int], shape: tuple[int, int], rng: np.random.Generator, polygon: bool = False) -> Sample:
    """A grey image, one object of colour COLOURS[kind] per kind, side by side: boxes, or octagons with polygons."""
    height, width = shape
    image = np.full((height, width, 3), 114, np.uint8)
    labels, segments = [], []
    room = width // max(len(kinds), 1)
    for place, kind in enumerate(kinds):
        side = rng.integers(12, min(room, height) - 3, 2) & ~1
        x1, y1 = rng.integers((place * room, 0), (place * room + room - side[0], height - side[1]), endpoint=True)
        x2, y2 = x1 + side[0], y1 + side[1]
        if polygon:
            middle = np.array((x1 + x2, y1 + y2)) / 2
            corners = middle + OCTAGON * side / 2
            pixels = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), -1)
            offset = abs(pixels - middle) / (side / 2)
            inside = (offset <= 1).all(-1) & (offset.sum(-1) <= 1.5)
        else:
            corners, inside = np.zeros((0, 2)), np.zeros((height, width), bool)
            inside[y1:y2, x1:x2] = True
        image[inside] = COLOURS[kind]
        labels.append((kind, x1, y1, x2, y2))
        segments.append(corners.astype(np.float32))
    return Sample(image, np.array(labels, np.float32).reshape(-1, 5), tuple(segments))


def extents(image: np.ndarray) -> dict[int, np.ndarray]:
    """kind -> xyxy of the pixels nearest to its colour."""
    distance = ((image[:, :, None].astype(np.int32) - PALETTE) ** 2).sum(-1)
    nearest = distance.argmin(-1)
    found = {}
    for kind in range(len(COLOURS)):
        rows, cols = np.nonzero(nearest == kind)
        if len(rows):
            found[kind] = np.array((cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
    return found


def check_labels_on_pixels(sample: Sample, slack: float) -> None:
    """Every label bounds the pixels of its colour, and no whole object lacks a label.

    Where the image's edge cuts an object, a narrow tip may show less than half a pixel at its end: more slack.
    """
    height, width = sample.image.shape[:2]
    found = extents(sample.image)
    labelled = [int(kind) for kind in sample.labels[:, 0]]
    assert len(set(labelled)) == len(labelled)
    assert len(sample.segments) == len(labelled)
    for kind, *box in sample.labels:
        is_cut = min(box) < 1 or box[2] > width - 1 or box[3] > height - 1
        np.testing.assert_allclose(box, found[int(kind)], atol=7 if is_cut else slack, err_msg=f"kind {kind}")
    for kind, (x1, y1, x2, y2) in found.items():
        is_cut = min(x1, y1) == 0 or x2 == width or y2 == height
        assert kind in labelled or is_cut or min(x2 - x1, y2 - y1) <= 2, f"object {kind} lost its label"


def test_hsv_against_its_formula():
    image, gains = noise(3), (0.1, 0.7, 0.4)
    before = image.copy()
    out = augment_hsv(image, hsv_factors(*gains, np.random.default_rng(7)))
    factors = 1 + np.random.default_rng(7).uniform(-1, 1, 3) * gains
    hsv = cv2.cvtColor(before, cv2.COLOR_BGR2HSV).astype(float) * factors
    hsv[..., 0] %= 180
    expected = cv2.cvtColor(np.minimum(hsv, 255).astype(np.uint8), cv2.COLOR_HSV2BGR)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(image, before)
    assert hsv_factors(0, 0, 0, np.random.default_rng(0)) is None and augment_hsv(image, None) is image


@pytest.mark.parametrize("clahe", [True, False])
def test_equalising_spreads_the_levels(clahe: bool):
    dull = (noise(4) // 8 + 100).astype(np.uint8)
    assert hist_equalize(dull, clahe=clahe, bgr=True).std() > 1.5 * dull.std()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kinds", [[], [1, 4, 6]])
def test_flips_carry_labels_along_and_back(axis: int, kinds: list[int]):
    sample = painted(kinds, (60, 121), np.random.default_rng(1), polygon=True)
    flipped = flip(sample, axis)
    check_labels_on_pixels(flipped, 0)
    assert not kinds or not np.array_equal(flipped.labels, sample.labels)
    twice = flip(flipped, axis)
    for now, before in zip(
        (twice.image, twice.labels, *twice.segments), (sample.image, sample.labels, *sample.segments), strict=True
    ):
        np.testing.assert_array_equal(now, before)


def test_border_cuts_the_edges_off():
    sample = painted([2, 5], (120, 160), np.random.default_rng(3))
    out = random_perspective(sample, STILL, np.random.default_rng(0), border=(-10, -20))
    np.testing.assert_array_equal(out.image, sample.image[10:-10, 20:-20])
    check_labels_on_pixels(out, 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(ZOOM, False), (ZOOM, True), (TURN, True), (TILT, True)]))
def test_perspective_moves_pixels_and_labels_alike(seed: int, case: tuple[Hyp, bool]):
    hyp, polygon = case
    rng = np.random.default_rng(seed)
    sample = painted([0, 3, 5], (100, 200), rng, polygon)
    check_labels_on_pixels(random_perspective(sample, hyp, rng), slack=1.8 if polygon else 1.2)


def test_half_the_size_is_the_mean_of_four_pixels():
    """Pixels and labels share one origin, the edge of the first pixel; v6.1 was a quarter pixel off here."""
    image = noise(7, 40, 60)
    half = warp_image(image, Warp(np.diag((0.5, 0.5, 1.0)), 0.5, (30, 20)))
    expected = image.reshape(20, 2, 30, 2, 3).mean((1, 3))
    assert abs(half - expected).max() <= 1


def tiles(count: int, seed: int, polygon: bool = False, size: int = 96) -> list[Sample]:
    """Images with `size` as long side; the first is empty, the next eight objects are spread over the others."""
    rng = np.random.default_rng(seed)
    kinds = [[], [0, 1], [2, 3, 4], [5, 6]] if count == 4 else [[], *([kind] for kind in range(8))]
    shapes = [(size, rng.integers(size // 2, size + 1))[:: rng.choice((-1, 1))] for _ in kinds]
    return [painted(kind, tuple(map(int, shape)), rng, polygon) for kind, shape in zip(kinds, shapes, strict=True)]


def test_images_without_labels():
    """What is left of them has no labels and no polygons, and the size asked for."""
    empty, rng = Sample(noise(5), NO_LABELS), np.random.default_rng(0)
    small = [Sample(noise(i, 32, 20), NO_LABELS) for i in range(9)]
    results = [mosaic4(small[:4], 32, ZOOM, rng), mosaic9(small, 32, ZOOM, rng), random_perspective(empty, TILT, rng)]
    results += [train_transforms(empty, Hyp(), rng), copy_paste(empty, 1.0, rng), cutout(empty, 1.0, rng)]
    for out, shape in zip(results, [(32, 32)] * 2 + [(48, 64)] * 4, strict=True):
        assert out.image.shape == (*shape, 3) and out.labels.shape == (0, 5) and out.segments == ()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(mosaic4, 4), (mosaic9, 9)]),
    st.sampled_from([(STILL, False), (ZOOM, False), (ZOOM, True), (TURN, True), (TILT, True)]),
)
def test_mosaic_labels_lie_on_their_objects(seed: int, kind: tuple, case: tuple[Hyp, bool]):
    (mosaic, count), (hyp, polygon) = kind, case
    samples = tiles(count, seed, polygon)
    out = mosaic(samples, 96, hyp, np.random.default_rng(seed))
    assert out.image.shape == (96, 96, 3)
    check_labels_on_pixels(out, slack=1.8 if polygon else 1.2)


def test_mosaic_shows_every_tile_in_turn():
    samples = tiles(4, 0)
    views = [mosaic4(samples, 96, ZOOM, np.random.default_rng(seed)).labels[:, 0] for seed in range(40)]
    assert set(np.concatenate(views)) == set(range(7))


@pytest.mark.parametrize("hyp", [STILL, ZOOM, TURN, replace(ZOOM, translate=0.9)])
def test_drawing_only_what_is_seen_changes_nothing(hyp: Hyp, monkeypatch: pytest.MonkeyPatch):
    samples = [Sample(cv2.GaussianBlur(noise(i, 64, 64), (5, 5), 2), NO_LABELS) for i in range(4)]
    partly = [mosaic4(samples, 64, hyp, np.random.default_rng(seed)).image for seed in range(15)]
    monkeypatch.setattr(augmentations, "_window", lambda warp, side: (0, 0, side, side))
    whole = [mosaic4(samples, 64, hyp, np.random.default_rng(seed)).image for seed in range(15)]
    assert np.abs(np.stack(partly).astype(int) - np.stack(whole)).max() <= 2  # sub-pixel steps are rounded


def test_transforms_leave_their_input_alone():
    samples = tiles(4, 3, polygon=True)
    before = [(sample.image.copy(), sample.labels.copy()) for sample in samples]
    hyp, rng = replace(TURN, copy_paste=1.0), np.random.default_rng(0)
    for sample in samples:
        cutout(copy_paste(train_transforms(sample, hyp, rng), 1.0, rng), 1.0, rng)
        random_perspective(sample, hyp, rng)
    mosaic4(samples, 96, hyp, rng)
    for sample, (image, labels) in zip(samples, before, strict=True):
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.labels, labels)


def test_mixup_blends_about_half_and_half():
    sample, empty = painted([1, 2], (48, 64), np.random.default_rng(0)), Sample(noise(1), NO_LABELS)
    np.testing.assert_array_equal(mixup(empty, sample, np.random.default_rng(0)).labels, sample.labels)
    first, second = (painted(kinds, (48, 64), np.random.default_rng(1), True) for kinds in ([0, 1], [6]))
    mixed = mixup(first, flip(flip(second, 0), 0), np.random.default_rng(5))
    share = np.random.default_rng(5).beta(32, 32)
    expected = share * first.image.astype(float) + (1 - share) * second.image
    assert 0.2 < share < 0.8
    np.testing.assert_allclose(mixed.image, expected, atol=0.51)
    assert mixed.labels[:, 0].tolist() == [0, 1, 6] and len(mixed.segments) == 3
    with pytest.raises(ValueError, match="one size"):
        mixup(Sample(noise(0), NO_LABELS), Sample(noise(0, 50, 50), NO_LABELS), np.random.default_rng(0))


@pytest.mark.parametrize("kind", [0, 5])  # 0 is black, which v6.1 did not copy
def test_copy_paste_pastes_the_mirror_image(kind: int):
    sample = painted([kind], (60, 64), np.random.default_rng(0), polygon=True)
    image = np.full((60, 200, 3), 114, np.uint8)
    image[:, :64] = sample.image
    pasted = copy_paste(Sample(image, sample.labels, sample.segments), 1.0, np.random.default_rng(0))
    mirrored = flip(Sample(image, sample.labels, sample.segments), 0)
    np.testing.assert_array_equal(pasted.labels, np.concatenate((sample.labels, mirrored.labels)))
    expected = np.where(image == 114, mirrored.image, image)
    assert (pasted.image != expected).any(-1).sum() <= 12  # the slanting edges are rounded
    np.testing.assert_allclose(pasted.segments[1], mirrored.segments[0])


def test_copy_paste_takes_its_share_and_spares_what_it_would_hide():
    boxes = painted([1, 2], (60, 120), np.random.default_rng(0))
    assert copy_paste(boxes, 1.0, np.random.default_rng(0)) is boxes, "no polygons"
    centred = np.array(((30, 10), (70, 10), (70, 50), (30, 50)), np.float32)
    sample = Sample(noise(0, 60, 100), np.array([(0, 30, 10, 70, 50)], np.float32), (centred,))
    assert len(copy_paste(sample, 1.0, np.random.default_rng(0)).labels) == 1
    many = [np.array(((x, 2), (x + 3, 2), (x + 3, 9), (x, 9)), np.float32) for x in range(0, 40, 4)]
    labels = np.array([(0, *points.min(0), *points.max(0)) for points in many], np.float32)
    out = copy_paste(Sample(noise(0, 12, 100), labels, tuple(many)), 0.3, np.random.default_rng(0))
    assert len(out.labels) == 13
    plain, pasted = (
        mosaic4(tiles(4, 5, polygon=True), 96, replace(STILL, copy_paste=p), np.random.default_rng(1))
        for p in (0.0, 1.0)
    )
    assert len(pasted.segments) == len(pasted.labels) > len(plain.labels), "and so do mosaics"


def test_cutout_hides_and_drops():
    rng = np.random.default_rng(0)
    sample = painted([1, 2, 3], (80, 160), rng)
    assert cutout(sample, 0.0, rng) is sample
    counts = []
    for _ in range(30):
        out = cutout(sample, 1.0, rng)
        assert len(out.segments) == len(out.labels)
        for kind, x1, y1, x2, y2 in out.labels.astype(int):
            assert (out.image[y1:y2, x1:x2] == COLOURS[kind]).all(-1).mean() >= 0.4 - 1e-6
        counts.append(len(out.labels))
    assert 0 < np.mean(counts) < 3


def test_effects_and_flips_come_by_their_probability_from_the_generator():
    image = noise(0)
    first, second = ([rare_effects(0.5, np.random.default_rng(seed)) for seed in range(12)] for _ in range(2))
    assert first == second and rare_effects(0.0, np.random.default_rng(0)) == ()
    painted = {paint(replace(Sketch.of(image), effects=effects)).tobytes() for effects in first}
    assert len(painted) == len(set(first)) > 6, "not all or none"
    for up, left in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        hyp = replace(Hyp(), hsv_h=0.0, hsv_s=0.0, hsv_v=0.0, flipud=up, fliplr=left)
        out = train_transforms(Sample(image, NO_LABELS), hyp, np.random.default_rng(0)).image
        np.testing.assert_array_equal(out, image[:: -1 if up else 1, :: -1 if left else 1])
