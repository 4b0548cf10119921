"""LowPrecision around any optimizer: each step is rounding, the optimizer's own step, and rounding again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

import lowbit as lb
from lowbit.torch import Spec
from lowbit.torch.optim import LowPrecision
from torch_layer.torch_support import assert_same, numbers, plain

CFLOAT = lb.cfloat8(4, 7)


class Lion(torch.optim.Optimizer):
    """An optimizer of somebody else's, with a state of its own name and a count in the group."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "count": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                mixed = state["velocity"] * 0.9 + p.grad * 0.1
                p.sub_(mixed.sign() * (group["lr"] / group["count"]))
                state["velocity"] = state["velocity"] * 0.99 + p.grad * 0.01
        return loss


INNER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "lion": lambda p: Lion(p, lr=0.01),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "weight": {"weight": "fp8_e4m3"},
    "all": {"weight": "fp8_e4m3", "grad": "fp8_e5m2", "momentum": CFLOAT, "grad_scale": 100.0},
    "accumulator": {"weight": "int4", "accumulator": "float16", "grad": "int8"},
    "blocks": {"weight": "mxfp8", "momentum": Spec("nf4", per="block", block_size=16, rounding="stochastic")},
    "channels": {"weight": Spec("int8", per="channel"), "momentum": "bfloat16"},
    "nearest": {"weight": "fp8_e4m3", "accumulator": lb.fixed_point(20, 16), "rounding": "nearest"},
}
SHAPES = [(5, 33), (64,), ()]


def round_to(x: np.ndarray, given: Any, rounding: str, key: lb.Key) -> np.ndarray:
    """What a slot does to numbers, by NumPy's API."""
    rows = x.reshape(1) if x.ndim == 0 else x
    options: dict[str, Any] = {}
    if isinstance(given, Spec):
        rounding = given.rounding
        if given.per == "channel":
            options["axis"] = 0
        if given.per == "block":
            options |= {"axis": -1, "block_size": given.block_size}
        given = given.format
    if rounding == "stochastic":
        options["key"] = key
    return lb.fake_quantize(rows, given, rounding=rounding, **options).reshape(x.shape)


class Twin:
    """The same around a plain optimizer of float32 tensors, tensor by tensor, in the order that the docs write."""

    def __init__(
        self, weights: list[torch.Tensor], inner: Callable[..., Any], key: lb.Key, setting: dict[str, Any]
    ) -> None:
        self.setting, self.key, self.count = {"rounding": "stochastic", "grad_scale": 1.0, **setting}, key, 0
        self.inside = [torch.nn.Parameter(w.detach().float().clone()) for w in weights]
        self.inner = inner(self.inside)
        self.weights = [w.detach().float().clone() for w in weights]

    def rounded(self, x: torch.Tensor, slot: str, index: int, name: str) -> torch.Tensor:
        """Round one tensor."""
        given = self.setting.get(slot)
        if isinstance(given, Mapping):
            given = given.get(name)
        if given is None:
            return x
        key = self.key.fold("optim").fold(self.count).fold(index).fold(name)
        return torch.from_numpy(round_to(x.detach().numpy(), given, self.setting["rounding"], key))

    def step(self, grads: list[torch.Tensor]) -> None:
        """Step."""
        scale = self.setting["grad_scale"]
        for i, (p, g) in enumerate(zip(self.inside, grads, strict=True)):
            p.grad = self.rounded(g.float() * scale, "grad", i, "grad") / scale
        self.inner.step()
        for i, p in enumerate(self.inside):
            p.data = self.rounded(p.data, "accumulator", i, "accumulator")
            self.weights[i] = self.rounded(p.data, "weight", i, "weight")
            if "accumulator" not in self.setting:
                p.data = self.weights[i].clone()
            for name, entry in self.inner.state[p].items():
                if name != "step":
                    self.inner.state[p][name] = self.rounded(entry, "momentum", i, name)
        self.count += 1


def grads(step: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [numbers(shape, 10 * step + i).to(dtype) for i, shape in enumerate(SHAPES)]


def weights(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(numbers(shape, 1000 + i).to(dtype)) for i, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("store", ["float", "packed"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("inner", INNER)
def test_fifty_steps_are_the_twins(inner: str, setting: str, store: str) -> None:
    """Packed too: codes between steps change no number, and the optimizer cannot tell."""
    options = SETTINGS[setting]
    if store == "packed" and (setting == "nearest" or not options.keys() & {"momentum", "accumulator"}):
        pytest.skip("nothing to pack, or no codes")
    ours, key = weights(), lb.Key(5)
    optimizer = LowPrecision(INNER[inner](ours), key=key, store=store, **options)
    twin = Twin(ours, INNER[inner], key, options)
    for step in range(50 if store == "float" else 10):
        for p, g in zip(ours, grads(step), strict=True):
            p.grad = g
        optimizer.step()
        twin.step(grads(step))
        for i, (p, want) in enumerate(zip(ours, twin.weights, strict=True)):
            assert_same(p.data, want, f"weight {i} after step {step}")
            if store == "float":
                for name, entry in twin.inner.state[twin.inside[i]].items():
                    found = optimizer.state[p][name]
                    assert_same(found.to(entry.dtype), entry, f"{name} of weight {i} after step {step}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("inner", ["rmsprop", "adamw foreach", "lion"])
def test_weights_of_other_dtypes_are_stepped_in_float32(inner: str, dtype: torch.dtype) -> None:
    ours, key = weights(dtype), lb.Key(5)
    name = {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(dtype, "fp8_e4m3")
    setting = {"weight": name, "momentum": "fp8_e5m2", "accumulator": "fp8_e4m3" if dtype is torch.float64 else None}
    setting = {slot: given for slot, given in setting.items() if given}
    optimizer = LowPrecision(INNER[inner](ours), key=key, **setting)
    twin = Twin(ours, INNER[inner], key, setting)
    before = list(ours)
    for step in range(20):
        for p, g in zip(ours, grads(step, dtype), strict=True):
            p.grad = g
        optimizer.step()
        if dtype is torch.float64:
            assert all((p.detach() == p.detach().float()).all() for p in ours)
            continue
        twin.step(grads(step, dtype))
        for p, want in zip(ours, twin.weights, strict=True):
            assert_same(p.data, want.to(dtype), step)
    groups = optimizer.param_groups[0]["params"]
    assert all(a is b and a is c for a, b, c in zip(before, ours, groups, strict=True)), "parameters stay the objects"
    assert all(p.dtype is dtype for p in ours)


def test_torch_operations_give_the_same_bits() -> None:
    def run() -> list[torch.Tensor]:
        ours = weights()
        optimizer = LowPrecision(INNER["adam"](ours), key=1, store="packed", **SETTINGS["blocks"])
        for step in range(3):
            for p, g in zip(ours, grads(step), strict=True):
                p.grad = g
            optimizer.step()
        return [p.detach() for p in ours]

    want = run()
    with plain():
        for got, p in zip(run(), want, strict=True):
            assert_same(got, p)


def test_the_order_and_the_scale_of_a_gradient() -> None:
    """QPyTorch's OptimLP leaves the gradient multiplied (its issue 59); here the scale is undone."""
    w = torch.nn.Parameter(torch.zeros(2))
    optimizer = LowPrecision(
        torch.optim.SGD([w], lr=1.0), grad=lb.fixed_point(8, 2), grad_scale=8.0, rounding="nearest"
    )
    w.grad = torch.tensor([0.04, 0.3])
    optimizer.step()
    # 0.32 and 2.4 in quarters are 0.25 and 2.5 (clipping begins at 31.75).
    assert w.tolist() == [-0.25 / 8, -2.5 / 8]
    assert w.grad.tolist() == [0.25 / 8, 2.5 / 8]


def test_momentum_by_name() -> None:
    ours = weights()
    formats = {"exp_avg": "fp8_e4m3", "exp_avg_sq": lb.cfloat16("uhp")}
    optimizer = LowPrecision(torch.optim.Adam(ours, lr=0.01), momentum=formats, key=1)
    for p, g in zip(ours, grads(0), strict=True):
        p.grad = g
    optimizer.step()
    for p in ours:
        for name, given in formats.items():
            values = torch.tensor(lb.get_format(given).values)
            assert torch.isin(optimizer.state[p][name], values).all(), name
    assert optimizer.state[ours[2]]["step"] == 1, "a count is no state to round, though it has this weight's shape"


def test_packed_states_take_what_their_bits_take() -> None:
    w = torch.nn.Parameter(torch.zeros(1024, 64))
    optimizer = LowPrecision(
        torch.optim.Adam([w]), momentum=CFLOAT, accumulator="float16", weight="int4", store="packed"
    )
    w.grad = torch.ones_like(w)
    optimizer.step()
    n, found = w.numel(), optimizer.footprint()
    assert (found.weights, found.accumulators, found.states) == (4 * n, 2 * n + 4, 2 * (n + 4) + 4)
    assert found.float32 == 12 * n + 4
    assert str(found).endswith(f"bytes instead of {found.float32} (67%)")
    taken = sum(part.nbytes for part in optimizer.state[w]["exp_avg"].values() if isinstance(part, torch.Tensor))
    assert taken == n + 4


def test_a_packed_group_that_is_not_finite_shows() -> None:
    w = torch.nn.Parameter(torch.zeros(64))
    momentum = Spec("int8", per="block", block_size=32, rounding="stochastic")
    optimizer = LowPrecision(torch.optim.SGD([w], lr=1.0, momentum=0.9), momentum=momentum, store="packed", key=1)
    w.grad = torch.zeros(64)
    w.grad[40] = float("inf")
    optimizer.step()
    w.grad = torch.zeros(64)
    optimizer.step()
    assert w[32:].isnan().all()
    assert (w[:32] == 0).all()


def test_counts_in_groups_do_not_run_away_when_weights_are_stepped_one_by_one() -> None:
    a, b, c = weights()
    inner = Lion([{"params": [a, b]}, {"params": [c]}], lr=0.01)
    optimizer = LowPrecision(inner, momentum="int8", store="packed", key=1)
    for p, g in zip((a, b, c), grads(0), strict=True):
        p.grad = g
    for step in range(3):
        optimizer.step()
        assert [group["count"] for group in inner.param_groups] == [step + 1] * 2
    assert [p is q for p, q in zip((a, b), inner.param_groups[0]["params"], strict=True)] == [True, True]


def test_weights_without_a_gradient_are_left_alone() -> None:
    a, b, c = weights(torch.bfloat16)
    before = b.detach().clone()
    optimizer = LowPrecision(torch.optim.AdamW([a, b, c], weight_decay=0.5), weight="bfloat16", key=1)
    a.grad = torch.ones_like(a)
    optimizer.step()
    assert_same(b.data, before)
    assert not optimizer.state.get(b)
    assert b.grad is None


def test_one_optimizer_of_bfloat16_and_float32_weights() -> None:
    a, b = torch.nn.Parameter(torch.ones(9, dtype=torch.bfloat16)), torch.nn.Parameter(torch.ones(9))
    optimizer = LowPrecision(torch.optim.Adam([a, b], lr=0.01), weight="bfloat16", momentum="bfloat16", key=1)
    for step in range(3):
        a.grad, b.grad = torch.ones_like(a), torch.ones_like(b)
        optimizer.step()
        assert optimizer.state[a]["step"] == optimizer.state[b]["step"] == step + 1
    assert (b.detach() == b.detach().bfloat16()).all(), "float32 on bfloat16's grid"
    assert (b.detach() != 1).all()
    assert optimizer.state[a]["exp_avg"].dtype is optimizer.state[b]["exp_avg"].dtype is torch.bfloat16


def test_copies_and_pickles_go_on_alike() -> None:
    ours = weights()
    optimizer = LowPrecision(INNER["sgd"](ours), weight="int8", momentum="int8", key=1)
    copies = [optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    results = []
    for one in copies:
        params = one.param_groups[0]["params"]
        for step in range(2):
            for p, g in zip(params, grads(step), strict=True):
                p.grad = g
            one.step()
        results.append(params)
    for params in results[1:]:
        for got, want in zip(params, results[0], strict=True):
            assert got is not want
            assert_same(got.data, want.data)


def test_it_says_what_it_is() -> None:
    optimizer = LowPrecision(INNER["adam"](weights()), weight="int8", momentum={"exp_avg": CFLOAT}, key=1)
    text = repr(optimizer)
    assert text.startswith(f"LowPrecision(weight='int8', momentum={{'exp_avg': {CFLOAT.name!r}}}, Adam (")
