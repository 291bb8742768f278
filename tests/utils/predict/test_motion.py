"""The Kalman filter, against the textbook's with matrices of eight dimensions, one box at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.predict.motion import Motion, begin, correct, predict

NO_BOXES = np.zeros((0, 4))


def test_no_boxes():
    motion = correct(predict(begin(NO_BOXES)), NO_BOXES)
    assert motion.boxes.shape == (0, 4) and motion.covariance.shape == (0, 4, 2, 2)


class Textbook:
    """x = F x, P = F P F' + Q; K = P H' (H P H' + R)^-1, x += K (z - H x), P = (I - K H) P; x: values, then rates."""

    def __init__(self, box):
        self.F = np.eye(8) + np.eye(8, k=4)
        self.H = np.eye(4, 8)
        self.x = np.concatenate([box, np.zeros(4)])
        sides = self.sides()
        self.P = np.diag(np.concatenate([2 / 20 * sides, 10 / 160 * sides]) ** 2)

    def sides(self):
        return np.maximum(self.x[[2, 3, 2, 3]], 1)

    def predict(self):
        noise = np.diag(np.concatenate([self.sides() / 20, self.sides() / 160]) ** 2)
        self.x = self.F @ self.x
        self.P = self.F @ self.P @ self.F.T + noise

    def correct(self, box):
        noise = np.diag((self.sides() / 20) ** 2)
        gain = self.P @ self.H.T @ np.linalg.inv(self.H @ self.P @ self.H.T + noise)
        self.x = self.x + gain @ (box - self.H @ self.x)
        self.P = (np.eye(8) - gain @ self.H) @ self.P


def matrices(motion, i):
    """State and covariance of box i in the textbook's order."""
    covariance = np.zeros((8, 8))
    for number in range(4):
        where = np.ix_([number, number + 4], [number, number + 4])
        covariance[where] = motion.covariance[i, number]
    return motion.mean[i].T.ravel(), covariance


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.booleans(), max_size=12))
def test_as_the_textbook_has_it(seed, seen):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform([0, 0, 0.2, 5], [600, 400, 90, 200], (3, 4))
    motion, books = begin(boxes), [Textbook(box) for box in boxes]
    for found in seen:
        motion = predict(motion)
        boxes = boxes + rng.normal(0, 4, (3, 4))
        if found:
            motion = correct(motion, boxes)
        for i, book in enumerate(books):
            book.predict()
            if found:
                book.correct(boxes[i])
            mean, covariance = matrices(motion, i)
            np.testing.assert_allclose(mean, book.x, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(covariance, book.P, rtol=1e-7, atol=1e-9)


def test_a_steady_rate_is_learnt():
    box, step = np.array([[50.0, 60.0, 30.0, 40.0]]), np.array([[3.0, -2.0, 0.5, 0.0]])
    motion = begin(box)
    for _ in range(60):
        box = box + step
        motion = correct(predict(motion), box)
    assert np.allclose(motion.mean[..., 1], step, atol=0.02) and np.allclose(motion.boxes, box, atol=0.2)
    assert np.allclose(predict(motion).boxes, box + step, atol=0.2)


def test_nothing_is_written_into():
    motion = begin(np.array([[50.0, 60.0, 30.0, 40.0]]))
    before = Motion(*(part.copy() for part in motion))
    correct(predict(motion), np.array([[51.0, 61.0, 31.0, 41.0]]))
    assert all(np.array_equal(now, then) for now, then in zip(motion, before, strict=True))
