"""The reference itself: with the quantizers off it is what torch differentiates in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lowbit as lb
from lowbit.reference import get_format
from torch_layer import reference as ref

F = torch.nn.functional
OFF = dict.fromkeys(("weight", "input", "grad_input", "grad_weight", "weight_again", "input_again"))
FLOAT = SimpleNamespace(**OFF, rotate_input=None, rotate_weight=None)


def spec(format: str, **options: Any) -> Any:
    """Stand in for a `Spec`."""
    default = {"scale": None, "per": "tensor", "block_size": None, "rounding": "nearest", "samples": 1}
    return SimpleNamespace(format=format, gradient="pass", momentum=None, **(default | options))


def products(**specs: Any) -> Any:
    """Stand in for `Products`."""
    return SimpleNamespace(**(vars(FLOAT) | specs))


def normal(*shape: int, seed: int = 0) -> Any:
    """Numbers that float32 holds."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(np.float64)


def leaves(*arrays: Any) -> list[torch.Tensor]:
    return [torch.from_numpy(a).requires_grad_() for a in arrays]


def close(got: Any, want: torch.Tensor | None) -> None:
    assert want is not None
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 2), (3, 1, 2, 4), (2, 0, 1, 4)]
)
@pytest.mark.parametrize("axes", [1, 2])
def test_convolutions(axes: int, stride: int, padding: int, dilation: int, groups: int) -> None:
    x, w, b = normal(3, 8, *(11, 10)[:axes]), normal(4, 8 // groups, *(3, 2)[:axes], seed=1), normal(4, seed=2)
    kind = ref.Convolution((stride,) * axes, (padding,) * axes, (dilation,) * axes, groups)
    product = ref.Product(FLOAT, kind)
    y = product.forward(x, w, b)
    tx, tw, tb = leaves(x, w, b)
    ty = (F.conv1d, F.conv2d)[axes - 1](tx, tw, tb, stride, padding, dilation, groups)
    close(y, ty)
    g = normal(*ty.shape, seed=3)
    ty.backward(torch.from_numpy(g))
    found = product.backward(g)
    close(found.x, tx.grad)
    close(found.w, tw.grad)
    close(found.b, tb.grad)


def test_lstm() -> None:
    x, w_ih, w_hh = normal(6, 3, 5), 0.5 * normal(16, 5, seed=1), 0.5 * normal(16, 4, seed=2)
    b_ih, b_hh, dy = normal(16, seed=3), normal(16, seed=4), normal(6, 3, 4, seed=5)
    lstm = ref.Lstm(FLOAT, ref.Site(), ref.Site())
    y = lstm.forward(x, w_ih, w_hh, b_ih, b_hh)
    module = torch.nn.LSTM(5, 4, dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), (w_ih, w_hh, b_ih, b_hh), strict=True):
            parameter.copy_(torch.from_numpy(value))
    (tx,) = leaves(x)
    ty = module(tx)[0]
    close(y, ty)
    ty.backward(torch.from_numpy(dy))
    of_input, of_hidden = lstm.backward(dy)
    close(of_input.x.reshape(x.shape), tx.grad)
    close(of_input.w, module.weight_ih_l0.grad)
    close(of_hidden.w, module.weight_hh_l0.grad)
    close(of_hidden.b, module.bias_hh_l0.grad)


def test_attention() -> None:
    x, dy, w_in, w_out = normal(2, 5, 8), normal(2, 5, 8, seed=1), 0.3 * normal(24, 8, seed=2), normal(8, 8, seed=3)
    b_in, b_out = normal(24, seed=4), normal(8, seed=5)
    attention = ref.Attention(FLOAT, 2, ref.Site(), ref.Site())
    y = attention.forward(x, w_in, b_in, w_out, b_out)
    module = torch.nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), (w_in, b_in, w_out, b_out), strict=True):
            parameter.copy_(torch.from_numpy(value))
    (tx,) = leaves(x)
    ty = module(tx, tx, tx)[0]
    close(y, ty)
    ty.backward(torch.from_numpy(dy))
    of_in, of_out = attention.backward(dy)
    close(of_in.x.reshape(x.shape), tx.grad)
    close(of_in.w, module.in_proj_weight.grad)
    close(of_in.b, module.in_proj_bias.grad)
    close(of_out.w, module.out_proj.weight.grad)


@pytest.mark.parametrize("signed", [False, True])
def test_pact_is_the_derivative_of_a_clamp(signed: bool) -> None:
    x, w, g, alpha = normal(20, 6), normal(5, 6, seed=1), normal(20, 5, seed=2), 0.8125
    product = ref.Product(products(input=spec("uint4", scale="pact")), site=ref.Site(alpha, signed))
    product.forward(x, w)
    found = product.backward(g)
    tx, ta = leaves(x, np.array(alpha))
    F.linear(torch.clamp(tx, -ta if signed else torch.zeros(()), ta), torch.from_numpy(w)).backward(torch.from_numpy(g))
    close(found.x, tx.grad)
    assert ta.grad is not None
    np.testing.assert_allclose(found.alpha, ta.grad.item(), rtol=1e-5)


def test_products_of_integers_are_scaled_afterwards() -> None:
    """Every number by hand: X = 2 {1, -3}, W = 0.5 {2, 1}, dL/dy = 1 -> {1}."""
    four = {
        "weight": spec("int4", scale=0.5),
        "input": spec("int4", scale=2.0),
        "grad_input": spec("radix4", scale=1.0),
    }
    product = ref.Product(products(**four, grad_weight=spec("radix4_odd", scale=1.0)))
    assert product.forward(np.array([[2.1, -5.5]]), np.array([[1.1, 0.4]])).tolist() == [[-1.0]]
    found = product.backward(np.array([[0.7]]))
    assert (found.x.tolist(), found.w.tolist(), found.b.tolist()) == ([[1.0, 0.5]], [[1.0, -3.0]], [np.float32(0.7)])
    assert product.exact
    assert found.exact_x
    assert found.exact_w


def test_rotations_leave_the_products() -> None:
    turns = {
        "rotate_input": SimpleNamespace(block=4, fixed=False),
        "rotate_weight": SimpleNamespace(block=8, fixed=True),
    }
    x, w, g = normal(13, 7), normal(6, 7, seed=1), normal(13, 6, seed=2)
    turned, plain = ref.Product(products(**turns)), ref.Product(FLOAT)
    for product in (turned, plain):
        product.forward(x, w, key=lb.Key(3))
    a, b = turned.backward(g), plain.backward(g)
    np.testing.assert_allclose(a.x, b.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a.w, b.w, rtol=1e-5, atol=1e-5)


def test_tiles_share_a_scale() -> None:
    w = normal(40, 24).astype(np.float32)
    q = ref.rounded(w, spec("nvfp4", per="tile"), 1)
    assert len(np.unique(q.scale[16:32, :16])) == 1
    assert len(np.unique(q.scale)) > 3
    assert np.isin(q.values, get_format("nvfp4").values).all()
    assert (
        np.abs(q.real - w).max() <= np.abs(w).max() / 6 * 1.1
    )  # half of the largest gap, 2 of 6, and a scale's rounding


def test_the_vote_of_the_paper() -> None:
    state = ref.GradScale()
    assert state.vote() == 0
    up = np.nextafter(np.float32([32, 64]), np.float32(np.inf))
    for m, vote in zip([0, 32, up[0], 64, up[1], np.inf, np.nan], [1, 1, 0, 0, -1, -1, 0], strict=True):
        state.peak = float(m)
        assert state.vote() == vote, m


def test_luqs_neighbours() -> None:
    low, high = ref.luq_neighbours(np.array([0.1, 1.0, 1.5, -3.0, 63.0, 64.0]), 64.0)
    assert low.tolist() == [0, 1, 1, 2, 32, 64]
    assert high.tolist() == [1, 2, 2, 4, 64, 64]
