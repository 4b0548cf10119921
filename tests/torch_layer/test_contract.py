"""Sums of products that float32 might not hold are cut into pieces: results are exact sums, rounded once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.torch import _contract
from lowbit.torch._contract import Convolution, Steps

RADIX4, UINT4 = Steps(2.0**-6, 4096), Steps(1.0, 15)
EXACT = 2**24


def codes(*shape: int, seed: int, heavy: float) -> Tensor:
    """Radix-4 numbers, of which a share is the largest."""
    draw = torch.Generator().manual_seed(seed)
    powers = 4.0 ** torch.randint(-3, 4, shape, generator=draw)
    largest = torch.rand(shape, generator=draw) < heavy
    return torch.where(largest, 64.0, powers) * (1 - 2.0 * torch.randint(0, 2, shape, generator=draw))


def inputs(*shape: int) -> Tensor:
    return torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(9)).float()


@pytest.mark.parametrize("heavy", [0.0, 0.3, 1.0])
def test_pieces_of_a_convolutions_weight_gradient_are_exact(heavy: float, monkeypatch: pytest.MonkeyPatch) -> None:
    where, n = Convolution((1,), (1,), (1,), 1), 24
    g, x = codes(n, 3, 200, seed=1, heavy=heavy), inputs(n, 4, 200)
    seen: list[tuple[Tensor, Tensor]] = []
    plain = Convolution._grad_weight

    def noted(self: Convolution, shape: Any, part: Tensor, rows: Tensor) -> Tensor:
        seen.append((part, rows))
        return plain(self, shape, part, rows)

    monkeypatch.setattr(Convolution, "_grad_weight", noted)
    got = where.grad_weight(torch.Size((3, 4, 3)), g, x, RADIX4, UINT4)
    assert torch.equal(torch.cat([part for part, _ in seen]), g)
    assert torch.equal(torch.cat([rows for _, rows in seen]), x)
    for part, _ in seen:
        assert part.abs().double().sum((0, 2)).max() * 64 * 15 < EXACT
    assert len(seen) > 1
    assert torch.equal(got, plain(where, (3, 4, 3), g.double(), x.double()).float())


def test_pieces_of_a_convolutions_input_gradient_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    where, channels = Convolution((1, 1), (1, 1), (1, 1), 1), 256
    g, w = codes(2, channels, 5, 5, seed=2, heavy=0.7), inputs(channels, 4, 3, 3)
    seen: list[tuple[Tensor, Tensor]] = []
    plain = Convolution._grad_input

    def noted(self: Convolution, shape: Any, part: Tensor, rows: Tensor) -> Tensor:
        seen.append((part, rows))
        return plain(self, shape, part, rows)

    monkeypatch.setattr(Convolution, "_grad_input", noted)
    got = where.grad_input(torch.Size((2, 4, 5, 5)), g, w, RADIX4, UINT4)
    assert torch.equal(torch.cat([part for part, _ in seen], 1), g)
    assert len(seen) > 1
    for part, _ in seen:
        assert part.abs().double().sum(1).max() * 9 * 64 * 15 < EXACT
    assert torch.equal(got, plain(where, (2, 4, 5, 5), g.double(), w.double()).float())


def test_one_sample_that_is_too_much_is_summed_in_float64() -> None:
    where = Convolution((1,), (0,), (1,), 1)
    g, x = torch.full((1, 1, 400), 64.0), torch.full((1, 1, 400), 15.0)
    g[..., -1], x[..., -1] = 2.0**-6, 1.0
    want = torch.tensor(399 * 64.0 * 15 + 2.0**-6, dtype=torch.float64).float()
    assert where.grad_weight(torch.Size((1, 1, 1)), g, x, RADIX4, UINT4).item() == want


@pytest.mark.parametrize("k", [273, 274, 1000, 5000])
def test_a_matrix_product_is_the_exact_sum_rounded_once(k: int) -> None:
    a, b = codes(3, k, seed=3, heavy=1.0), inputs(k, 4)
    got = _contract.matmul(a, b, RADIX4, UINT4)
    assert torch.equal(got, (a.double() @ b.double()).float())
