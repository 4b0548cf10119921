"""SVRG, LP-SVRG and HALP against slow NumPy twins, and what they do with bad luck and bad input."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit import reference
from lowbit.torch.optim import HALP, LPSVRG, SVRG, full_gradient

Parameters = list[np.ndarray]
KEY = lb.Key(5)
EXACT = lb.float_format(8, 23, inf_nan="ieee")


class Data:
    """A linear regression with two outputs: 21 examples in batches of 4, the last of 1."""

    def __init__(self, batch: int = 4) -> None:
        rng = np.random.default_rng(7)
        self.x = rng.standard_normal((21, 3))
        self.y = self.x @ rng.standard_normal((3, 2)) + 0.3 * rng.standard_normal((21, 2))
        self.start = [rng.standard_normal((2, 3)), rng.standard_normal(2)]
        self.cuts = [slice(k, k + batch) for k in range(0, 21, batch)]

    def gradient(self, w: Parameters, rows: slice = slice(None)) -> Parameters:
        """Of the mean of (x w^T + b - y)^2 over rows and outputs."""
        error = self.x[rows] @ w[0].T + w[1] - self.y[rows]
        return [2 * error.T @ self.x[rows] / error.size, 2 * error.sum(0) / error.size]

    def value(self, w: Parameters) -> float:
        """What is minimized."""
        return float(((self.x @ w[0].T + w[1] - self.y) ** 2).mean())

    def best(self) -> float:
        """Its minimum."""
        ones = np.concatenate([self.x, np.ones((21, 1))], 1)
        w = np.linalg.lstsq(ones, self.y, rcond=None)[0].T
        return self.value([w[:, :3], w[:, 3]])

    def model(self) -> nn.Linear:
        """The network, at the start."""
        model = nn.Linear(3, 2).double()
        with torch.no_grad():
            for p, w in zip(model.parameters(), self.start, strict=True):
                p.copy_(torch.from_numpy(w))
        return model

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The cuts as tensors."""
        return [(torch.from_numpy(self.x[c]), torch.from_numpy(self.y[c])) for c in self.cuts]


def closure_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        value = nn.functional.mse_loss(model(batch[0]), batch[1])
        value.backward()
        return value

    return closure


def train(optimizer: torch.optim.Optimizer, model: nn.Module, data: Data, first: int, last: int) -> None:
    batches = data.batches()
    for step in range(first, last):
        optimizer.step(closure_of(model, batches[step % len(batches)]))


def start(make: Callable[..., Any], data: Data, **options: Any) -> tuple[nn.Linear, Any]:
    model = data.model()
    full = full_gradient(model, nn.MSELoss(), data.batches())
    return model, make(model.parameters(), full=full, **options)


def rounded(x: np.ndarray, name: str, scale: float, rounding: str, key: lb.Key) -> np.ndarray:
    given: dict[str, Any] = {"scale": scale, "rounding": rounding}
    if rounding == "stochastic":
        given["key"] = key
    return reference.fake_quantize(x.astype(np.float32), name, **given).astype(np.float64)


def twin(
    kind: str,
    data: Data,
    steps: int,
    *,
    lr: float,
    inner: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    mu: float = 1.0,
    bits: int = 8,
    scale: float = 1.0,
    rounding: str = "nearest",
    key: lb.Key = KEY,
) -> Parameters:
    """The algorithms as they are written, a number format's arithmetic by `lowbit.reference`."""
    name = f"fixed({bits},0)"
    fold = key.fold("optim").fold

    def full(w: Parameters) -> Parameters:
        return [g + weight_decay * p for g, p in zip(data.gradient(w), w, strict=True)]

    weights = list(data.start)
    if kind == "lpsvrg":
        weights = [rounded(p, name, scale, rounding, fold(0).fold(k).fold("start")) for k, p in enumerate(weights)]
    buffers: list[Any] = [None, None]
    for step in range(steps):
        if step % inner == 0:
            center, offsets, gradient = weights, [np.zeros_like(p) for p in weights], full(weights)
            scales = [float(np.float32(np.linalg.norm(g) / (mu * (2 ** (bits - 1) - 1)))) for g in gradient]
        rows = data.cuts[step % len(data.cuts)]
        here, there = data.gradient(weights, rows), data.gradient(center, rows)
        moved = []
        for k in range(2):
            d = here[k] - there[k] + gradient[k] + weight_decay * (weights[k] - center[k])
            buffers[k] = d if buffers[k] is None else momentum * buffers[k] + d
            change = lr * buffers[k]
            if kind == "svrg":
                moved.append(weights[k] - change)
            elif kind == "lpsvrg":
                moved.append(rounded(weights[k] - change, name, scale, rounding, fold(step).fold(k).fold("weight")))
            else:
                label = fold(step).fold(k).fold("offset")
                offsets[k] = rounded(offsets[k] - change, name, scales[k], rounding, label)
                moved.append(center[k] + offsets[k])
        weights = moved
    return weights


MAKERS: dict[str, Callable[..., Any]] = {
    "svrg": SVRG,
    "lpsvrg": lambda p, **o: LPSVRG(p, **{"rounding": "nearest", "scale": 2**-5, **o}),
    "halp": lambda p, **o: HALP(p, **{"rounding": "nearest", "mu": 0.5, **o}),
}
TWINS: dict[str, dict[str, Any]] = {"svrg": {}, "lpsvrg": {"scale": 2**-5}, "halp": {"mu": 0.5}}


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("inner", [1, 3, 7, 60])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("kind", ["svrg", "lpsvrg", "halp"])
def test_fifty_steps_are_the_twins(kind: str, batch: int, inner: int, rounding: str) -> None:
    data = Data(batch)
    for more in ({}, {"momentum": 0.5, "weight_decay": 0.1}):
        options = {"lr": 0.1, "inner": inner, **more}
        how = {} if kind == "svrg" else {"rounding": rounding, "key": KEY if rounding == "stochastic" else None}
        model, optimizer = start(MAKERS[kind], data, **options, **how)
        train(optimizer, model, data, 0, 50)
        want = twin(kind, data, 50, **TWINS[kind], **options, rounding=rounding)
        for p, w in zip(model.parameters(), want, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 8, 16, 24])
def test_offsets_are_integers_of_their_bits(bits: int) -> None:
    data = Data()
    model, optimizer = start(HALP, data, lr=0.2, inner=6, mu=4.0, bits=bits, key=1)
    clipped = 0
    for step in range(18):
        train(optimizer, model, data, step, step + 1)
        for p in model.parameters():
            state = optimizer.state[p]
            codes = state["offset"] / state["scale"]
            # The numbers are k s in float32.
            assert (codes - codes.round()).abs().max() <= codes.abs().max() * 2**-23
            assert -(2 ** (bits - 1)) <= codes.round().min()
            assert codes.round().max() <= 2 ** (bits - 1) - 1
            clipped += int(codes.round().min() == -(2 ** (bits - 1)))
            assert torch.equal(p.detach(), state["center"] + state["offset"])
            norm = float(state["full_grad"].norm())
            assert state["scale"] == pytest.approx(norm / (4.0 * (2 ** (bits - 1) - 1)), rel=1e-6)
    assert clipped > 0  # with so large a mu the box is reached


def test_eight_bits_go_where_a_fixed_grid_cannot() -> None:
    data = Data()
    gaps = {}
    for kind, options in {
        "svrg": {},
        "halp": {"rounding": "stochastic", "key": 0, "mu": 0.5},
        "lpsvrg": {"rounding": "stochastic", "key": 0},
    }.items():
        model, optimizer = start(MAKERS[kind], data, lr=0.1, inner=12, **options)
        train(optimizer, model, data, 0, 600)
        gaps[kind] = data.value([p.detach().numpy() for p in model.parameters()]) - data.best()
    assert gaps["svrg"] < 1e-12
    assert gaps["halp"] < 1e-12
    assert gaps["lpsvrg"] > 1e-5


def test_without_rounding_it_is_svrg() -> None:
    data = Data()
    ends = []
    for make, options in ((SVRG, {}), (LPSVRG, {"bits": EXACT, "key": 3})):
        model = data.model().float()
        batches = [(x.float(), y.float()) for x, y in data.batches()]
        full = full_gradient(model, nn.MSELoss(), batches)
        optimizer = make(model.parameters(), 0.1, 7, full, momentum=0.5, weight_decay=0.01, **options)
        for step in range(50):
            optimizer.step(closure_of(model, batches[step % len(batches)]))
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_many_bits_are_nearly_svrg() -> None:
    data = Data()
    want, plain = start(SVRG, data, lr=0.1, inner=7)
    train(plain, want, data, 0, 50)
    model, optimizer = start(HALP, data, lr=0.1, inner=7, mu=0.2, bits=24, key=0)
    train(optimizer, model, data, 0, 50)
    for a, b in zip(model.parameters(), want.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_gradient_of_zero_moves_nothing() -> None:
    data = Data()
    model = data.model()
    idle = nn.Parameter(torch.ones(3, dtype=torch.float64))
    x, y = data.batches()[0]

    def loss() -> Tensor:
        return nn.functional.mse_loss(model(x), y) + 0.0 * idle.sum()

    def full() -> None:
        loss().backward()

    def closure() -> Tensor:
        value = loss()
        value.backward()
        return value

    optimizer = HALP([*model.parameters(), idle], 0.1, 5, full, mu=0.5)
    for _ in range(12):
        optimizer.step(closure)
    assert optimizer.state[idle]["scale"] == 0.0
    assert torch.equal(idle, torch.ones(3, dtype=torch.float64))
    assert all(p.isfinite().all() for p in model.parameters())


def test_at_the_optimum_it_stays() -> None:
    model = nn.Linear(2, 1)
    x = torch.ones(4, 2)
    y = model(x).detach()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = HALP(model.parameters(), 0.1, 2, full_gradient(model, nn.MSELoss(), [(x, y)]), mu=1.0)
    for _ in range(5):
        optimizer.step(closure_of(model, (x, y)))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_has_no_grid() -> None:
    model = nn.Linear(2, 1)
    x, y = torch.full((4, 2), torch.inf), torch.ones(4, 1)
    optimizer = HALP(model.named_parameters(), 0.1, 2, full_gradient(model, nn.MSELoss(), [(x, y)]), mu=1.0)
    with pytest.raises(lb.Error, match=r"full: the gradient of 'weight' has the norm nan.*lower lr"):
        optimizer.step(closure_of(model, (x, y)))


@pytest.mark.parametrize("kind", ["svrg", "lpsvrg", "halp"])
def test_ten_steps_are_five_and_five(kind: str) -> None:
    data = Data()
    options: dict[str, Any] = {"lr": 0.1, "inner": 3, "momentum": 0.5, "weight_decay": 0.01}
    more: dict[str, Any] = {} if kind == "svrg" else {"rounding": "stochastic"}
    model, optimizer = start(MAKERS[kind], data, **options, **more)
    train(optimizer, model, data, 0, 5)  # in the middle of an inner loop
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(optimizer, model, data, 5, 10)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, other = start(MAKERS[kind], data, **options, **more)  # another key, until it is loaded
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    assert other.steps == 5
    train(other, resumed, data, 5, 10)
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), model.parameters(), strict=True))


def test_another_optimizers_state_is_refused() -> None:
    data = Data()
    _, plain = start(SVRG, data, lr=0.1, inner=3)
    _, halp = start(HALP, data, lr=0.1, inner=3, mu=1.0)
    with pytest.raises(lb.Error, match="state_dict: has no 'key'; it is not of HALP"):
        halp.load_state_dict(plain.state_dict())


def test_keys_decide_and_default_to_torchs_generator() -> None:
    data = Data()

    def end(key: int | None, seed: int) -> list[float]:
        torch.manual_seed(seed)
        model, optimizer = start(HALP, data, lr=0.1, inner=3, mu=1.0, bits=4, key=key)
        train(optimizer, model, data, 0, 5)
        return model.weight.flatten().tolist()

    assert end(1, 0) == end(1, 9)
    assert end(1, 0) != end(2, 0)
    assert end(None, 0) == end(None, 0)
    assert end(None, 0) != end(None, 1)


def test_groups_have_their_own_options() -> None:
    data = Data()
    model = data.model()
    full = full_gradient(model, nn.MSELoss(), data.batches())
    groups = [{"params": [model.weight], "mu": 0.5, "bits": 16}, {"params": [model.bias], "lr": 0.0, "bits": 4}]
    optimizer = HALP(groups, 0.1, 6, full, mu=2.0, key=0)
    train(optimizer, model, data, 0, 6)
    assert torch.equal(model.bias, torch.from_numpy(data.start[1]))
    for p, mu, levels in ((model.weight, 0.5, 2**15 - 1), (model.bias, 2.0, 7)):
        state = optimizer.state[p]
        assert state["scale"] == pytest.approx(float(state["full_grad"].norm()) / (mu * levels), rel=1e-6)
    assert not torch.equal(model.weight, torch.from_numpy(data.start[0]))


def test_parameters_added_later_begin_a_new_loop() -> None:
    data = Data()
    model = data.model()
    calls = []
    mean = full_gradient(model, nn.MSELoss(), data.batches())

    def full() -> None:
        calls.append(optimizer.steps)
        mean()

    model.bias.requires_grad_(False)
    optimizer = HALP([model.weight], 0.1, 4, full, mu=1.0, key=0)
    train(optimizer, model, data, 0, 6)
    assert calls == [0, 4]
    model.bias.requires_grad_(True)
    optimizer.add_param_group({"params": [model.bias], "bits": 6})
    train(optimizer, model, data, 6, 12)
    assert calls == [0, 4, 6, 10]
    assert not torch.equal(model.bias, torch.from_numpy(data.start[1]))
    with pytest.raises(lb.Error, match="bits: 1 is out of range; give 2 to 24"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "bits": 1})
    assert len(optimizer.param_groups) == 2


def test_schedulers_and_hooks_see_one_optimizer() -> None:
    data = Data()
    model, optimizer = start(HALP, data, lr=0.5, inner=6, mu=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    seen = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(model.weight.grad.clone()))
    train(optimizer, model, data, 0, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    # Of the first step the corrected gradient is the whole set's.
    np.testing.assert_allclose(seen[0].numpy(), data.gradient(data.start)[0], rtol=1e-12)


def test_dropout_drops_the_same_at_both_places() -> None:
    data = Data()
    model = nn.Sequential(nn.Dropout(0.5), data.model())
    full = full_gradient(model, nn.MSELoss(), data.batches())
    optimizer = SVRG(model.parameters(), 0.1, 4, full)
    drawn = []

    def closure() -> Tensor:
        drawn.append(torch.rand(1).item())
        return closure_of(model, data.batches()[0])()

    optimizer.step(closure)
    state = optimizer.state[model[1].weight]
    torch.testing.assert_close(model[1].weight.grad, state["full_grad"], rtol=1e-12, atol=0)
    optimizer.step(closure)
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def test_a_closure_that_fails_leaves_the_weights() -> None:
    data = Data()
    model, optimizer = start(SVRG, data, lr=0.1, inner=6)
    train(optimizer, model, data, 0, 2)
    before = model.weight.detach().clone()

    def closure() -> Tensor:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        optimizer.step(closure)
    assert torch.equal(model.weight, before)
    assert optimizer.steps == 2


def test_the_loss_is_that_at_the_weights() -> None:
    data = Data()
    model, optimizer = start(SVRG, data, lr=0.1, inner=6)
    train(optimizer, model, data, 0, 3)
    batch = data.batches()[0]
    want = nn.functional.mse_loss(model(batch[0]), batch[1]).item()
    assert optimizer.step(closure_of(model, batch)).item() == want


@pytest.mark.parametrize("make", [SVRG, LPSVRG, lambda p, **o: HALP(p, mu=1.0, **o)], ids=["SVRG", "LPSVRG", "HALP"])
def test_bad_use_of_all_three(make: Callable[..., Any]) -> None:
    data = Data()
    model, optimizer = start(make, data, lr=0.1, inner=3)
    with pytest.raises(TypeError, match=r"closure: .*give step\(closure\)"):
        optimizer.step()

    def bad(error: type[Exception], match: str, parameters: Any = None, **options: Any) -> None:
        given = model.parameters() if parameters is None else parameters
        with pytest.raises(error, match=match):
            make(given, **{"lr": 0.1, "inner": 3, "full": lambda: None, **options})

    bad(TypeError, "full: expected a function", full=None)
    bad(lb.Error, "inner: 0 is out of range", inner=0)
    bad(TypeError, "inner: expected an int, got float", inner=2.0)
    bad(lb.Error, "lr: -1.0 is out of range", lr=-1.0)
    bad(lb.Error, "lr: nan is out of range", lr=float("nan"))
    bad(TypeError, "lr: expected one real number", lr="fast")
    bad(lb.Error, "momentum: -0.5 is out of range", momentum=-0.5)
    bad(lb.Error, "weight_decay: inf is out of range", weight_decay=float("inf"))
    bad(TypeError, "params: parameter 0 of group 0 is torch.bfloat16", [nn.Parameter(torch.zeros(2).bfloat16())])
    bad(TypeError, "unexpected keyword argument 'decay'", decay=1.0)

    with pytest.raises(lb.Error, match="full: left no gradient in any parameter"):
        make(model.parameters(), lr=0.1, inner=3, full=lambda: None).step(lambda: None)

    table = nn.Embedding(4, 2, sparse=True)

    def full() -> None:
        table(torch.tensor([1])).sum().backward()

    with pytest.raises(TypeError, match="full: the gradient of 'weight' is sparse"):
        make(table.named_parameters(), lr=0.1, inner=3, full=full).step(full)

    def half() -> None:
        model.weight.grad = torch.ones_like(model.weight)

    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(lb.Error, match="full: left no gradient for parameter 1 of group 0"):
        make(model.parameters(), lr=0.1, inner=3, full=half, **({"bits": EXACT} if make is LPSVRG else {})).step(
            closure_of(model, data.batches()[0])
        )
    torch.testing.assert_close(list(model.parameters()), [nn.Parameter(b) for b in before], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (lb.Error, "mu: 0.0 is out of range; give a positive number", {"mu": 0}),
        (lb.Error, "mu: nan is out of range", {"mu": float("nan")}),
        (TypeError, "mu: expected one real number", {"mu": "strong"}),
        (lb.Error, "bits: 1 is out of range; give 2 to 24", {"bits": 1}),
        (lb.Error, "bits: 25 is out of range", {"bits": 25}),
        (TypeError, "bits: expected an int, got float", {"bits": 8.0}),
        (lb.Error, "rounding: 'dither' is not known", {"rounding": "dither"}),
        (lb.Error, 'key: rounding="nearest" draws nothing', {"rounding": "nearest", "key": 1}),
        (TypeError, "key: expected", {"key": "1"}),
    ],
)
def test_bad_options_of_halp(error: type[Exception], match: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        HALP([nn.Parameter(torch.zeros(1))], 0.1, 3, lambda: None, **{"mu": 1.0, **options})


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (lb.Error, "bits: 40 is out of range; give 2 to 24", {"bits": 40}),
        (lb.Error, "int9000", {"bits": "int9000"}),
        (TypeError, "bits: expected an int", {"bits": None}),
        (lb.Error, "scale", {"scale": "sawb"}),
        (lb.Error, "scale", {"scale": 0.0}),
        (lb.Error, "scale", {"bits": "fp8_e4m3fn", "scale": -1.0}),
    ],
)
def test_bad_options_of_lpsvrg(error: type[Exception], match: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        LPSVRG([nn.Parameter(torch.zeros(1))], 0.1, 3, lambda: None, **options)


@pytest.mark.parametrize("format", ["int8", "fp8_e4m3fn", "bfloat16", lb.log_grid(zeta=0.125, delta=2**-10, bits=8)])
def test_any_format_holds_the_weights_of_lpsvrg(format: Any) -> None:
    data = Data()
    model, optimizer = start(LPSVRG, data, lr=0.1, inner=3, bits=format, key=0)
    train(optimizer, model, data, 0, 7)
    for p in model.parameters():
        torch.testing.assert_close(
            p.detach(), torch.from_numpy(lb.fake_quantize(p.detach().numpy(), format)), rtol=1e-6, atol=1e-7
        )
    torch.save(optimizer.state_dict(), io.BytesIO())


def test_full_gradient_is_of_the_whole_set_whatever_the_batches() -> None:
    data = Data()  # 5 batches of 4 and one of 1
    model = data.model()
    full = full_gradient(model, nn.MSELoss(), data.batches())
    full()
    for p, g in zip(model.parameters(), data.gradient(data.start), strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g, rtol=1e-12)
    full()  # is added to what is there
    np.testing.assert_allclose(model.bias.grad.numpy(), 2 * data.gradient(data.start)[1], rtol=1e-12)
    with pytest.raises(TypeError, match="batches: gone through once"):
        full_gradient(model, nn.MSELoss(), iter(data.batches()))
    with pytest.raises(TypeError, match="loss: expected"):
        full_gradient(model, None, data.batches())
    with pytest.raises(TypeError, match="model: expected"):
        full_gradient(None, nn.MSELoss(), data.batches())
    with pytest.raises(lb.Error, match="batches: gave no example"):
        full_gradient(model, nn.MSELoss(), [])()


RANK = """
import sys
import torch
from torch import distributed, nn
from lowbit.torch.optim import HALP, full_gradient

rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(0)
x = torch.randn(2, 12, 3)[rank]
y = x.sum(1, keepdim=True) + 0.1 * torch.randn(2, 12, 1)[rank]
torch.manual_seed(rank)  # what each would draw alone
model = nn.parallel.DistributedDataParallel(nn.Linear(3, 1))
batches = list(zip(x.split(4), y.split(4)))
full = full_gradient(model, nn.MSELoss(), batches)
optimizer = HALP(model.parameters(), lr=0.1, inner=4, full=full, mu=1.0, bits=4)
for step in range(10):
    def closure():
        value = nn.functional.mse_loss(model(batches[step % 3][0]), batches[step % 3][1])
        value.backward()
        return value
    optimizer.step(closure)
torch.save([*model.parameters(), optimizer.state_dict()["key"]], f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_ranks_stay_identical(tmp_path: Path) -> None:
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
