"""Local steps: exact ones in every step are synchronous training, and after any round replicas are the same."""

from __future__ import annotations

import copy
import io
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lowbit as lb
import lowbit.torch
from lowbit.torch import LocalSteps
from torch_layer.local_support import CODECS, MEAN, adamw, batch, go, loss_of, net, same, start, train, weights
from torch_layer.ranks import printed_by, ranks


def _synchronous(rank: int) -> Any:
    """Plain SGD: averaging models is averaging gradients."""
    both = []
    for local in (True, False):
        torch.manual_seed(7)
        model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
        wrapped = model if local else DistributedDataParallel(model)
        inner = torch.optim.SGD(model.parameters(), lr=0.05)
        optimizer = LocalSteps(model, inner, MEAN, every=1, check_every=2) if local else inner
        train(wrapped, optimizer, rank, range(10))
        both.append(weights(model))
    return both


@pytest.mark.parametrize("size", [2, 3, 4])
def test_exact_averages_in_every_step_are_synchronous_training(size: int) -> None:
    results = ranks(size).run(_synchronous)
    for local, ddp in results:
        assert same(local, results[0][0])
        for name, t in ddp.items():
            assert torch.allclose(t, local[name], rtol=1e-5, atol=1e-6), name


def _trained(rank: int, codec: lb.Codec | None, options: dict[str, Any], steps: int) -> Any:
    model = net(rank)  # another one on each rank: all become the first one's
    before = weights(model)
    optimizer = LocalSteps(model, adamw(model), every=4, codec=codec, check_every=1, **options)
    frozen = weights(model.frozen)
    alike = [weights(model)]
    for first in range(0, steps, 4):
        train(model, optimizer, rank, range(first, first + 3))
        apart = weights(model)
        train(model, optimizer, rank, range(first + 3, first + 4))
        alike.append(weights(model))
    assert same(frozen, weights(model.frozen))
    assert model.tied.weight is model.second.weight
    assert (optimizer.steps, optimizer.rounds, optimizer.since) == (steps, steps // 4, 0)
    return before, alike, apart, optimizer.stats


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("codec", "options"), CODECS)
def test_replicas_are_the_same_after_every_round(codec: lb.Codec | None, options: dict[str, Any], size: int) -> None:
    results = ranks(size).run(_trained, codec, options, 12)
    before, first, _, stats = results[0]
    assert same(before, first[0])
    for _, alike, apart, _ in results[1:]:
        assert all(same(one, other) for one, other in zip(first, alike, strict=True))
        assert not torch.equal(apart["first.weight"], results[0][2]["first.weight"])
    trained = sum(t.numel() for name, t in first[0].items() if not name.startswith(("frozen", "mask", "tied.w")))
    assert stats.numbers == 3 * (trained - 1)  # all but the count of batches
    assert (stats.steps, stats.local_steps) == (3, 12)
    assert stats.ratio_each_step == pytest.approx(4 * stats.ratio_float32)
    assert "12 steps in 3 rounds" in str(stats)
    if codec is None and size == 2:
        assert stats.ratio_float32 == pytest.approx(1, rel=0.1)


def _one_round(rank: int, seed: int, codec: lb.Codec | None) -> Any:
    """Give what a round makes of one local step, and what this rank moved."""
    model = nn.Linear(64, 64, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = LocalSteps(model, torch.optim.SGD(model.parameters(), lr=1.0), MEAN, every=1, codec=codec, seed=seed)
    model.weight.grad = batch(rank, 0, 512).view(64, 64) * (1 + rank)
    optimizer.step()
    return model.weight.detach().numpy().copy()


def _many_rounds(rank: int, codec: lb.Codec, seeds: int) -> Any:
    exact = _one_round(rank, 0, None)
    coded = np.stack([_one_round(rank, seed, codec) for seed in range(seeds)])
    return exact, coded


def test_rounds_are_unbiased() -> None:
    """The mean over 40 seeds is as near as its standard error, and one round as near as the codec says."""
    seeds, codec = 40, lb.Eden(1)
    one, two = ranks(2).run(_many_rounds, codec, seeds)
    assert np.array_equal(one[1], two[1])
    exact, coded = one
    norms = sum(float(batch(rank, 0, 512).mul(1 + rank).square().sum()) for rank in range(2))
    expected = codec.expected_error(4096) * norms / 4
    single = np.square(coded - exact).sum((1, 2)).mean()
    assert single == pytest.approx(expected, rel=0.1)
    assert np.square(coded.mean(0) - exact).sum() == pytest.approx(expected / seeds, rel=0.2)


def _buffers(rank: int) -> Any:
    model = net()
    optimizer = LocalSteps(model, adamw(model), every=2)
    train(model, optimizer, rank, range(1))
    own = model.norm.running_mean.clone()
    for _ in range(2):  # the second forward leaves statistics that a frozen copy shows
        optimizer.zero_grad()
    shown = copy.deepcopy(model)
    loss_of(shown, batch(rank, 1))
    own = shown.norm.running_mean.clone()
    train(model, optimizer, rank, range(1, 2))
    return own, model.norm.running_mean.clone(), model.mask


def test_statistics_are_averaged_exactly() -> None:
    one, two = ranks(2).run(_buffers)
    assert not torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert torch.allclose(one[1], (one[0] + two[0]) / 2, rtol=1e-6, atol=1e-7)
    assert one[2].tolist() == [0, -torch.inf]


def _fine(rank: int) -> Any:
    """Move shared weights by less than bfloat16 holds, many times."""
    model = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.weight)
    inner = torch.optim.SGD(model.parameters(), lr=0.125)
    optimizer = LocalSteps(model, inner, partial(torch.optim.SGD, lr=2.0**-10), every=2, min_numel=0)
    for _ in range(64):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    return float(optimizer.state_dict()["shared"]["weight"].mean()), float(model.weight.detach().float().mean())


def test_small_outer_steps_add_up_in_bfloat16() -> None:
    """Each of 32 rounds moves 2**-12, a sixteenth of what bfloat16 tells from 1 downwards."""
    assert ranks(2).run(_fine) == [(1 - 2**-7, 1 - 2**-7)] * 2


def _half(rank: int) -> Any:
    model = net(dtype=torch.bfloat16)
    optimizer = LocalSteps(model, adamw(model), every=4, codec=lb.Eden(1), check_every=1)
    train(model, optimizer, rank, range(8))
    return weights(model)


def test_a_model_in_bfloat16() -> None:
    one, two = ranks(2).run(_half)
    assert same(one, two)
    assert {t.dtype for name, t in one.items() if "num" not in name} == {torch.bfloat16}


def _traffic(rank: int, least: int) -> float:
    model = nn.Linear(64, 64)
    optimizer = LocalSteps(model, adamw(model), every=1, codec=lb.Eden(1), min_numel=least)
    train(model, optimizer, rank + 64, range(0))
    model.weight.grad = batch(rank, 0, 512).view(64, 64)
    optimizer.step()
    return optimizer.stats.bits_per_number


def test_small_parameters_travel_exactly() -> None:
    for least, bits in ((4097, (32, 33)), (1024, (1.5, 2.2)), (0, (1, 1.9))):
        low, high = bits
        assert all(low < found < high for found in ranks(2).run(_traffic, least))


def _resumed(rank: int, codec: lb.Codec | None, options: dict[str, Any]) -> Any:
    whole = start(rank, codec, options)
    go(*whole, rank, range(14))
    part = start(rank, codec, options)
    go(*part, rank, range(10))  # two rounds, and two steps of the third
    torch.save([each.state_dict() for each in part], file := io.BytesIO())
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    go(*part, rank, range(10, 14))  # what was kept does not move
    again = start(rank, codec, options)
    again[0].load_state_dict(kept[0])
    again[1].load_state_dict(kept[1])
    again[2].load_state_dict(kept[2])
    go(*again, rank, range(10, 14))
    return same(weights(whole[0]), weights(again[0])), again[1].steps, again[1].rounds, again[1].since


@pytest.mark.parametrize(("codec", "options"), CODECS)
def test_resuming_in_the_middle_of_a_round_changes_nothing(codec: lb.Codec | None, options: dict[str, Any]) -> None:
    assert ranks(2).run(_resumed, codec, options) == [(True, 14, 3, 2)] * 2


def _scaled(rank: int) -> Any:
    """Rank 1 overflows in one step; GradScaler leaves that step out, and the ranks' rounds stay in line."""
    results = []
    for scale in (1.0, 1024.0):
        model = net()
        optimizer = LocalSteps(model, torch.optim.SGD(model.parameters(), lr=1e-3), every=3, check_every=1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for step in range(9):
            optimizer.zero_grad()
            loss = loss_of(model, batch(rank, step))
            scaler.scale(loss * torch.inf if (rank, step) == (1, 4) else loss).backward()
            if step % 2:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert (optimizer.rounds, optimizer.stats.skipped) == (3, 0)
        assert scaler.get_scale() == (scale / 2 if rank else scale)
        results.append(weights(model))
    assert all(torch.allclose(t, results[1][name], rtol=1e-4, atol=1e-6) for name, t in results[0].items())
    return results[1]


def test_gradscaler_may_leave_a_step_out_on_one_rank() -> None:
    one, two = ranks(2).run(_scaled)
    assert same(one, two)


def _early(rank: int) -> Any:
    model = net()
    optimizer = LocalSteps(model, adamw(model), every=100, codec=lb.Eden(4))
    train(model, optimizer, rank, range(3))
    optimizer.sync()
    first = weights(model)
    optimizer.sync()  # nothing was moved since
    return first, same(first, weights(model)), optimizer.rounds


def test_sync_is_a_round_before_its_time() -> None:
    one, two = ranks(2).run(_early)
    assert same(one[0], two[0])
    assert one[1:] == two[1:] == (True, 1)


def _closure(rank: int) -> Any:
    model = nn.Linear(20, 1)
    optimizer = LocalSteps(model, torch.optim.LBFGS(model.parameters(), max_iter=4), MEAN, every=2, check_every=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch(0, 0))
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(6)]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer.outer, 1, 0.5)
    schedule.step()
    return losses, optimizer.outer.param_groups[0]["lr"], optimizer.param_groups[0]["max_iter"]


def test_closures_and_schedules_of_both_optimizers() -> None:
    for losses, rate, most in ranks(2).run(_closure):
        assert losses[-1] < 1e-3 * losses[0]
        assert (rate, most) == (0.5, 4)


def _sub_group(rank: int) -> Any:
    group = dist.new_group([0, 2])
    if rank == 1:
        return None
    model = net(rank)
    optimizer = LocalSteps(model, adamw(model), every=2, codec=lb.Eden(1), group=group, check_every=1)
    train(model, optimizer, rank, range(4))
    return optimizer.stats.size, weights(model)


def test_a_sub_group() -> None:
    one, other, two = ranks(3).run(_sub_group)
    assert other is None
    assert one[0] == two[0] == 2
    assert same(one[1], two[1])


def _sites(rank: int) -> Any:
    """Two sites of two ranks: DDP within, local steps between, by one group for each place in a site."""
    within, _ = dist.new_subgroups(2)
    between, _ = dist.new_subgroups_by_enumeration([list(range(i, 4, 2)) for i in range(2)])
    model = DistributedDataParallel(net(), process_group=within, broadcast_buffers=False)
    optimizer = LocalSteps(model.module, adamw(model), every=2, codec=lb.Eden(1), group=between, check_every=1)
    train(model, optimizer, rank, range(4))
    return {name: t for name, t in weights(model.module).items() if not name.startswith("norm.r")}


def test_sites_of_ddp_take_local_steps_between_them() -> None:
    first, *others = ranks(4).run(_sites)
    assert all(same(first, other) for other in others)


def _quantized(rank: int) -> Any:
    """Rank 1 takes its local steps when rank 0 has taken them: nothing of quantized layers waits for others."""
    torch.manual_seed(rank)
    layers = nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    model = lowbit.torch.prepare(nn.Sequential(*layers), lowbit.torch.recipes.sun2020(grad_scale=2.0 ** (4 * rank)))
    loss_of(model, batch(0, 0))  # starts the clips of PACT
    inner = torch.optim.AdamW(lowbit.torch.param_groups(model, pact_decay=1e-4), lr=1e-2)
    optimizer = LocalSteps(model, inner, every=8, codec=lb.Eden(1), check_every=1)
    scales = {name: float(b) for name, b in model.named_buffers() if name.endswith("grad_scale")}
    for turn in range(2):
        if turn == rank:
            train(model, optimizer, rank, range(7))
        dist.barrier()
    train(model, optimizer, rank, range(7, 8))
    moved = {name: float(b) for name, b in model.named_buffers() if name in scales}
    assert moved != scales
    assert all(math.frexp(scale)[0] == 0.5 for scale in moved.values())
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_quantized_layers() -> None:
    one, two = ranks(2).run(_quantized)
    assert same(one, two)


class Renewed(nn.Module):
    """A buffer that is another tensor after every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(20, 1)
        self.register_buffer("mean", torch.zeros(20))

    def forward(self, x: Tensor) -> Tensor:
        """Use a running mean."""
        self.mean = 0.5 * self.mean + 0.5 * x.mean(0)
        return self.last(x - self.mean)


def _renewed(rank: int) -> Any:
    model = Renewed()
    train(model, LocalSteps(model, adamw(model), every=1, check_every=1), rank, range(3))
    return model.mean


def test_buffers_that_are_put_in_anew() -> None:
    one, two = ranks(2).run(_renewed)
    assert one.any()
    assert torch.equal(one, two)


def test_the_pages_script_prints_what_the_page_says() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "torch-local.md").read_text()
    script, printed = (re.search(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("python", "text"))
    assert script is not None
    assert printed is not None
    assert ranks(2).run(printed_by, script[1]) == [printed[1], ""]
