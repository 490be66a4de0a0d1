"""Small jumps for the tests, and points on a circle whose neighbours and losses are known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from lltopo.graph import Graph
from lltopo.loop import Worker

ALONE = Worker(0, 1, torch.device("cpu"))
SETTINGS = {
    "seeds": [0, 1],
    "steps": [0.25, 1.0],
    "epochs": 3,
    "batch_size": 16,
    "lr": 0.01,
    "k": 4,
}
REACH = 2


class Circle(NamedTuple):
    """Points on a circle in the space of weights, in scrambled order, and a loss of three wells.

    ``place`` is where on the circle each point lies, ``vectors`` its weights.
    """

    place: np.ndarray
    vectors: np.ndarray
    loss: np.ndarray

    def graph(self) -> Graph:
        """Each point and those up to ``REACH`` places away on either side."""
        at = np.argsort(self.place)
        edges = [np.column_stack([at, np.roll(at, shift)]) for shift in range(1, REACH + 1)]
        return Graph.from_edges(len(at), np.concatenate(edges))

    def along(self) -> np.ndarray:
        """The losses in the order of the circle."""
        return self.loss[np.argsort(self.place)]

    def wells(self) -> np.ndarray:
        """Where on the circle the loss is lower than on both sides."""
        along = self.along()
        return np.flatnonzero((along < np.roll(along, 1)) & (along < np.roll(along, -1)))


def planted_circle(n: int, seed: int = 0) -> Circle:
    rng = np.random.default_rng(seed)
    place = rng.permutation(n)
    angle = 2 * np.pi * place / n
    plane, _ = np.linalg.qr(rng.normal(size=(300, 2)))
    vectors = np.column_stack([np.cos(angle), np.sin(angle)]) @ plane.T + 5 * rng.normal(size=300)
    circle = Circle(
        place, vectors.astype(np.float32), 2 + np.cos(3 * angle) + 0.5 * np.sin(angle + 0.3)
    )
    # as Ray's are
    circle.vectors.flags.writeable = circle.loss.flags.writeable = False
    return circle
