"""A small network in plain NumPy whose matrix products see 4-bit operands only.

Forward, weights and activations are rescaled to INT4 every round. Backward, the gradient of each layer's output is
rounded to radix-4 FP4 [1,3,0] twice, in two phases, under a power-of-two scale that the layer finds by voting
(Sun et al., "Ultra-Low Precision 4-bit Training of Deep Neural Networks", NeurIPS 2020, sections 3.2 and 3.3).
Master weights, biases and sums are float32, where the paper draws its matrix products' results in float16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

import lowbit as lb

Array = NDArray[np.float32]

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-126, 2.0**126


@dataclass(frozen=True)
class Recipe:
    """Which format each operand of the three matrix products is rounded to; None leaves it in float32.

    Attributes
    ----------
    name : str
        What the table and the picture call it.
    forward : str or None
        For weights and activations, rescaled by their minimum and maximum.
    grad_input : str or None
        For the output's gradient in the product that gives dL/dx.
    grad_weight : str or None
        For the output's gradient in the product that gives dL/dW.
    """

    name: str
    forward: str | None = None
    grad_input: str | None = None
    grad_weight: str | None = None


FLOAT32 = Recipe("float32")
INT4_FORWARD = Recipe("INT4 forward, float32 gradients", "int4")
ONE_PHASE = Recipe("INT4, radix-4 gradients, one phase", "int4", "radix4", "radix4")
TWO_PHASE = Recipe("INT4, radix-4 gradients, two phases", "int4", "radix4", "radix4_odd")
RECIPES = (FLOAT32, INT4_FORWARD, ONE_PHASE, TWO_PHASE)


@dataclass
class GradScale:
    """A layer's power-of-two gradient scale, moved by votes (Sun et al. 2020, figure 3a).

    The paper's main text gives no first value; from 1 the votes climb to where the gradient is within a dozen rounds.
    """

    scale: float = 1.0

    def vote(self, dy: Array) -> int:
        """Say +1 if the largest scaled number is in [0, 32], 0 if in (32, 64], -1 if it is above."""
        largest = self.scale * np.abs(dy).max(initial=0)
        return 1 if largest <= 32 else 0 if largest <= 64 else -1

    def update(self, votes: int) -> None:
        """Double or halve the scale by the sign of the sum of all workers' votes."""
        factor = 2.0 ** np.sign(votes)
        self.scale = float(np.clip(self.scale * factor, SMALLEST_SCALE, LARGEST_SCALE))


@dataclass
class Layer:
    """A fully connected layer: ``x @ weight + bias``."""

    weight: Array
    bias: Array
    grad_scale: GradScale = field(default_factory=GradScale)


Network = list[Layer]


def new_network(sizes: Sequence[int], seed: int) -> Network:
    """Draw a network with layers between the given sizes; weights have variance 2 / inputs (He et al. 2015)."""
    rng = np.random.default_rng(seed)
    return [
        Layer(rng.normal(0, (2 / rows) ** 0.5, (rows, columns)).astype(np.float32), np.zeros(columns, np.float32))
        for rows, columns in pairwise(sizes)
    ]


def parameters(network: Network) -> list[Array]:
    """List every layer's weight and bias, in the order of `gradients`."""
    return [array for layer in network for array in (layer.weight, layer.bias)]


def rescale(x: Array, recipe: Recipe, axis: int | None = None) -> Array:
    """Round weights or activations as `recipe` says, the least number to -8 and the greatest to 7."""
    return x if recipe.forward is None else lb.fake_quantize(x, recipe.forward, scale="minmax", axis=axis)


def round_gradient(dy: Array, grid: str | None, grad_scale: GradScale) -> Array:
    """Round ``grad_scale.scale * dy`` to `grid` and divide the scale out again: exact, for it is a power of two."""
    return dy if grid is None else lb.fake_quantize(dy, grid, scale=1 / grad_scale.scale)


def forward(network: Network, x: Array, recipe: Recipe) -> tuple[Array, list[tuple[Array, Array, Array]]]:
    """Return the scores, shape (images, 10), and each layer's input, rounded input and rounded weight."""
    kept = []
    for i, layer in enumerate(network):
        x = np.maximum(x, 0) if i else x
        # A scale for each image, so that a picture is seen the same whatever its batch.
        xq, wq = rescale(x, recipe, axis=0), rescale(layer.weight, recipe)
        kept.append((x, xq, wq))
        x = xq @ wq + layer.bias
    return x, kept


def gradients(network: Network, x: Array, labels: NDArray[np.int64], recipe: Recipe) -> tuple[list[Array], list[int]]:
    """Differentiate the mean cross-entropy of one batch.

    Returns
    -------
    grads : list of numpy.ndarray
        One gradient for each of `parameters`. Rounding passes gradients straight through.
    votes : list of int
        Each layer's vote on its gradient scale.
    """
    scores, kept = forward(network, x, recipe)
    dy = np.exp(scores - scores.max(axis=1, keepdims=True))
    dy /= dy.sum(axis=1, keepdims=True)
    dy[np.arange(len(labels)), labels] -= 1
    dy /= np.float32(len(labels))

    grads, votes = [], []
    for layer, (x_in, xq, wq) in zip(reversed(network), reversed(kept), strict=True):
        votes.append(layer.grad_scale.vote(dy))
        odd = round_gradient(dy, recipe.grad_weight, layer.grad_scale)
        grads += [odd.sum(axis=0), xq.T @ odd]
        if layer is not network[0]:
            even = round_gradient(dy, recipe.grad_input, layer.grad_scale)
            dy = (even @ wq.T) * (x_in > 0)
    return grads[::-1], votes[::-1]


def accuracy(network: Network, x: Array, labels: NDArray[np.int64], recipe: Recipe) -> float:
    """Share of the images whose greatest score is their label's, in per cent, with the forward pass of `recipe`."""
    scores, _ = forward(network, x, recipe)
    return float(np.mean(scores.argmax(axis=1) == labels) * 100)


@dataclass
class Momentum:
    """Gradient descent with momentum 0.9 and a rate that falls to zero on a straight line."""

    rate: float
    steps: int

    def __post_init__(self) -> None:
        self.step = 0
        self.velocity: list[Array] = []

    def update(self, network: Network, grads: list[Array], votes: Sequence[int]) -> None:
        """Move the weights by `grads` and every layer's gradient scale by the sum of its votes."""
        rate = np.float32(self.rate * (1 - self.step / self.steps))
        self.velocity = [np.float32(0.9) * v + g for v, g in zip(self.velocity or [0] * len(grads), grads, strict=True)]
        for parameter, velocity in zip(parameters(network), self.velocity, strict=True):
            parameter[...] -= rate * velocity
        for layer, total in zip(network, votes, strict=True):
            layer.grad_scale.update(total)
        self.step += 1


def batches(n: int, size: int, epochs: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Give the row numbers of every batch: each epoch in a new order, the short last batch left out."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        yield from np.split(rng.permutation(n)[: n // size * size], n // size)
