"""Linear, convolutions and embeddings against the float64 reference, under every recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lowbit.torch import Products, Rotation, Spec, nn
from torch_layer import reference as ref
from torch_layer.layer_support import (
    FLOAT,
    INT4,
    RECIPES,
    SUN,
    call_key,
    compare,
    n,
    near,
    normal,
    same_bits,
)

GRAD_SCALE = 2.0**4


def site_of(layer: Any, x: Any) -> ref.Site:
    """The reference's state of a layer that has seen its first batch."""
    site = ref.Site(signed=bool((x < 0).any()), grad_scale=ref.GradScale(GRAD_SCALE))
    spec = layer.site.products.input
    if spec is not None and spec.scale == "pact":
        site.alpha = layer.site.clip.item()
    return site


def run(layer: Any, x: Tensor, g: Tensor, seed: int = 1) -> tuple[Any, Tensor, Tensor]:
    """Warm a layer up, then take one step with a known key; give the key, the output and dL/dx."""
    layer(x)  # the first batch chooses what PACT starts from
    if layer.site.grad_scale is not None:
        layer.site.grad_scale.fill_(GRAD_SCALE)
    layer.zero_grad()
    key = call_key(seed)
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(g)
    assert x.grad is not None
    return key, y, x.grad


def check(layer: Any, kind: ref.Matrix | ref.Convolution, x: Tensor, g: Tensor) -> None:
    """Compare y, dL/dx, dL/dW, dL/db and dL/dalpha."""
    key, y, dx = run(layer, x, g)
    matrix = isinstance(kind, ref.Matrix)
    flat = n(x).reshape(-1, x.shape[-1]) if matrix else n(x)
    product = ref.Product(layer.site.products, kind, site_of(layer, n(x)))
    bias = None if layer.bias is None else n(layer.bias)
    want = product.forward(flat, n(layer.weight), bias, key)
    compare(y, want, product.exact)
    found = product.backward(n(g).reshape(want.shape))
    compare(dx, found.x, found.exact_x)
    compare(layer.weight.grad, found.w, found.exact_w)
    if layer.bias is not None:
        near(layer.bias.grad, found.b)
    if product.site.alpha is not None:
        near(layer.site.clip.grad, found.alpha)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("recipe", RECIPES)
def test_linear(recipe: str, positive: bool) -> None:
    layer = nn.Linear(36, 20, products=RECIPES[recipe]().inner)
    x, g = normal(3, 11, 36), normal(3, 11, 20, seed=1)
    check(layer, ref.Matrix(), x.relu() if positive else x, g)


CONVOLUTIONS = {
    "plain": {},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"padding": 2, "dilation": 2},
    "grouped": {"groups": 2},
    "all": {"stride": 2, "padding": 2, "dilation": 2, "groups": 4},
}


def kind_of(layer: Any) -> ref.Convolution:
    return ref.Convolution(layer.stride, layer.padding, layer.dilation, layer.groups)


@pytest.mark.parametrize("how", CONVOLUTIONS)
@pytest.mark.parametrize("axes", [1, 2])
def test_convolutions(axes: int, how: str) -> None:
    make = (nn.Conv1d, nn.Conv2d)[axes - 1]
    layer = make(8, 12, 3, products=RECIPES["sun2020"]().inner, **CONVOLUTIONS[how])
    x = normal(5, 8, *(9, 8)[:axes])
    g = normal(*layer(x).shape, seed=1)
    check(layer, kind_of(layer), x, g)


@pytest.mark.parametrize("recipe", RECIPES)
def test_convolutions_under_every_recipe(recipe: str) -> None:
    layer = nn.Conv2d(8, 12, (3, 2), products=RECIPES[recipe]().inner, bias=False)
    check(layer, kind_of(layer), normal(6, 8, 5, 4).relu(), normal(6, 12, 3, 3, seed=1))


@pytest.mark.parametrize("depth", [1, 8])
def test_depthwise_convolutions(depth: int) -> None:
    layer = nn.Conv2d(8, 8 * depth, 3, groups=8, products=SUN)
    check(layer, kind_of(layer), normal(2, 8, 5, 5), normal(2, 8 * depth, 3, 3, seed=1))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_is_not_zeros(mode: str) -> None:
    """The padded numbers are the input's own: they are quantized alike."""
    layer = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode, products=SUN)
    inner = nn.Conv2d(4, 4, 3, products=SUN)
    inner.load_state_dict(layer.state_dict())
    x, y = normal(2, 4, 6, 6).requires_grad_(), normal(2, 4, 6, 6).requires_grad_()
    one, two = layer(x), inner(torch.nn.functional.pad(y, (1, 1, 1, 1), mode))
    assert torch.equal(one, two)
    g = normal(*one.shape, seed=1)
    one.backward(g)
    two.backward(g)
    assert torch.equal(x.grad, y.grad)
    assert torch.equal(layer.weight.grad, inner.weight.grad)


def test_padding_by_name_and_input_without_batch() -> None:
    layer = nn.Conv1d(4, 4, 3, padding="same", dilation=2, products=SUN)
    numbered = nn.Conv1d(4, 4, 3, padding=2, dilation=2, products=SUN)
    numbered.load_state_dict(layer.state_dict())
    x = normal(2, 4, 9)
    assert torch.equal(layer(x), numbered(x))
    assert torch.equal(layer(x[0]), layer(x[:1])[0])


# --- Single parts -----------------------------------------------------------------------------------------------------

GRADIENTS = [
    Spec("radix4", scale="amax"),
    Spec("radix4_odd", scale="amax"),
    Spec("radix4", scale=2.0**-3),
    Spec("radix4", scale="gradscale"),
    Spec("radix4_odd", scale="gradscale"),
    Spec("luq4", scale="amax", rounding="stochastic"),
    Spec("luq4", scale="amax", rounding="stochastic", samples=3),
    Spec("int4", scale="amax", rounding="stochastic"),
    Spec("mxfp4", scale="ceil", per="block", rounding="stochastic"),
    Spec("nvfp4", per="block"),
    Spec("fp8_e5m2"),
]


@pytest.mark.parametrize("spec", GRADIENTS, ids=str)
def test_the_quantized_gradient_itself(spec: Spec) -> None:
    """With W and x the identity dL/dx and dL/dW are what dL/dy is rounded to: the codes of both products."""
    layer = nn.Linear(40, 40, bias=False, products=Products(None, None, grad_input=spec, grad_weight=spec))
    with torch.no_grad():
        layer.weight.copy_(torch.eye(40))
    g = normal(40, 40)
    key, _, dx = run(layer, torch.eye(40), g)
    scale = np.float32(1 / GRAD_SCALE) if spec.scale == "gradscale" else None
    by_row = ref.rounded(n(g), spec, 1, scale=scale, key=key.fold("grad_input"))
    near(dx, by_row.real, 1e-6)
    by_column = ref.rounded(n(g), spec, 0, scale=scale, key=key.fold("grad_weight"))
    near(layer.weight.grad, by_column.real.T, 1e-6)
    if spec.rounding == "stochastic":  # one draw for each product
        assert (n(dx) != n(layer.weight.grad).T).any()


def test_two_phases_share_one_scale() -> None:
    """Facts of the paper's figure 4: at one scale the odd phase is half of the even one at twice the number."""
    p = replace(RECIPES["sun2020"]().inner, weight=None, input=None)
    x = [0.0049, 0.0097, 0.0098, 0.04, 0.6, 0.7, 1.25, 2.4, 2.5, 5, 10, 30, 39.9, 40.1, 64, 100]
    even = [0, 0, 1 / 64, 0.0625, 0.25, 1, 1, 1, 4, 4, 16, 16, 16, 64, 64, 64]
    odd = [1 / 128] * 3 + [0.03125, 0.5, 0.5, 2, 2, 2, 8, 8, 32, 32, 32, 32, 32]
    layer = nn.Linear(16, 16, bias=False, products=p)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(16))
    layer.site.grad_scale.fill_(8.0)
    eye = torch.eye(16, requires_grad=True)
    layer(eye).backward(torch.diag(torch.tensor(x)) / 8)
    same_bits(eye.grad, np.diag(even) / 8)
    same_bits(layer.weight.grad, np.diag(odd) / 8)


def test_one_phase_uses_the_even_one_twice() -> None:
    p = RECIPES["sun2020, one phase"]().inner
    assert p.grad_input == p.grad_weight
    assert p.grad_input is not None
    assert p.grad_input.format == "radix4"


@pytest.mark.parametrize("weight", ["pass", "clip"])
def test_straight_through_the_weight(weight: Any) -> None:
    """With "clip": nothing for weights beyond SAWB's clip."""
    layer = nn.Linear(64, 32, bias=False, products=replace(FLOAT, weight=replace(INT4, gradient=weight)))
    with torch.no_grad():
        layer.weight.copy_(normal(32, 64))
    check(layer, ref.Matrix(), normal(7, 64), normal(7, 32, seed=1))
    alpha = 12.035 * np.sqrt(np.mean(n(layer.weight) ** 2)) - 12.03 * np.mean(np.abs(n(layer.weight)))
    beyond = np.abs(n(layer.weight)) > alpha
    assert beyond.sum() > 5
    assert (n(layer.weight.grad)[beyond] == 0).all() == (weight == "clip")


@pytest.mark.parametrize("clip", [False, True])
def test_straight_through_the_input(clip: bool) -> None:
    spec = Spec("int4_symmetric", scale="sawb", gradient="clip" if clip else "pass")
    layer = nn.Linear(64, 8, products=replace(FLOAT, input=spec))
    x, g = normal(9, 64), normal(9, 8, seed=1)
    check(layer, ref.Matrix(), x, g)
    dx = run(layer, x, g)[2]
    assert ((dx == 0).sum() > 5) == clip


def test_pacts_first_batch_chooses_the_format() -> None:
    recipe = RECIPES["sun2020"]()
    for x, signed in ((normal(4, 8).relu(), False), (normal(4, 8), True)):
        layer = nn.Linear(8, 4, products=recipe.inner)
        layer(x)
        assert layer.site.clip.item() == x.abs().max()
        layer(-x)  # later batches do not choose
        inside = layer(x.abs() * 0.3) - layer(-x.abs() * 0.3)
        assert inside.abs().max() > 1e-3
        minus = layer(-x.abs())
        assert torch.equal(minus, layer.bias.expand_as(minus)) != signed


@pytest.mark.parametrize("signed", [False, True])
def test_pacts_clip_learns(signed: bool) -> None:
    layer = nn.Linear(16, 8, products=RECIPES["sun2020"]().inner)
    x, g = normal(32, 16), normal(32, 8, seed=1)
    x = x if signed else x.relu()
    layer(x)
    with torch.no_grad():
        layer.site.clip.fill_(0.75)
    check(layer, ref.Matrix(), x, g)
    assert layer.site.clip.grad.abs() > 0
    assert isinstance(layer.site.clip, torch.nn.Parameter)


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_a_clip_that_training_drove_to_zero_gives_zeros(alpha: float) -> None:
    layer = nn.Linear(8, 4, products=RECIPES["sun2020"]().inner)
    layer(normal(3, 8).relu())
    with torch.no_grad():
        layer.site.clip.fill_(alpha)
    y = layer(normal(3, 8).relu())
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


def test_hindsight() -> None:
    """The scale of a gradient comes from those before it: m_t = (1 - eta) max|g_(t-1)| + eta m_(t-1)."""
    eta = 0.25
    spec = Spec("luq4", scale="hindsight", momentum=eta)
    layer = nn.Linear(4, 4, bias=False, products=Products(None, None, grad_input=spec, grad_weight=spec))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))
    peaks = [1.0, 3.0, 0.5, 8.0, 2.0]
    for peak, m in zip(peaks, ref.in_hindsight(peaks, eta), strict=True):
        x = torch.eye(4, requires_grad=True)
        g = torch.diag(torch.tensor([peak, peak / 2, -peak / 8, peak / 100]))
        layer(x).backward(g)
        scale = np.float32(np.float32(m) / np.float32(64))
        near(x.grad, ref.rounded(n(g), replace(spec, scale=None, momentum=None), 1, scale=scale).real, 1e-6)
        optimizer.step()


def test_hindsight_under_accumulation() -> None:
    """The maximum moves once for every step, from all that was seen since the last one."""
    spec = Spec("luq4", scale="hindsight", momentum=0.25)
    layer = nn.Linear(4, 4, bias=False, products=Products(None, None, grad_input=spec, grad_weight=spec))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4))

    def largest(peak: float) -> float:
        x = torch.eye(4, requires_grad=True)
        layer(x).backward(torch.full((4, 4), peak))
        return float(n(x.grad).max())

    largest(2.0)
    largest(6.0)
    optimizer.step()
    assert largest(100.0) == 6.0  # clipped by what was known
    assert largest(1.0) == pytest.approx(6 / 8)  # rounded to nearest: 1 / 6 of 64 is 10.7, and becomes 8
    optimizer.step()
    assert largest(1000.0) == pytest.approx(0.75 * 100 + 0.25 * 6)


def some_products(seed: int) -> Products:
    """Draw specs that have nothing to do with one another."""
    rng = np.random.default_rng(seed)

    def one(*specs: Spec | None) -> Spec | None:
        return specs[rng.integers(len(specs))]

    draw = "stochastic"
    shared = (
        None,
        Spec("int4"),
        Spec("mxfp4"),
        Spec("int4", per="block", block_size=5),
        Spec("fp8_e4m3fn", scale="amax"),
    )
    weights = *shared, INT4, Spec("ternary", gradient="clip"), Spec("nf4"), Spec("sign", per="channel"), Spec(
        "int8", rounding=draw
    )  # fmt: skip
    inputs = (
        *shared,
        Spec("int8", per="token"),
        Spec("uint4", scale="minmax"),
        Spec("int4", scale="sawb", rounding=draw),
    )
    grads = (*shared, *GRADIENTS, Spec("int8_symmetric", scale="gradscale", rounding=draw))
    turns = None, Rotation(4), Rotation(16, fixed=True)
    return Products(
        one(*weights), one(*inputs), one(*grads), one(*grads), one(None, *shared), one(None, *shared),
        turns[rng.integers(3)], turns[rng.integers(3)],
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_any_specs_go_together(seed: int) -> None:
    p = some_products(seed)
    if seed % 2:
        conv = nn.Conv2d(6, 10, 3, stride=(2, 1), padding=1, groups=1 + seed // 2 % 2, products=p)
        check(conv, kind_of(conv), normal(7, 6, 5, 4, seed=seed), normal(7, 10, 3, 4, seed=seed + 99))
    else:
        layer = nn.Linear(27, 21, products=p)
        check(layer, ref.Matrix(), normal(19, 27, seed=seed), normal(19, 21, seed=seed + 99))


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("block", [8, 16])
def test_rotations_cancel(block: int, fixed: bool) -> None:
    """Both operands are turned by one rotation, padding included: unquantized products do not change."""
    turn = Rotation(block, fixed=fixed)
    layer = nn.Linear(20, 12, products=replace(FLOAT, rotate_input=turn, rotate_weight=turn))
    x, g = normal(21, 20), normal(21, 12, seed=1)
    _, _, dx = run(layer, x, g)
    near(dx, n(g) @ n(layer.weight))
    near(layer.weight.grad, n(g).T @ n(x))
    check(layer, ref.Matrix(), x, g)
    layer = nn.Conv2d(4, 6, 3, products=replace(FLOAT, rotate_input=turn, rotate_weight=turn))
    check(layer, kind_of(layer), normal(5, 4, 6, 6), normal(5, 6, 4, 4, seed=1))


def test_embedding() -> None:
    for spec in (Spec("int4", per="channel"), Spec("int4_symmetric", scale="sawb", gradient="clip")):
        layer = nn.Embedding(30, 8, weight_spec=spec)
        with torch.no_grad():
            layer.weight.copy_(normal(30, 8))
        index = torch.tensor([[0, 5, 5], [29, 5, 1]])
        want = ref.Embedding(spec)
        y, g = layer(index), normal(2, 3, 8, seed=1)
        near(y, want.forward(index.numpy(), n(layer.weight)), 1e-7)
        y.backward(g)
        near(layer.weight.grad, want.backward(n(g)), 1e-6)


def test_embedding_keeps_torchs_options() -> None:
    layer = nn.Embedding(10, 4, padding_idx=3, weight_spec=Spec("int4", per="channel"))
    index = torch.tensor([3, 1, 3])
    y = layer(index)
    assert (y[0] == 0).all()
    y.sum().backward()
    assert (layer.weight.grad[3] == 0).all()
    assert (layer.weight.grad[1] == 1).all()
