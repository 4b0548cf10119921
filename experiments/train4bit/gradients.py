"""A. What rounding dL/dy does to dL/dW and dL/dx: real operands, no training in low precision.

Only `lowbit.fake_quantize` and float32 products are used, nothing of the PyTorch layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from capture import MOMENTS, Caught, catch
from torch import Tensor
from tqdm import tqdm

import lowbit as lb

NETWORKS = ("mnist", "speech", "transformer")
FIXED = (0, 8, 16, 24)
DRAWS = 4
GRIDS = {
    "radix-2": "radix(2,3)",
    "radix-4": "radix4",
    "radix-8": "radix(8,3)",
    "radix-4 without zero": "radix(4,3,nozero)",
    "INT4": "int4_symmetric",
}
#: How far the odd phase's grid lies below the even one's, as a factor: half a step of the exponent. Only radix 4's is a
#: power of two, which is why hardware can do it; integers have no second phase.
SHIFT = {"radix-2": 2**0.5, "radix-4": 2.0, "radix-8": 8**0.5, "radix-4 without zero": 2.0}


@dataclass(frozen=True)
class Quantizer:
    """One way to round dL/dy.

    Attributes
    ----------
    grid : str
        A name of `GRIDS`.
    rounding : str
        "nearest" or "stochastic".
    phases : int
        With 2, dL/dW sees the odd phase; dL/dx sees the even one in any case.
    scaling : str
        "gradscale": the power of two that brings the largest magnitude below the grid's largest value, above its half,
        where the votes settle; "amax"; or "2^k".
    """

    grid: str
    rounding: str
    phases: int
    scaling: str

    def scale(self, dy: Tensor) -> float:
        """Give the scale: what one unit of the grid stands for."""
        reference, largest = lb.get_format(GRIDS[self.grid]).reference, float(dy.abs().max())
        if largest == 0:
            return 1.0
        if self.scaling == "amax":
            return largest / reference
        if self.scaling == "gradscale":
            return 2.0 ** float(np.ceil(np.log2(largest / reference)))
        return 0.5 ** int(self.scaling.removeprefix("2^"))

    def round(self, dy: Tensor, *, odd: bool, key: lb.Key) -> Tensor:
        """Round for dL/dW (`odd`) or for dL/dx."""
        scale = self.scale(dy)
        if odd and self.phases == 2:
            scale /= SHIFT[self.grid]
        drawn = {"key": key.fold(int(odd))} if self.rounding == "stochastic" else {}
        return torch.from_numpy(
            lb.fake_quantize(dy.numpy(), GRIDS[self.grid], scale=scale, rounding=self.rounding, **drawn)
        )


def quantizers() -> Iterator[Quantizer]:
    """List all of them."""
    for grid in GRIDS:
        for rounding in ("nearest", "stochastic"):
            for phases in (1, 2) if grid in SHIFT else (1,):
                for scaling in ("gradscale", "amax", *(f"2^{k}" for k in FIXED)):
                    yield Quantizer(grid, rounding, phases, scaling)


def compare(rounded: list[Tensor], true: Tensor) -> dict[str, float]:
    """Measure draws of a rounded gradient against the true one.

    Returns
    -------
    dict
        `cosine`, `projection` <g', g>/|g|^2 (1: as long as the true one along it), `error` |g' - g|^2/|g|^2, and
        `variance`, the part of the error that differs from draw to draw.
    """
    stack = torch.stack([g.flatten() for g in rounded]).double()
    g = true.flatten().double()
    norm = g @ g
    along = stack @ g / norm
    squares = (stack * stack).sum(1)
    cosine = torch.where(squares > 0, along * (norm / squares).sqrt(), 0.0)
    spread = stack.var(dim=0, correction=1).sum() / norm if len(rounded) > 1 else torch.zeros(())
    error = ((stack - g) ** 2).sum(1).mean() / norm
    return {
        "cosine": float(cosine.mean()),
        "projection": float(along.mean()),
        "error": float(error),
        "variance": float(spread),
    }


def drift(layer: Caught, odd: Tensor) -> tuple[float, float]:
    """Measure E[x * error], which the paper says moves the weights.

    Returns
    -------
    mean : float
        E[x e] over all rows and weights, in units of rms(x) rms(dL/dy).
    excess : float
        For each weight the sum of x e over the rows, divided by the root of the sum of its squares, rms over the
        weights: 1 for errors of mean zero drawn for each number, more where errors add up because x knows of them.
    """
    error = odd - layer.dy
    sums, squares = error.T @ layer.x, error.square().T @ layer.x.square()
    unit = float(layer.x.square().mean() * layer.dy.square().mean()) ** 0.5
    used = squares > 0
    return float(sums.mean()) / len(error) / unit, float((sums[used].square() / squares[used]).mean().sqrt())


def measure(layer: Caught, how: Quantizer, seed: int) -> dict[str, Any]:
    """Measure one quantizer on one layer."""
    keys = [lb.Key(seed).fold("draw", i) for i in range(DRAWS if how.rounding == "stochastic" else 1)]
    odd = [how.round(layer.dy, odd=True, key=key) for key in keys]
    even = [how.round(layer.dy, odd=False, key=key) for key in keys]
    weight = compare([q.T @ layer.x for q in odd], layer.dy.T @ layer.x)
    inputs = compare([layer.back(q @ layer.w) for q in even], layer.back(layer.dy @ layer.w))
    mean, excess = drift(layer, odd[0])
    return {
        **{f"dW {name}": value for name, value in weight.items()},
        **{f"dx {name}": value for name, value in inputs.items()},
        "E[x e]": mean,
        "excess": excess,
        "zeros": float((odd[0] == 0).float().mean()),
    }


def collect(networks: Iterable[str] = NETWORKS, quick: bool = False) -> list[dict[str, Any]]:
    """Measure every quantizer at every moment of every network: one row each, the mean over the layers."""
    rows = []
    hows = [how for how in quantizers() if not quick or how.scaling == "gradscale"]
    with tqdm(total=len(tuple(networks)) * len(MOMENTS) * len(hows), desc="A. gradients") as bar:
        for network in networks:
            for moment, layers in catch(network):
                for how in hows:
                    seen = [measure(layer, how, seed) for seed, layer in enumerate(layers)]
                    mean = {name: float(np.mean([row[name] for row in seen])) for name in seen[0]}
                    rows.append({"network": network, "moment": moment, **vars(how), **mean})
                    bar.update()
    return rows
