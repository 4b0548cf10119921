"""Local steps when something goes wrong: states of others, infinities, damage, ranks lost or late, bad arguments."""

from __future__ import annotations

import datetime
import os
import time
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lowbit as lb
from lowbit.torch import LocalSteps, _rounds
from torch_layer.local_support import CODECS, MEAN, adamw, batch, loss_of, net, same, start, train, weights
from torch_layer.ranks import Failed, Ranks, ranks


def _loads(rank: int, kept: list[Any]) -> Any:
    """Load a state of another size, or of another moment on each rank."""
    model, optimizer, _ = start(rank, lb.Sign(), {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(kept[rank % len(kept)])
    train(model, optimizer, rank, range(4))
    return [str(each.message) for each in caught], optimizer.rounds, weights(model)


def _kept(rank: int, steps: int) -> Any:
    model, optimizer, _ = start(rank, lb.Sign(), {})
    train(model, optimizer, rank, range(steps))
    return optimizer.state_dict()


def test_another_number_of_ranks_drops_error_feedback() -> None:
    kept = ranks(3).run(_kept, 4)
    results = ranks(2).run(_loads, kept)
    for rank, (texts, rounds, _) in enumerate(results):
        was, now = (f"rank {rank} of {size} by 'all_gather'" for size in (3, 2))
        assert texts == [f"error feedback is dropped: it was for {was}, this is {now}"]
        assert rounds == 2
    assert same(results[0][2], results[1][2])


def test_states_of_different_moments_are_refused() -> None:
    states = [ranks(2).run(_kept, steps)[0] for steps in (4, 8)]
    for failed in ranks(2).call(_loads, states):
        assert failed.kind == "Error"
        assert "ranks are not at the same point" in failed.text
        assert "they have made rounds: 1 and 0 steps, 2 and 0 steps" in failed.text


def _overflow(rank: int, codec: lb.Codec | None, options: dict[str, Any]) -> Any:
    model, optimizer, _ = start(rank, codec, options)
    train(model, optimizer, rank, range(6))
    before = optimizer.state_dict()
    shared = {name: t.clone() for name, t in before["shared"].items()}
    memory = {name: t.clone() for name, t in before["memory"]["errors"].items()}
    if rank:
        with torch.no_grad():
            model.second.weight[0, 0] = torch.inf
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, rank, range(6, 8))
    after = optimizer.state_dict()
    kept = same(shared, after["shared"]) and same(memory, after["memory"]["errors"])
    back = all(torch.equal(t, shared[name]) for name, t in model.named_parameters() if name in shared)
    train(model, optimizer, rank, range(8, 12))
    return [str(each.message) for each in caught], kept, back, weights(model), optimizer.stats.skipped


@pytest.mark.parametrize(("codec", "options"), CODECS)
def test_a_round_that_is_not_finite_is_skipped_by_all(codec: lb.Codec | None, options: dict[str, Any]) -> None:
    results = ranks(2).run(_overflow, codec, options)
    for rank, (texts, kept, back, trained, skipped) in enumerate(results):
        assert len(texts) == 1
        assert texts[0].startswith("round 1 is skipped: some rank's parameters or statistics are not all finite")
        assert ("here it is strided, first.weight, first.bias, ..." in texts[0]) == (rank == 1)
        assert kept
        assert back
        assert skipped == 1
        assert all(t.isfinite().all() for name, t in trained.items() if name != "mask")
    assert same(results[0][3], results[1][3])


def _damaged(rank: int) -> Any:
    model, optimizer, _ = start(rank, lb.Eden(1), {})
    train(model, optimizer, rank, range(7))
    before = weights(model)
    honest = lb.encode
    if rank == 1:
        _rounds.lb.encode = lambda *a, **k: bytes(b ^ (i == 200) for i, b in enumerate(honest(*a, **k)))
    try:
        optimizer.zero_grad()
        with pytest.raises(lb.DecodeError) as caught:
            optimizer.step()  # no gradients: nothing moves but by the round
    finally:
        _rounds.lb.encode = honest
    untouched = same(before, weights(model))
    rounds = optimizer.rounds
    train(model, optimizer, rank, range(8, 9))  # it is made up for
    return str(caught.value), untouched, rounds, optimizer.rounds, weights(model)


def test_a_damaged_message_is_an_error_on_all_ranks_and_the_next_step_tries_again() -> None:
    one, two = ranks(2).run(_damaged)
    assert one[0] == two[0]
    assert "on rank 0: the message of rank 1 of '" in one[0]
    assert one[1:4] == two[1:4] == (True, 1, 2)
    assert same(one[4], two[4])


def _scaled(rank: int) -> Any:
    """A round fails under GradScaler: the scale of that step is not that of the next."""
    model = nn.Linear(20, 1)
    optimizer = LocalSteps(model, torch.optim.SGD(model.parameters(), lr=0.0), every=2, min_numel=0)
    scaler, seen, honest = torch.amp.GradScaler("cpu", init_scale=1024.0), [], lb.encode
    for step in range(4):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, batch(rank, 0))).backward()
        if step == 1:
            _rounds.lb.encode = lambda *a, **k: bytes(b ^ (i == 100) for i, b in enumerate(honest(*a, **k)))
        try:
            scaler.step(optimizer)
        except lb.DecodeError:
            assert step == 1
        finally:
            _rounds.lb.encode = honest
        scaler.update()
        assert model.weight.grad is not None
        seen.append(model.weight.grad.clone())
    return all(torch.equal(g, seen[0]) for g in seen), optimizer.rounds


def test_gradscaler_goes_on_after_a_round_that_failed() -> None:
    assert ranks(2).run(_scaled) == [(True, 1)] * 2


def _survives(rank: int, folder: str) -> Any:
    """Rank 1 dies in the middle of a round; the others go on without it."""
    model, optimizer, _ = start(rank, lb.Sign(), {})
    train(model, optimizer, rank, range(6))
    if rank == 1:
        os._exit(1)
    with pytest.raises(dist.DistError, match="round 1 did not end: the group has lost a rank") as caught:
        train(model, optimizer, rank, range(6, 8))
    state = optimizer.state_dict()
    dist.destroy_process_group()
    dist.init_process_group("gloo", f"file://{folder}/again", rank=rank // 2, world_size=2)
    inner = adamw(model)
    optimizer = LocalSteps(model, inner, every=4, codec=lb.Sign(), check_every=1)
    with pytest.warns(UserWarning, match="error feedback is dropped"):
        optimizer.load_state_dict(state)
    assert (optimizer.rounds, optimizer.since) == (1, 4)
    train(model, optimizer, rank, range(8, 13))
    return str(caught.value), optimizer.rounds, weights(model), inner.state[model.last.bias]["step"].item()


def test_survivors_of_a_lost_rank_go_on_in_a_new_group(tmp_path: Any) -> None:
    own = Ranks(3)
    try:
        one, lost, two = own.call(_survives, str(tmp_path), seconds=30)
    finally:
        own.close()
    assert isinstance(lost, Failed)
    assert lost.kind == "Died"
    assert one[1] == two[1] == 3
    assert one[3] == two[3] == 13
    assert same(one[2], two[2])


def _late(rank: int) -> Any:
    """Rank 1 is later than the group waits."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=1.5))
    model = net()
    optimizer = LocalSteps(model, adamw(model), every=2, codec=lb.Eden(1), group=group)
    train(model, optimizer, rank, range(2))
    began = time.monotonic()
    if rank:
        time.sleep(3)
    with pytest.raises(dist.DistError, match="waited for it too long"):
        train(model, optimizer, rank, range(2, 4))
    return time.monotonic() - began


def test_a_late_rank_is_not_waited_for_longer_than_the_groups_timeout() -> None:
    own = Ranks(2)
    try:
        waited = own.run(_late)
    finally:
        own.close()
    assert 1.4 < waited[0] < 2.9
    assert waited[1] < 6


def _differs(rank: int) -> str:
    model, optimizer, _ = start(rank, lb.Eden(1), {"check_every": 2})
    train(model, optimizer, rank, range(4))
    if rank == 1:
        with torch.no_grad():
            model.frozen.bias += 1e-6
    with pytest.raises(lb.Error) as caught:
        train(model, optimizer, rank, range(4, 12))
    return f"{optimizer.rounds}: {caught.value}"


def test_replicas_that_differ_are_found() -> None:
    want = "2: replicas differ: ranks [1] have other parameters or gradients than rank 0"
    assert ranks(2).run(_differs) == [want] * 2


def _thawed(rank: int) -> str:
    model, optimizer, _ = start(rank, None, {})
    if rank == 1:
        model.frozen.requires_grad_()
    with pytest.raises(lb.Error) as caught:
        train(model, optimizer, rank, range(4))
    return str(caught.value)


def test_a_parameter_that_is_thawed_is_found() -> None:
    one, two = ranks(2).run(_thawed)
    assert (
        one
        == two
        == "the round failed on rank 1: 'frozen.weight' was not among what is trained: make a new LocalSteps when that "
        "changes"
    )


def _changed(rank: int, how: str) -> str:
    """Train what was not there at the start: no round would average it."""
    model = nn.Linear(20, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = LocalSteps(model, inner, every=2)
    if how == "replaced":
        model.weight = nn.Parameter(torch.ones(1, 20))
    else:
        added = nn.Parameter(torch.ones(1, 20))
        inner.add_param_group({"params": [added]})
        if how == "added":
            model.more = added
    with pytest.raises(lb.Error) as caught:
        train(model, optimizer, rank, range(2))
    return str(caught.value)


@pytest.mark.parametrize(("how", "what"), [("replaced", "'weight'"), ("added", "'more'"), ("foreign", "what inner")])
def test_parameters_that_come_later_are_found(how: str, what: str) -> None:
    one, two = ranks(2).run(_changed, how)
    assert one == two
    assert one.count(what) == 2
    assert one.endswith("was not among what is trained: make a new LocalSteps when that changes")


def _statistic(rank: int) -> Any:
    model, optimizer, _ = start(rank, None, {})
    model.eval()
    if rank:
        model.norm.running_var[3] = torch.inf  # hides what it divides
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, rank, range(4))
    return [str(each.message) for each in caught], model.norm.running_var[3].item(), optimizer.stats.skipped


def test_a_statistic_that_is_not_finite_is_named() -> None:
    for rank, (texts, variance, skipped) in enumerate(ranks(2).run(_statistic)):
        assert len(texts) == skipped == 1
        assert ("; here it is norm.running_var. All ranks go back" in texts[0]) == (rank == 1)
        assert variance == 1


def _other(rank: int, argument: str) -> None:
    model = nn.Linear(20, 64 + rank * (argument == "model"))
    inner = torch.optim.SGD(model.parameters()) if rank and argument == "inner" else adamw(model)
    outer = torch.optim.Adagrad if rank and argument == "outer" else MEAN
    options = {"every": 2, "check_every": 1} | ({argument: rank + 4} if "every" in argument else {})
    LocalSteps(model, inner, outer, **options)


@pytest.mark.parametrize("argument", ["every", "check_every", "model", "inner", "outer"])
def test_other_arguments_on_another_rank_are_found_at_once(argument: str) -> None:
    for failed in ranks(2).call(_other, argument):
        assert failed.kind == "Error"
        assert failed.text.startswith(f"{argument}: ranks [1] were given another than rank 0")


@pytest.fixture
def alone() -> Any:
    """One process that is a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_bad_arguments_are_named(alone: None) -> None:
    model = net()
    inner = adamw(model)
    for least in (0, -1):
        with pytest.raises(lb.Error, match="every"):
            LocalSteps(model, inner, every=least)
    with pytest.raises(TypeError, match="every"):
        LocalSteps(model, inner, every=1.5)  # type: ignore[arg-type]
    with pytest.raises(lb.Error, match="check_every"):
        LocalSteps(model, inner, every=1, check_every=-1)
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got list"):
        LocalSteps([], inner, every=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: it is wrapped in DistributedDataParallel.*give model.module"):
        LocalSteps(DistributedDataParallel(model), inner, every=1)
    with pytest.raises(lb.Error, match="model: it has no parameter that needs a gradient"):
        LocalSteps(nn.ReLU(), inner, every=1)
    complex_ = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"model: weight is a Parameter of torch.complex64"):
        LocalSteps(complex_, adamw(complex_), every=1)
    with pytest.raises(lb.Error, match="inner: it moves 1 parameters that are not of the model"):
        LocalSteps(model.first, torch.optim.SGD([*model.first.parameters(), nn.Parameter(torch.ones(2))]), every=1)
    with pytest.raises(TypeError, match=r"inner: expected a torch.optim.Optimizer, got partial"):
        LocalSteps(model, MEAN, every=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"outer: expected a function that makes an optimizer of .*, got AdamW"):
        LocalSteps(model, inner, adamw(model), every=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="outer: expected a function that makes an optimizer, not a list"):
        LocalSteps(model, inner, list, every=1)  # type: ignore[arg-type]
    with pytest.raises(lb.Error, match="outer: its optimizer must move all the tensors that it is given"):
        LocalSteps(model, inner, lambda _: adamw(model), every=1)
    with pytest.raises(TypeError, match="codec"):
        LocalSteps(model, inner, every=1, codec="eden")  # type: ignore[arg-type]
    optimizer = LocalSteps(model, inner, every=2, codec=lb.Eden(1))
    with pytest.raises(TypeError, match="state: expected what state_dict gave"):
        optimizer.load_state_dict({})
    with pytest.warns(UserWarning, match="every: it was 3 when this was saved, and is 2"):
        optimizer.load_state_dict(LocalSteps(model, inner, every=3, codec=lb.Eden(1)).state_dict())
    other = nn.Linear(3, 3)
    with pytest.raises(lb.Error, match="state: it is of another model"):
        optimizer.load_state_dict(LocalSteps(other, adamw(other), every=2, codec=lb.Eden(1)).state_dict())
    assert repr(optimizer).startswith("LocalSteps(AdamW, every 2, Eden(bits=1.0")
    assert "nan" not in str(optimizer.stats)


def test_without_a_group_it_says_what_is_missing() -> None:
    model = net()
    with pytest.raises(lb.Error, match="init_process_group"):
        LocalSteps(model, adamw(model), every=1)
