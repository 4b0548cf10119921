"""Products of integers, read off packed codes, give the bits that products of floats give."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lowbit as lb
import lowbit.torch
from lowbit import _core
from lowbit.torch import Products, Recipe, Spec, _integer, recipes
from lowbit.torch import nn as quantized
from lowbit.torch._contract import Convolution, steps
from lowbit.torch._operands import Operand, rescaled
from lowbit.torch._operands import quantized as quantized_operand
from torch_layer.layer_support import RECIPES, normal

#: How many of a hidden layer's three products are integers.
INTEGER = {
    "int4_rescaled": 0,  # offsets
    "int4_forward": 1,
    "sun2020": 3,
    "sun2020, one phase": 3,
    "sun2020, amax": 3,
    "sun2020, fixed": 3,
    "sun2020, fp8 dW": 2,
    "sun2020, base 2": 3,
    "sun2020, base 8": 1,  # gradients have 2^18 steps
    "luq": 3,
    "luq, two samples": 1,
    "luq, in hindsight": 3,
    "mxfp4": 0,
    "nvfp4": 0,
    "nvfp4, unrotated": 0,
    "ternary": 1,
    "binary": 1,
    "lp": 0,
}


@pytest.mark.parametrize("format", [*lb.formats(), "table(-3,0,3,6)", "radix(8,3)", "fixed(4,1)"])
def test_what_is_said_to_be_multiplied_is(format: str) -> None:
    fmt = lb.get_format(format)
    packed = np.zeros((3 * fmt.bits + 7) // 8, np.uint8) if fmt.coded else np.zeros(6, np.uint8)
    b, out = np.zeros(2, np.uint8), np.empty((1, 1), np.float32)
    arguments = (packed, fmt.name, 1, 3, False, b, "int4", 3, 1, False, out)
    if _integer.multiplies(fmt.name):
        _core.code_product(*arguments)
    else:
        with pytest.raises((lb.Error, TypeError)):
            _core.code_product(*arguments)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the core was asked to multiply, and what it gave."""
    asked: list[tuple[Any, ...]] = []
    plain = _core.code_product

    def noted(*arguments: Any) -> None:
        plain(*arguments)
        asked.append((*arguments[:-1], arguments[-1].copy()))

    monkeypatch.setattr(_core, "code_product", noted)
    return asked


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(40, 48), nn.ReLU(), nn.Linear(48, 33), nn.ReLU(), nn.Linear(33, 7))


def trained(model: nn.Module, inputs: list[Tensor], *, scale: float = 1.0) -> list[Tensor]:
    """Three steps, and all that they changed."""
    torch.manual_seed(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen = []
    for batch in inputs:
        optimizer.zero_grad()
        x = batch.clone().requires_grad_()
        y = model(x)
        y = y[0] if isinstance(y, tuple) else y
        ((y - 1) ** 2 * scale).sum().backward()
        optimizer.step()
        assert x.grad is not None
        seen += [y.detach(), x.grad]
    return [*seen, *(p.detach() for p in model.parameters())]


def compare(model: nn.Module, recipe: Recipe, inputs: list[Tensor], **options: Any) -> None:
    recipe = replace(recipe, first=recipe.inner, last=recipe.inner)
    ways = [
        trained(lowbit.torch.prepare(copy.deepcopy(model), recipe, compute=compute), inputs, **options)
        for compute in ("float", "integer")
    ]
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_to_the_same_bits(recipe: str, products: list[tuple[Any, ...]]) -> None:
    compare(network(), RECIPES[recipe](), [normal(19, 40, seed=s) for s in range(3)])
    assert len(products) == 3 * 3 * INTEGER[recipe]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_too(dtype: torch.dtype) -> None:
    compare(network().to(dtype), recipes.sun2020(), [normal(9, 40, seed=s).to(dtype) for s in range(2)])


def test_sums_beyond_what_float32_holds_are_rounded_once(products: list[tuple[Any, ...]]) -> None:
    """Inputs that are alike, and gradients nearly all as large as radix-4 numbers get: sums pass 2^24 steps."""
    model = nn.Sequential(nn.Linear(1200, 130))
    compare(model, recipes.sun2020(scaling=2.0**4), [torch.rand(1100, 1200) for _ in range(2)], scale=40.0)
    largest = max(float(abs(arguments[-1]).max()) for arguments in products if arguments[1] == "radix4_odd")
    assert largest / lb.get_format("radix4_odd").smallest > 2**24


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Which products of convolutions the core was asked for, and what it gave."""
    asked: list[tuple[Any, ...]] = []
    plain = _core.code_convolution

    def noted(*arguments: Any) -> None:
        plain(*arguments)
        asked.append((*arguments[:-1], arguments[-1].copy()))

    monkeypatch.setattr(_core, "code_convolution", noted)
    return asked


def images() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 9, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(9, 4, 1)
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_convolves_to_the_same_bits(recipe: str, convolutions: list[tuple[Any, ...]]) -> None:
    compare(images(), RECIPES[recipe](), [normal(5, 3, 11, 8, seed=s) for s in range(2)])
    assert len(convolutions) == 2 * 3 * INTEGER[recipe]


GEOMETRIES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "strides": (nn.Conv2d(6, 8, 3, stride=(2, 3)), (3, 6, 13, 11)),
    "a stride that skips": (nn.Conv2d(6, 8, 2, stride=3), (3, 6, 13, 11)),
    "wide padding": (nn.Conv2d(6, 8, (3, 2), padding=(4, 1)), (2, 6, 5, 7)),
    "same": (nn.Conv2d(6, 8, 3, padding="same", dilation=2), (2, 6, 9, 7)),
    "dilation": (nn.Conv2d(6, 8, 3, dilation=(2, 3), stride=2, padding=1), (2, 6, 12, 15)),
    "groups": (nn.Conv2d(6, 9, 3, groups=3, padding=1), (2, 6, 8, 8)),
    "depthwise": (nn.Conv2d(7, 7, 3, groups=7, padding=1), (2, 7, 8, 8)),
    "a channel's many": (nn.Conv2d(5, 15, 3, groups=5), (2, 5, 8, 8)),
    "1 x 1": (nn.Conv2d(33, 17, 1), (3, 33, 5, 5)),
    "1 x 1, strides": (nn.Conv2d(33, 17, 1, stride=2), (3, 33, 6, 5)),
    "one pixel": (nn.Conv2d(4, 6, 3, padding=1), (9, 4, 1, 1)),
    "one channel": (nn.Conv2d(1, 1, 5, padding=2), (1, 1, 9, 9)),
    "1-D": (nn.Conv1d(6, 8, 5, stride=2, padding=3, dilation=2), (4, 6, 31)),
    "1-D, groups": (nn.Conv1d(6, 8, 3, groups=2), (4, 6, 31)),
    "empty": (nn.Conv2d(3, 4, 3), (0, 3, 6, 6)),
    "blocks": (nn.Conv2d(70, 66, 3, padding=1), (4, 70, 17, 19)),
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_geometry_gives_the_same_bits(geometry: str, convolutions: list[tuple[Any, ...]]) -> None:
    layer, shape = GEOMETRIES[geometry]
    for recipe in (recipes.sun2020(), recipes.luq()):
        compare(nn.Sequential(layer), replace(recipe, depthwise=True), [normal(*shape, seed=s) for s in range(2)])
    # Nothing has no gradients.
    assert len(convolutions) == 2 * 2 * (3 if shape[0] else 1)


def test_channels_last_stay_last(convolutions: list[tuple[Any, ...]]) -> None:
    inputs = [normal(5, 3, 11, 8, seed=s).contiguous(memory_format=torch.channels_last) for s in range(2)]
    compare(images(), recipes.sun2020(), inputs)
    assert convolutions
    model = lowbit.torch.prepare(images(), recipes.sun2020(), compute="integer")
    assert model(inputs[0]).is_contiguous(memory_format=torch.channels_last)


def test_sums_of_convolutions_beyond_what_float32_holds_are_rounded_once(convolutions: list[tuple[Any, ...]]) -> None:
    """As above: towards the weight over all places, towards the input over kernels and channels."""
    layer = nn.Sequential(nn.Conv2d(4, 256, 3, padding=1))
    compare(layer, recipes.sun2020(scaling=2.0**4), [torch.rand(20, 4, 16, 16) for _ in range(2)], scale=40.0)
    smallest = lb.get_format("radix4_odd").smallest
    for which in ("grad_input", "grad_weight"):
        largest = max(float(abs(arguments[-1]).max()) for arguments in convolutions if arguments[0] == which)
        assert largest / smallest > 2**24, which


def test_threads_do_not_change_convolutions() -> None:
    before, ways = lb.get_num_threads(), []
    model = lowbit.torch.prepare(images(), recipes.sun2020(), compute="integer")
    try:
        for threads in (1, 3):
            lb.set_num_threads(threads)
            ways.append(trained(copy.deepcopy(model), [normal(5, 3, 40, 40)]))
    finally:
        lb.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*ways, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    x = normal(9, 40)
    x[3, 4] = bad
    compare(network(), recipes.sun2020(), [normal(9, 40), x])
    compare(network(), recipes.luq(), [normal(9, 40), x])


def test_an_lstm_and_attention() -> None:
    compare(nn.LSTM(24, 17, num_layers=2), recipes.sun2020(), [normal(5, 6, 24, seed=s) for s in range(2)])
    layer = nn.TransformerEncoderLayer(32, 4, 40, dropout=0.0, batch_first=True)
    compare(nn.Sequential(layer), recipes.sun2020(), [normal(3, 5, 32, seed=s) for s in range(2)])


def test_a_frozen_model_multiplies_its_packed_codes(products: list[tuple[Any, ...]]) -> None:
    frozen = []
    for compute in ("float", "integer"):
        model = lowbit.torch.prepare(network(), recipes.sun2020(), compute=compute)  # type: ignore[arg-type]
        trained(model, [normal(9, 40)])
        products.clear()
        frozen.append(lowbit.torch.freeze(model.eval())(normal(1, 40)))
    assert len(products) == 1
    assert torch.equal(*frozen)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_layer_multiplies_integers(products: list[tuple[Any, ...]]) -> None:
    recipe = recipes.int4_forward()
    model = lowbit.torch.prepare(network(), recipe, compute="integer")
    want = trained(copy.deepcopy(model), [normal(9, 40)])
    model(normal(9, 40))  # where PACT starts
    count = len(products)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(normal(9, 40))
    assert len(products) == count + 1
    assert torch.equal(compiled(normal(9, 40)), want[0])


def test_auto_takes_integers_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(kernel: str, gradient: str, m: int, k: int, n: int) -> bool:
        monkeypatch.setattr(_core, "matmul_kernel", lambda: kernel)
        _integer._chosen.cache_clear()
        return _integer._chosen("auto", gradient, "uint4", m, k, n)

    assert chosen("avx2", "int4_symmetric", 1, 256, 256)
    assert chosen("avx2", "radix4", 512, 512, 512)
    assert not chosen("avx2", "radix4", 4, 64, 512)
    assert not chosen("portable", "int4_symmetric", 512, 512, 512)
    _integer._chosen.cache_clear()


def test_auto_takes_integers_for_convolutions_where_they_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(which: Any, gradient: str, channels: int, width: int, kernel: int = 3, stride: int = 1) -> bool:
        geometry = Convolution((stride, stride), (kernel // 2, kernel // 2), (1, 1), 1)
        x, w = (16, channels, width, width), (channels, channels, kernel, kernel)
        shapes = x, w, geometry.result_shape(x, w)
        return _integer._asked("auto", gradient, "int4_symmetric", which, geometry, shapes)

    monkeypatch.setattr(_core, "matmul_kernel", lambda: "avx2")
    _integer._chosen.cache_clear()
    assert chosen("forward", "uint4", 64, 32)
    assert not chosen("forward", "uint4", 16, 32)
    assert chosen("grad_input", "int4", 64, 32)
    assert not chosen("grad_input", "int4", 64, 32, stride=2)
    assert not chosen("grad_input", "radix4", 64, 32)
    assert chosen("grad_input", "radix4", 64, 32, kernel=1)
    assert chosen("grad_weight", "int4", 64, 32)
    assert not chosen("grad_weight", "int4", 64, 8)
    assert not chosen("grad_weight", "radix4_odd", 64, 32)
    assert chosen("grad_weight", "radix4_odd", 64, 32, kernel=1)
    monkeypatch.setattr(_core, "matmul_kernel", lambda: "portable")
    _integer._chosen.cache_clear()
    assert not chosen("forward", "uint4", 64, 32)
    _integer._chosen.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_default_dtype_is_of_no_account(kind: str, dtype: torch.dtype) -> None:
    layer, shape = (nn.Linear(8, 6), (3, 8)) if kind == "linear" else (nn.Conv2d(4, 6, 3), (2, 4, 5, 5))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        compare(nn.Sequential(layer.to(dtype)), recipes.sun2020(), [normal(*shape).to(dtype)])
    finally:
        torch.set_default_dtype(before)


def test_nor_is_the_default_device() -> None:
    model = lowbit.torch.prepare(network(), recipes.ternary(), compute="integer")
    x = normal(3, 40)
    want = model(x)
    with torch.device("meta"):
        assert torch.equal(model(x), want)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 4, 2, 5), "Kernel size"), ((2, 4, 1, 5), "Kernel size"), ((2, 3, 5, 5), "4 channels")],
    ids=str,
)
def test_what_a_kernel_does_not_fit_is_an_error(shape: tuple[int, ...], message: str) -> None:
    recipe = recipes.int4_forward()
    model = nn.Sequential(nn.Conv2d(4, 6, 3))
    model = lowbit.torch.prepare(model, replace(recipe, first=recipe.inner, last=recipe.inner), compute="integer")
    with pytest.raises(RuntimeError, match=message):
        model(normal(*shape))


def test_scales_whose_product_float32_has_not() -> None:
    """A power of two may be in the numbers or with the codes: zeros stay zeros."""
    spec = Spec("int4_symmetric", scale=2.0**60)
    g, w = torch.tensor([[2.0**60, 0.0], [0.0, 0.0]]), torch.tensor([[1.0], [0.0]])
    weight = Operand(w, torch.tensor(2.0**100), steps("int4_symmetric"))
    for integer in (False, True):
        a = quantized_operand(g, spec, axis=1, integer=integer)
        y = rescaled(a.values @ w, a, weight)
        assert y.tolist() == [[float("inf")], [0.0]]


def test_another_compute_is_refused() -> None:
    with pytest.raises(lb.Error, match="compute: 'int' is none of auto, integer, float"):
        lowbit.torch.prepare(network(), recipes.sun2020(), compute="int")  # type: ignore[arg-type]
    with pytest.raises(lb.Error, match="compute"):
        Products(compute="fast")  # type: ignore[arg-type]
    layer = quantized.Linear(4, 4, products=Products(compute="float"))
    assert layer.site.products.compute == "float"
