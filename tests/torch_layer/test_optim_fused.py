"""bfloat16 weights stepped in one pass: the NumPy twin's bits, whatever the options, threads and levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lowbit as lb
from lowbit import _core
from lowbit.torch import ops
from lowbit.torch.optim import LowPrecision
from torch_layer.optim_support import Twin
from torch_layer.torch_support import assert_same, numbers

SGD: dict[str, dict[str, Any]] = {
    "plain": {"lr": 0.01},
    "decay": {"lr": 0.01, "weight_decay": 0.1},
    "momentum": {"lr": 0.01, "momentum": 0.9},
    "dampening": {"lr": 0.01, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
    "nesterov": {"lr": 0.01, "momentum": 0.9, "nesterov": True, "maximize": True},
}
ADAM: dict[str, dict[str, Any]] = {
    "plain": {"lr": 1e-3},
    "decay": {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.8, 0.95)},
    "maximize": {"lr": 1e-3, "maximize": True, "eps": 1e-4},
}
CASES = [
    *[(torch.optim.SGD, name, options) for name, options in SGD.items()],
    *[(torch.optim.Adam, name, options) for name, options in ADAM.items()],
    *[(torch.optim.AdamW, name, options) for name, options in ADAM.items()],
]


def parameter(shape: tuple[int, ...], seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(numbers(shape, seed).to(torch.bfloat16))


def gradients(shape: tuple[int, ...], steps: int) -> list[torch.Tensor]:
    return [(numbers(shape, 100 + step) * 0.1).to(torch.bfloat16) for step in range(steps)]


@pytest.mark.parametrize("state", [None, "bfloat16"])
@pytest.mark.parametrize(("kind", "case", "options"), CASES, ids=lambda c: c if isinstance(c, str) else None)
def test_fifty_steps_are_the_twins(kind: Any, case: str, options: dict[str, Any], state: str | None) -> None:
    key, shapes = lb.Key(7), [(3, 101), (1,), (257,)]
    weights = [parameter(shape, i) for i, shape in enumerate(shapes)]
    optimizer = LowPrecision(kind(weights, **options), weight="bfloat16", momentum=state, key=key)
    twins = [Twin(w, key, i, state=state) for i, w in enumerate(weights)]
    options = optimizer.param_groups[0]
    for step in range(50):
        for i, (w, shape) in enumerate(zip(weights, shapes, strict=True)):
            w.grad = (numbers(shape, 100 + 3 * step + i) * 0.1).to(torch.bfloat16)
        optimizer.step()
        for w, twin in zip(weights, twins, strict=True):
            g = w.grad.float().numpy()
            if kind is torch.optim.SGD:
                twin.sgd(g, options)
            else:
                twin.adam(g, options, decoupled=kind is torch.optim.AdamW)
            assert_same(w.data, torch.from_numpy(twin.w).to(torch.bfloat16), f"weight {twin.index} after step {step}")
            for label, want in twin.states.items():
                found = optimizer.state[w][label]
                assert found.dtype is (torch.float32 if state is None else torch.bfloat16)
                assert_same(found, torch.from_numpy(want).to(found.dtype), f"{label} after step {step}")


def test_to_nearest_too() -> None:
    key, w = lb.Key(0), parameter((300,))
    optimizer = LowPrecision(torch.optim.AdamW([w], lr=0.01), weight="bfloat16", rounding="nearest")
    twin = Twin(w, key, state=None, nearest=True)
    for g in gradients((300,), 10):
        w.grad = g
        optimizer.step()
        twin.adam(g.float().numpy(), optimizer.param_groups[0], decoupled=True)
        assert_same(w.data, torch.from_numpy(twin.w).to(torch.bfloat16))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_the_arithmetic_is_torchs(kind: Any) -> None:
    """One step from the same numbers differs from torch's in float32 by a few units in the last place, before rounding.

    So the rounded weight is one of the two bfloat16 numbers around torch's.
    """
    options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    w = parameter((4000,))
    wide = torch.nn.Parameter(w.detach().float())
    ours = LowPrecision(kind([w], lr=0.01, weight_decay=0.1, **options), weight="bfloat16", key=1)
    theirs = kind([wide], lr=0.01, weight_decay=0.1, **options)
    for g in gradients((4000,), 5):
        wide.data = w.detach().float()
        w.grad, wide.grad = g, g.float()
        ours.step()
        theirs.step()
        names = [name for name in theirs.state[wide] if name != "step"]
        for name in names:
            torch.testing.assert_close(ours.state[w][name], theirs.state[wide][name], rtol=1e-5, atol=1e-7)
        near = wide.detach()
        step = torch.ldexp(torch.ones_like(near), torch.frexp(near).exponent - 8)
        assert ((w.detach().float() - near).abs() <= step * 1.001).all()
        assert (w.detach().float() != near.bfloat16().float()).float().mean() > 0.1, "it is not rounding to nearest"


def test_a_pass_is_the_general_way_but_for_the_order_of_sums() -> None:
    """Steps by powers of two are exact in any order: the two ways then give the same bits."""
    a, b = parameter((500,)), parameter((500,))

    class Mine(torch.optim.SGD):
        """Goes the general way."""

    fast = LowPrecision(torch.optim.SGD([a], lr=2.0**-6), weight="bfloat16", key=3)
    slow = LowPrecision(Mine([b], lr=2.0**-6), weight="bfloat16", key=3)
    for g in gradients((500,), 5):
        a.grad, b.grad = g, g.clone()
        fast.step()
        slow.step()
        assert_same(a.data, b.data)


def test_threads_and_levels_change_nothing() -> None:
    def run() -> torch.Tensor:
        w = parameter((20 * 16384 + 5,))
        optimizer = LowPrecision(torch.optim.AdamW([w], lr=0.01), weight="bfloat16", momentum="bfloat16", key=9)
        for g in gradients((20 * 16384 + 5,), 2):
            w.grad = g
            optimizer.step()
        return w.detach().clone()

    want, threads, level = run(), lb.get_num_threads(), _core.cpu_level()
    try:
        for name in _core.cpu_levels():
            _core.set_cpu_level(name)
            for n in (1, 2):
                lb.set_num_threads(n)
                assert_same(run(), want, f"{name} on {n} threads")
    finally:
        lb.set_num_threads(threads)
        _core.set_cpu_level(level)


def test_a_gradient_in_float32_or_of_another_layout() -> None:
    a, b, c = (parameter((6, 4)) for _ in range(3))
    for w, grad in ((a, None), (b, "strided"), (c, "rounded")):
        slot = {"grad": "bfloat16"} if grad == "rounded" else {}
        optimizer = LowPrecision(torch.optim.AdamW([w], lr=0.01), weight="bfloat16", key=9, **slot)
        g = gradients((6, 4), 1)[0]
        # bfloat16 numbers stay what they are when rounded to bfloat16.
        w.grad = g.t().contiguous().t() if grad == "strided" else g
        optimizer.step()
    assert_same(b.data, a.data)
    assert_same(c.data, a.data)


def test_other_memory_goes_the_general_way() -> None:
    w = torch.nn.Parameter(parameter((6, 4)).data.t())
    assert not w.is_contiguous()
    optimizer = LowPrecision(torch.optim.SGD([w], lr=2.0**-6), weight="bfloat16", key=1)
    w.grad = torch.ones_like(w)
    before = w.detach().clone()
    optimizer.step()
    want = ops.fake_quantize(before.float() - 2.0**-6, "bfloat16", rounding="stochastic", key=_weight_key(1))
    assert_same(w.data, want.to(torch.bfloat16))


def _weight_key(seed: int, step: int = 0, index: int = 0) -> lb.Key:
    return lb.Key(seed).fold("optim").fold(step).fold(index).fold("weight")


def test_weights_that_share_memory_are_refused() -> None:
    memory = torch.zeros(6, dtype=torch.bfloat16)
    a, b = torch.nn.Parameter(memory[:4]), torch.nn.Parameter(memory[2:])
    optimizer = LowPrecision(torch.optim.SGD([a, b], lr=0.1), weight="bfloat16", key=1)
    a.grad, b.grad = torch.ones(4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.bfloat16)
    with pytest.raises(lb.Error, match="tensors: weights, gradients and states share memory"):
        optimizer.step()


@pytest.mark.parametrize("bad", [np.zeros(4, np.float32), np.zeros(8, np.uint16)[::2]])
def test_the_core_checks_what_it_writes(bad: np.ndarray) -> None:
    good = np.zeros(4, np.uint16)
    with pytest.raises(TypeError, match="weight: expected a contiguous, aligned, writeable array of uint16"):
        _core.sgd_step([(0, bad, good, [])], (0, 0), [(0, 0)], False, (0.1, 1, 0, 0, 1), False)
    with pytest.raises(lb.Error, match="tensors: a gradient of 3"):
        _core.sgd_step([(0, good, np.zeros(3, np.float32), [])], (0, 0), [(0, 0)], False, (0.1, 1, 0, 0, 1), False)


def test_infinities_stay_large_and_nan_shows() -> None:
    w = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = LowPrecision(torch.optim.SGD([w], lr=1.0), weight="bfloat16", key=1)
    w.grad = torch.tensor([float("inf"), float("nan"), 1.0], dtype=torch.bfloat16)
    optimizer.step()
    largest = torch.finfo(torch.bfloat16).max
    assert w[0] == -largest
    assert w[1].isnan()
    assert w[2] == -1
