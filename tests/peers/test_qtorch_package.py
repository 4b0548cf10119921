"""`lowbit.torch.qtorch` against QPyTorch itself (qtorch 0.3.0, its CPU kernels): the same bits, and each defect.

What differs is asserted exactly, on both sides; `docs/qtorch.md` lists it.
"""

from __future__ import annotations

import copy
import inspect
import shutil
from typing import Any

import numpy as np
import pytest
import torch

if not (shutil.which("c++") or shutil.which("g++")):
    pytest.skip("qtorch compiles its kernels when it is imported: it needs a C++ compiler", allow_module_level=True)

import qtorch
import qtorch.auto_low
import qtorch.optim
import qtorch.quant

from lowbit.torch import qtorch as ours
from support import assert_same, float32, wild

N = 1 << 20
FLOATS = [
    (1, 1),
    (1, 4),
    (2, 0),
    (2, 1),
    (2, 3),
    (3, 4),
    (4, 3),
    (5, 2),
    (5, 10),
    (6, 9),
    (7, 1),
    (8, 1),
    (8, 7),
    (8, 22),
]
FIXED = [(8, 4), (5, 4), (16, 12), (1, 3), (24, 2), (32, 16), (4, -3), (12, 100)]
BLOCKS = [1, 2, 4, 8, 12, 22]


def numbers(low: int, high: int, length: int) -> np.ndarray:
    """Any bits at all, numbers of these exponents with `length` bits, half of which are ties, and their neighbours."""
    rng = np.random.default_rng([low + 200, high + 200, length])
    exponent = rng.integers(max(low, -148), min(high, 127) + 1, N // 4)
    short = np.ldexp(1 + rng.integers(0, 1 << length, N // 4) / (1 << length), exponent).astype(np.float32)
    pattern = short.view(np.uint32) + rng.integers(-2, 3, N // 4).astype(np.uint32)
    signs = rng.integers(0, 2, 2 * (N // 4)).astype(np.uint32) << 31
    x = np.concatenate([short, pattern.view(np.float32)]).view(np.uint32) | signs
    return np.concatenate([wild(N // 2, length), x.view(np.float32)])


def same_but_nan(got: torch.Tensor, want: torch.Tensor, x: np.ndarray, what: object) -> None:
    """The same bits, -0 too, except that NaN is NaN."""
    nan = np.isnan(x)
    assert np.isnan(got.numpy()[nan]).all(), what
    assert_same(got.numpy()[~nan], want.numpy()[~nan], what)


@pytest.mark.parametrize(("exp", "man"), FLOATS)
def test_floats(exp: int, man: int) -> None:
    x = numbers(2 - 2 ** (exp - 1) - man - 3, 2 ** (exp - 1) + 2, man + 1)
    assert x.size == N
    want = qtorch.quant.float_quantize(torch.from_numpy(x), exp, man, rounding="nearest")
    got = ours.quant.float_quantize(torch.from_numpy(x), exp, man, rounding="nearest")
    same_but_nan(got, want, x, (exp, man))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize(("wl", "fl"), FIXED)
def test_fixed_point(wl: int, fl: int, clamp: bool, symmetric: bool) -> None:
    x = numbers(-fl - 3, wl - fl + 1, 5)
    want = qtorch.quant.fixed_point_quantize(torch.from_numpy(x), wl, fl, clamp, symmetric, "nearest")
    got = ours.quant.fixed_point_quantize(torch.from_numpy(x), wl, fl, clamp, symmetric, "nearest")
    same_but_nan(got, want, x, (wl, fl, clamp, symmetric))


def rows() -> np.ndarray:
    """1024 blocks of 1024: of every magnitude, many ties, zeros, subnormal numbers, and some that are not finite."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1024, 1024), np.float32)
    x[::2] = np.round(x[::2] * 32) / np.float32(32)
    x = np.ldexp(x, np.linspace(-160, 125, 1024).astype(np.int32)[:, None]).astype(np.float32)
    x[3], x[5] = 0, float32(rng.integers(0, 1 << 23, 1024))
    x[7, 9], x[8, 1], x[9, 2] = np.nan, np.inf, float32(0xFFFFFFFF)
    return x


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("wl", BLOCKS)
def test_blocks(wl: int, dim: int) -> None:
    if dim == -1:
        x, amax = rows()[100:600:7].copy(), None
        for row in x:
            want = qtorch.quant.block_quantize(torch.from_numpy(row), wl, rounding="nearest")
            assert_same(ours.quant.block_quantize(torch.from_numpy(row), wl, rounding="nearest"), want, wl)
        x, amax = wild(N, wl), np.float32(np.nan)
    else:
        x = np.moveaxis(rows().reshape(1024, 32, 32), 0, dim)
        amax = np.abs(x).max(tuple(d for d in range(3) if d != dim), keepdims=True)
    want = qtorch.quant.block_quantize(torch.from_numpy(x), wl, dim, "nearest").numpy()
    got = ours.quant.block_quantize(torch.from_numpy(x), wl, dim, "nearest").numpy()
    # Six times a power of two that is no float32: NaN. There all numbers of such a block are minus its largest, and NaN
    # of an infinite block is minus infinity where its bits are all ones.
    lost = np.broadcast_to(~(amax < 2.0**126), x.shape)
    finite = lost & np.isfinite(np.broadcast_to(amax, x.shape))
    assert np.isnan(got[lost]).all()
    assert not np.isfinite(want[lost & ~finite]).any()
    assert np.isnan(want[lost & ~finite & ~np.isnan(x)]).all()
    assert (want[finite] < -(2.0**125)).all()
    assert finite.any() == (dim != -1)
    assert_same(got[~lost], want[~lost], (wl, dim))


def test_stochastic_rounding_has_the_same_distribution() -> None:
    """Counts of both, against each other: chi-square with one degree of freedom for each number, summed."""
    values = float32(np.random.default_rng(3).integers(0x3C000000, 0x40400000, 40))
    x = torch.from_numpy(np.tile(values, (20_000, 1)))
    torch.manual_seed(1)
    for name, arguments in (("float_quantize", (3, 2)), ("fixed_point_quantize", (8, 4)), ("block_quantize", (6,))):
        up = []
        for package in (qtorch.quant, ours.quant):
            y = getattr(package, name)(x, *arguments).numpy()
            up.append((y > x.numpy()).sum(0).astype(np.float64))
        mean = (up[0] + up[1]) / 2
        varies = (mean > 0) & (mean < len(x))
        variance = 2 * mean * (1 - mean / len(x))
        chi2 = ((up[0] - up[1]) ** 2 / np.where(varies, variance, 1)).sum()
        # Four standard deviations of chi-square; QPyTorch's draws cannot be repeated.
        assert chi2 < varies.sum() + 4 * np.sqrt(2 * varies.sum()), name
        assert varies.sum() > 30


def test_every_public_name_takes_what_theirs_takes() -> None:
    for theirs, mine in (
        (qtorch, ours),
        (qtorch.quant, ours.quant),
        (qtorch.optim, ours.optim),
        (qtorch.auto_low, ours.auto_low),
    ):
        assert set(theirs.__all__) == set(mine.__all__)
        for name in theirs.__all__:
            want = inspect.signature(getattr(theirs, name)).parameters.values()
            got = inspect.signature(getattr(mine, name)).parameters.values()
            assert [p.name for p in got if p.kind is not p.KEYWORD_ONLY] == [p.name for p in want]
            for p, q in zip(want, got, strict=False):
                # Their lists are our tuples, which nobody can change by accident.
                assert (tuple(p.default) if isinstance(p.default, list) else p.default) == q.default, (name, p.name)


FORMATS: list[tuple[str, tuple[Any, ...]]] = [
    ("FixedPoint", (6, 3)),
    ("FloatingPoint", (3, 2)),
    ("BlockFloatingPoint", (5, 0)),
]


@pytest.mark.parametrize(("forward", "backward"), [(0, 1), (1, 2), (2, 0), (0, None), (None, 0)])
def test_quantizers(forward: int | None, backward: int | None) -> None:
    values = torch.from_numpy(np.random.default_rng(1).standard_normal((64, 32), np.float32) * 4)
    found = []
    for package in (qtorch, ours):
        made = [None if i is None else getattr(package, FORMATS[i][0])(*FORMATS[i][1]) for i in (forward, backward)]
        x = values.clone().requires_grad_()
        y = package.quant.Quantizer(*made, "nearest", "nearest")(x)
        y.backward(values.flip(0))
        found.append((y.detach(), x.grad))
    for want, got in zip(*found, strict=True):
        assert_same(got.numpy(), want.numpy())


@pytest.mark.parametrize("symmetric", [False, True])
def test_clamped_numbers_have_no_gradient(symmetric: bool) -> None:
    values = torch.linspace(-3, 3, 4001)
    found = []
    for package in (qtorch, ours):
        number = package.FixedPoint(5, 3, symmetric=symmetric)
        x = values.clone().requires_grad_()
        y = package.quant.quantizer(number, number, "nearest", "nearest", clamping_grad_zero=True)(x)
        y.sum().backward()
        found.append((y.detach(), x.grad))
    for want, got in zip(*found, strict=True):
        assert_same(got.numpy(), want.numpy())
    assert 500 < int((found[1][1] == 0).sum()) < 3500


def model() -> torch.nn.Sequential:
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.ModuleDict({"pool": torch.nn.MaxPool2d(2)})["pool"],
        torch.nn.Flatten(),
        torch.nn.Sequential(torch.nn.Linear(36, 10), torch.nn.Dropout(0.0)),
    )


@pytest.mark.parametrize(
    "kinds", [["conv", "linear"], ["activation", "pool", "normalization"], list(ours.auto_low.LAYERS_TYPES)]
)
def test_lowered_models(kinds: list[str]) -> None:
    x = torch.randn(8, 1, 8, 8)
    found = []
    for package in (qtorch, ours):
        number = package.FixedPoint(8, 4)
        options = {"layer_types": kinds, "forward_number": number, "backward_number": number}
        options |= {"forward_rounding": "nearest", "backward_rounding": "nearest"}
        hooked, copied = model(), package.auto_low.sequential_lower(model(), **options)
        package.auto_low.lower(hooked, **options)
        for lowered in (hooked, copied):
            y = lowered(x)
            y.square().sum().backward()
            found.append([y.detach(), *(p.grad for p in lowered.parameters())])
        found.append(list(copied.state_dict()))
    assert found[2] == found[5]
    for want, got in zip([*found[0], *found[1]], [*found[3], *found[4]], strict=True):
        assert_same(got.numpy(), want.numpy())


def test_kinds_of_layers() -> None:
    from qtorch.auto_low.auto_low import LAYERS_TYPES

    assert {kind: set(classes) for kind, classes in LAYERS_TYPES.items()} == ours.auto_low.LAYERS_TYPES


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.05),
    ],
)
def test_optimizers(make: Any, accumulate: bool) -> None:
    found = []
    for package in (qtorch, ours):

        def rounding(number: Any, package: Any = package) -> Any:
            return package.quant.quantizer(number, forward_rounding="nearest")

        network = model()
        optimizer = package.optim.OptimLP(
            make(network.parameters()),
            weight_quant=rounding(package.FixedPoint(8, 6)),
            grad_scaling=4.0,
            grad_quant=rounding(package.FloatingPoint(5, 2)),
            momentum_quant=rounding(package.BlockFloatingPoint(8)),
            acc_quant=rounding(package.FixedPoint(16, 12)) if accumulate else None,
        )
        torch.manual_seed(3)
        for _ in range(20):
            optimizer.zero_grad()
            network(torch.randn(4, 1, 8, 8)).square().mean().backward()
            optimizer.step()
        found.append([p.detach() for p in network.parameters()])
        assert repr(optimizer).startswith("LP Optimizer: ")
    for want, got in zip(*found, strict=True):
        assert_same(got.numpy(), want.numpy())


# What differs: theirs first.


def test_their_seeds_are_ignored() -> None:
    x = torch.linspace(-4, 4, 1000)
    for name, arguments in (("float_quantize", (4, 3)), ("block_quantize", (8,))):
        for package, same in ((qtorch.quant, False), (ours.quant, True)):
            draws = []
            for _ in range(2):
                torch.manual_seed(7)
                draws.append(getattr(package, name)(x, *arguments))
            assert torch.equal(*draws) == same, name


def test_their_nan_is_a_number() -> None:
    x = torch.from_numpy(float32([0x7FC00000, 0xFFFFFFFF]))
    assert qtorch.quant.float_quantize(x, 4, 3, "nearest").tolist() == [480, 0]
    assert ours.quant.float_quantize(x, 4, 3, "nearest").isnan().all()


#: A seed with which torch.rand gives an exact zero among its first 2**24 numbers.
ZERO_SEED = 1


def test_their_fixed_point_moves_numbers_of_the_grid() -> None:
    x = torch.full((1 << 24,), 3 / 16)
    torch.manual_seed(ZERO_SEED)
    assert not torch.rand(1 << 24).all()
    for package, still in ((qtorch.quant, False), (ours.quant, True)):
        torch.manual_seed(ZERO_SEED)
        assert bool((package.fixed_point_quantize(x, 8, 4) == x).all()) == still


def test_their_optimizer_drops_the_closure() -> None:
    for package, value in ((qtorch, None), (ours, 5.0)):
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = package.optim.OptimLP(torch.optim.SGD([weight], lr=0.1))
        assert optimizer.step(lambda: 5.0) == value


def test_their_hooks_need_another_option() -> None:
    for package, want in ((qtorch, 1.0), (ours, 2.0)):
        x = torch.ones(3, requires_grad=True)
        number = package.FixedPoint(8, 4)
        package.quant.quantizer(number, number, backward_hooks=[lambda g: 2 * g])(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [want] * 3


def test_their_clamped_gradient_needs_a_backward_number() -> None:
    for package, want in ((qtorch, 1.0), (ours, 0.0)):
        x = torch.full((3,), 100.0, requires_grad=True)
        package.quant.quantizer(package.FixedPoint(8, 4), clamping_grad_zero=True)(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [want] * 3


def test_their_numbers_are_float32() -> None:
    x = torch.linspace(-4, 4, 100)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        with pytest.raises(RuntimeError):
            qtorch.quant.float_quantize(x.to(dtype), 4, 3, "nearest")
        got = ours.quant.float_quantize(x.to(dtype), 4, 3, "nearest")
        assert got.dtype is dtype
        assert torch.equal(got.float(), ours.quant.float_quantize(x.to(dtype).float(), 4, 3, "nearest"))


def test_their_23_bits_change_the_sign() -> None:
    """They shift by -1, which C++ leaves undefined."""
    assert qtorch.quant.float_quantize(torch.ones(1), 8, 23, "nearest").item() != 1
    assert ours.quant.float_quantize(torch.ones(1), 8, 23, "nearest").item() == 1


def test_their_shared_containers_are_lowered_twice() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.two = torch.nn.Sequential(torch.nn.Linear(2, 2))

    for package, depth in ((qtorch, 2), (ours, 1)):
        lowered = package.auto_low.sequential_lower(Twice(), ["linear"], package.FixedPoint(8, 4))
        assert sum(isinstance(module, package.quant.Quantizer) for module in lowered.one[0].modules()) == 1
        found = lowered.one[0]
        for _ in range(depth):
            assert isinstance(found, torch.nn.Sequential)
            found = found[0]
        assert isinstance(found, torch.nn.Linear)


def test_their_lowered_models_are_not_copied() -> None:
    """A copy calls the original's layers: its forwards are closures."""
    for package, independent in ((qtorch, False), (ours, True)):
        network = torch.nn.Sequential(torch.nn.Linear(2, 2))
        package.auto_low.lower(network, ["linear"], package.FixedPoint(8, 4), forward_rounding="nearest")
        clone = copy.deepcopy(network)
        with torch.no_grad():
            network[0].weight.zero_()
            network[0].bias.zero_()
        assert bool(clone(torch.ones(1, 2)).any()) == independent
