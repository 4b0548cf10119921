"""Averages of rounded weights: the plain mean, closer to the optimum than the grid, and safe to swap and to save."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lowbit as lb
from lowbit.torch import ops
from lowbit.torch.optim import SWALP, swalp_schedule


def walk(p: nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> list[np.ndarray]:
    """Random steps; gives the weights after each."""
    seen = []
    for _ in range(steps):
        p.grad = torch.randn_like(p)
        optimizer.step()
        seen.append(p.detach().double().numpy().copy())
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("start", "every"), [(0, 1), (5, 1), (7, 3)])
def test_the_average_is_the_mean(start: int, every: int, dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.zeros(5, dtype=dtype))
    optimizer = torch.optim.SGD([p], lr=0.1)
    swalp = SWALP(optimizer, start=start, every=every)
    seen = walk(p, optimizer, 50)
    taken = seen[start::every]
    assert swalp.steps == 50
    assert swalp.averaged == len(taken)
    last = p.detach().clone()
    swalp.swap()
    want = np.mean(taken, 0)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 2.0**-8}[dtype]
    np.testing.assert_allclose(p.detach().double().numpy(), want, rtol=tolerance, atol=tolerance / 10)
    swalp.swap()
    assert torch.equal(p, last)
    # What the average is kept in has no less than float32.
    average = swalp.state_dict()["averages"][0]
    assert average.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    np.testing.assert_allclose(average.numpy(), want, rtol=1e-5, atol=1e-6)


def test_averages_lie_between_the_numbers_of_the_grid() -> None:
    """LP-SGD on |w - c|^2 / 2: the iterates keep a distance of the grid's step, their average does not."""
    step = 2.0**-4
    c = torch.linspace(-1, 1, 64)
    p = nn.Parameter(torch.zeros(64))
    optimizer = torch.optim.SGD([p], lr=0.1)
    optimizer.register_step_post_hook(
        lambda *_: p.data.copy_(ops.fake_quantize(p.detach(), "fixed(8,4)", rounding="stochastic"))
    )
    swalp = SWALP(optimizer, start=100, every=1)
    distances = []
    for k in range(6000):
        p.grad = p.detach() - c + 0.1 * torch.randn(64)
        optimizer.step()
        if k >= 100:
            distances.append(float((p.detach() - c).square().mean()))
    assert torch.equal(p * 16, (p * 16).round())
    with swalp.applied():
        averaged = float((p.detach() - c).square().mean())
    assert np.mean(distances) > step**2 / 2
    assert averaged < step**2 / 50


def test_the_context_gives_weights_back_even_after_an_error() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    swalp = SWALP(optimizer, start=1, every=1)
    walk(p, optimizer, 4)
    last = p.detach().clone()

    def fail() -> None:
        with swalp.applied():
            assert not torch.equal(p, last)
            raise RuntimeError("evaluation failed")

    with pytest.raises(RuntimeError, match="evaluation failed"):
        fail()
    assert torch.equal(p, last)


def test_misuse_is_told() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([p], lr=0.1)
    swalp = SWALP(optimizer, start=2, every=1)
    walk(p, optimizer, 2)
    with pytest.raises(lb.Error, match="swap: there is no average before step 3; steps so far: 2"):
        swalp.swap()
    walk(p, optimizer, 1)
    with swalp.applied():
        with pytest.raises(lb.Error, match="swap back before the optimizer's step"):
            optimizer.step()
        with pytest.raises(lb.Error, match="swap back before saving"):
            swalp.state_dict()
        with pytest.raises(lb.Error, match="hold averages already"), swalp.applied():
            pass
    optimizer.step()


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (TypeError, "optimizer: expected a torch.optim.Optimizer, got list", {"optimizer": []}),
        (lb.Error, "start: -1 is out of range", {"start": -1}),
        (lb.Error, "every: 0 is out of range", {"every": 0}),
        (TypeError, "every: expected an int", {"every": 1.5}),
        (lb.Error, "lr: -0.1 is out of range", {"lr": -0.1}),
        (lb.Error, "int77", {"average": "int77"}),
        (lb.Error, "key: averages that are not rounded draw nothing", {"key": 1}),
    ],
)
def test_bad_options(error: type[Exception], match: str, options: dict[str, Any]) -> None:
    given = {"optimizer": torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1), "start": 0, "every": 1, **options}
    with pytest.raises(error, match=match):
        SWALP(given.pop("optimizer"), **given)


@pytest.mark.parametrize("average", [None, "fixed(12,8)"])
def test_ten_steps_are_five_and_five(average: str | None) -> None:
    def made(key: int) -> tuple[nn.Parameter, torch.optim.Optimizer, SWALP]:
        p = nn.Parameter(torch.zeros(5))
        optimizer = torch.optim.SGD([p], lr=0.1)
        keys = {} if average is None else {"key": key}
        return p, optimizer, SWALP(optimizer, start=2, every=2, average=average, **keys)

    p, optimizer, swalp = made(1)
    walk(p, optimizer, 5)
    file = io.BytesIO()
    torch.save({"p": p.detach(), "swalp": swalp.state_dict(), "rng": torch.get_rng_state()}, file)
    walk(p, optimizer, 5)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    q, other, resumed = made(2)
    q.data.copy_(saved["p"])
    resumed.load_state_dict(saved["swalp"])
    torch.set_rng_state(saved["rng"])
    walk(q, other, 5)
    swalp.swap()
    resumed.swap()
    assert torch.equal(p, q)


def test_rounded_averages_are_on_their_grid() -> None:
    p = nn.Parameter(torch.zeros(5))
    optimizer = torch.optim.SGD([p], lr=0.1)
    swalp = SWALP(optimizer, start=0, every=1, average="fixed(12,8)", key=0)
    seen = walk(p, optimizer, 50)
    with swalp.applied():
        assert torch.equal(p * 256, (p * 256).round())
        assert not torch.equal(p * 16, (p * 16).round())
        # Each rounding errs by less than a step of 2^-8, and what is left of an early one is small.
        np.testing.assert_allclose(p.detach().numpy(), np.mean(seen, 0), atol=5 * 2**-8)


def test_states_of_others_are_refused() -> None:
    def made(*shapes: int, **options: Any) -> SWALP:
        parameters = [nn.Parameter(torch.zeros(n)) for n in shapes]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        swalp = SWALP(optimizer, start=0, every=1, **options)
        optimizer.step()
        return swalp

    state = made(3, 4).state_dict()
    with pytest.raises(lb.Error, match="its 2 averages are not those of these 1 parameters"):
        made(3).load_state_dict(state)
    with pytest.raises(lb.Error, match="its 2 averages are not those"):
        made(3, 5).load_state_dict(state)
    with pytest.raises(lb.Error, match="one of the two rounds its averages"):
        made(3, 4, average="int8").load_state_dict(state)


def test_parameters_added_later_have_an_average_of_their_own() -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.full((2,), 8.0))
    optimizer = torch.optim.SGD([p], lr=1.0)
    swalp = SWALP(optimizer, start=0, every=1)
    walk(p, optimizer, 3)
    optimizer.add_param_group({"params": [q]})
    for value in (1.0, 1.0):
        q.grad = torch.full((2,), value)
        optimizer.step()
    with swalp.applied():
        assert q.tolist() == [6.5, 6.5]
    state = swalp.state_dict()
    assert state["counts"] == [5, 2]


def test_the_rate_is_constant_from_the_start_whatever_schedulers_say() -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([p], lr=1.0)
    SWALP(optimizer, start=2, every=1, lr=0.25)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    used = []
    for _ in range(4):
        p.grad = torch.ones(2)
        before = p.detach().clone()
        optimizer.step()
        used.append(float((before - p)[0].detach()))
        scheduler.step()
    assert used == [1.0, 0.5, 0.25, 0.25]


def test_the_schedule_is_the_sources() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.05)
    scheduler = swalp_schedule(optimizer, start=200, lr=0.01)
    rates = []
    for _ in range(300):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    small, large = np.array(rates).T
    # The source's own formula, an epoch at a time.
    for epoch, rate in enumerate(small):
        t = epoch / 200
        factor = 1.0 if t <= 0.5 else 1.0 - 0.99 * (t - 0.5) / 0.4 if t <= 0.9 else 0.01
        assert rate == pytest.approx(0.01 if t >= 1 else 0.05 * factor)
    np.testing.assert_allclose(large[:200], 10 * small[:200])
    np.testing.assert_allclose(large[200:], 0.01)
    with pytest.raises(lb.Error, match="start: 0 is out of range"):
        swalp_schedule(optimizer, start=0, lr=0.1)
    with pytest.raises(TypeError, match="optimizer: expected"):
        swalp_schedule(None, start=1, lr=0.1)  # type: ignore[arg-type]
