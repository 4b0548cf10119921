"""What the sources promise of their roundings, with fixed seeds: means, variances, and the error of two phases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lowbit.torch import Products, Rotation, Spec, nn
from torch_layer import reference as ref
from torch_layer.layer_support import FLOAT, RECIPES, n, normal


def gradients(products: Products, x: Tensor, w: Tensor, g: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Give dL/dx and dL/dW of so many passes."""
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False, products=products)
    with torch.no_grad():
        layer.weight.copy_(w)
    torch.manual_seed(0)
    every = []
    for _ in range(draws):
        given = x.clone().requires_grad_()
        layer.weight.grad = None
        layer(given).backward(g)
        every.append((given.grad, layer.weight.grad))
    dx, dw = zip(*every, strict=True)
    return torch.stack(dx).double(), torch.stack(dw).double()


def unbiased(draws: Tensor, exact: Tensor, step: float = 0.0) -> None:
    """The mean lies within five standard errors everywhere, and their squares are one on average.

    Numbers so small that no draw made them a `step` need only have had no great chance to be one.
    """
    error, spread = draws.mean(0) - exact, draws.std(0) / len(draws) ** 0.5
    moves = spread > 1e-7 * exact.abs().max()
    assert moves.float().mean() > 0.5
    z = (error / spread)[moves]
    assert z.abs().max() < 5, z.abs().max()
    assert (z.square().mean() - 1).abs() < 0.5
    assert (error[~moves].abs() <= 1e-5 * exact.abs().max() + 10 * step / len(draws)).all()


@pytest.mark.parametrize("samples", [1, 2])
def test_luq_is_unbiased_with_the_variance_of_its_steps(samples: int) -> None:
    """Facts of Chmiel et al., section 3: E[q] = g, Var[q] = (g - lower)(upper - g) / samples."""
    p = replace(RECIPES["luq" if samples == 1 else "luq, two samples"]().inner, weight=None, input=None)
    g = normal(12, 12) * torch.logspace(-3, 0, 12)
    eye, draws = torch.eye(12), 600
    dx, dw = gradients(p, eye, eye, g, draws)
    low, high = ref.luq_neighbours(n(g), float(g.abs().max()))
    size = np.abs(n(g).astype(np.float64))
    variance = (size - low) * (high - size) / samples
    for found, turn in ((dx, False), (dw, True)):
        own = found.transpose(1, 2) if turn else found
        unbiased(own, g.double(), float(g.abs().max()) / 64)
        ratio = own.var(0).sum() / variance.sum()
        assert abs(ratio - 1) < 0.1


def test_luqs_products_are_unbiased() -> None:
    p = RECIPES["luq"]().inner
    x, w, g = normal(16, 10), normal(8, 10, seed=1), normal(16, 8, seed=2)
    exact = gradients(replace(p, grad_input=None, grad_weight=None), x, w, g, 1)
    for found, want in zip(gradients(p, x, w, g, 500), exact, strict=True):
        unbiased(found, want[0])


@pytest.mark.parametrize("recipe", ["mxfp4", "nvfp4"])
def test_gradients_in_blocks_keep_the_mean(recipe: str) -> None:
    """Rotated or not. E4M3 rounds nvfp4's scales to nearest; what then lies beyond 6 is clipped, as published."""
    p = RECIPES[recipe]().inner
    only = replace(FLOAT, **{k: getattr(p, k) for k in ("grad_input", "grad_weight", "rotate_input", "rotate_weight")})
    x, w, g = normal(64, 32), normal(64, 32, seed=1), normal(64, 64, seed=2)
    every = gradients(only, x, w, g, 400)
    for found, exact in zip(every, (g.double() @ w.double(), g.double().T @ x.double()), strict=True):
        if recipe == "mxfp4":
            unbiased(found, exact)
        else:
            one, mean = ((e - exact).norm() / exact.norm() for e in (found[0], found.mean(0)))
            assert mean < 0.02
            assert one > 0.05


def test_a_drawn_rotation_spreads_an_outlier() -> None:
    """Tseng et al.: beside one large number nearest rounding loses the others; the rotation saves them."""
    x, w, g = normal(32, 16, seed=1), normal(32, 16, seed=2), normal(32, 32)
    g[5] = 40.0
    x[5] = 0  # it meets zeros: only the scale knows of it
    exact = g.double().T @ x.double()
    errors = []
    for turn in (None, Rotation(32)):
        p = replace(FLOAT, grad_weight=Spec("mxfp4", per="block"), rotate_weight=turn)
        errors.append((gradients(p, x, w, g, 20)[1] - exact).square().mean() / exact.square().mean())
    assert errors[1] < 0.75 * errors[0], errors


def test_signs_are_drawn_at_every_call_unless_fixed() -> None:
    spec = Spec("mxfp4", per="block")
    x, w, g = normal(64, 16), normal(32, 16, seed=1), normal(64, 32, seed=2)
    for fixed in (False, True):
        turn = Rotation(32, fixed=fixed)
        p = replace(FLOAT, grad_input=spec, grad_weight=spec, rotate_input=turn, rotate_weight=turn)
        for found in gradients(p, x, w, g, 2):
            assert torch.equal(found[0], found[1]) == fixed


def test_two_phases_are_better_than_one() -> None:
    """Facts of Sun et al., derived for log-uniform numbers over whole periods: E[q / x] and E[(q / x - 1)^2]."""
    count = 1 << 16
    # Stratified: the middle of every cell of [4^-2, 4^2], so that only the formula is left.
    g = torch.from_numpy(np.float32(4.0 ** (4 * (np.arange(count) + 0.5) / count - 2))).reshape(256, 256)
    p = replace(RECIPES["sun2020"]().inner, weight=None, input=None)
    eye = torch.eye(256)
    even, odd = (n(found[0]).astype(np.float64) for found in gradients(p, eye, eye, g, 1))
    exact = n(g).astype(np.float64)
    shares = even / exact, odd.T / exact
    for share in shares:
        np.testing.assert_allclose(share.mean(), 1.2 / np.log(4), rtol=1e-3)
        np.testing.assert_allclose(share.mean(), 0.86562, atol=1e-3)
        np.testing.assert_allclose(np.square(share - 1).mean(), 0.13438, atol=1e-3)
    both = (shares[0] + shares[1]) / 2
    np.testing.assert_allclose(both.mean(), 0.86562, atol=1e-3)
    np.testing.assert_allclose(np.square(both - 1).mean(), 0.04782, atol=1e-3)
    opposite = ((shares[0] - 1) * (shares[1] - 1) < 0).mean()
    np.testing.assert_allclose(opposite, 0.678, atol=2e-3)


def test_base_two_has_the_error_of_its_midpoints() -> None:
    """Facts of section 1.3: radix 2, nearest: E[q / x] = (2/3)/ln 2 and E[(q / x - 1)^2] = 0.0382."""
    g = torch.from_numpy(np.float32(2.0 ** (4 * (np.arange(1 << 14) + 0.5) / (1 << 14) - 2))).reshape(128, 128)
    p = replace(RECIPES["sun2020, base 2"]().inner, weight=None, input=None)
    layer = nn.Linear(128, 128, bias=False, products=p)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(128))
    layer.site.grad_scale.fill_(8.0)
    x = torch.eye(128).requires_grad_()
    layer(x).backward(g)
    share = n(x.grad).astype(np.float64) / n(g)
    np.testing.assert_allclose(share.mean(), 2 / 3 / np.log(2), atol=1e-3)
    np.testing.assert_allclose(np.square(share - 1).mean(), 0.0382, atol=1e-3)
