"""The hook of DistributedDataParallel: by the identity codec it is plain DDP, and by any all replicas stay the same."""

from __future__ import annotations

import copy
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lowbit as lb
from lowbit.torch import _rounds, ddp
from torch_layer.ranks import Ranks, printed_by, ranks

ROOT = Path(__file__).resolve().parents[2]

#: Buckets of about 4 kB: more than one, and of the first step others than afterwards.
SMALL_BUCKETS = 4e-3
STRATEGIES = [
    (lb.Eden(1), {}),
    (lb.Eden(1), {"strategy": "two_phase", "second_codec": lb.Eden(4)}),
    (lb.Summable(4), {}),
    (lb.Sign(), {"strategy": "two_phase"}),
]


class Net(nn.Module):
    """A network with a layer that may be left out, and small parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 64)
        self.second = nn.Linear(64, 64)
        self.spare = nn.Linear(64, 64)
        self.last = nn.Linear(64, 1)

    def forward(self, x: Tensor, *, spare: bool = True) -> Tensor:
        """Use the spare layer, or do not."""
        y = self.second(self.first(x).relu()).relu()
        return self.last(self.spare(y).relu() if spare else y)


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(7)
    return Net().to(dtype)


def batch(rank: int, step: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([rank, step]).standard_normal((8, 20), np.float32))


def train(
    model: DistributedDataParallel,
    rank: int,
    steps: range,
    optimizer: torch.optim.Optimizer | None = None,
    **forward: Any,
) -> torch.optim.Optimizer:
    if optimizer is None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in steps:
        optimizer.zero_grad()
        x = batch(rank, step)
        (model(x, **forward) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return optimizer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("module."): t.clone() for name, t in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(t.double(), two[name].double()) for name, t in one.items())


def parallel(model: nn.Module, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, bucket_cap_mb=options.pop("bucket_cap_mb", SMALL_BUCKETS), **options)


def _identity(rank: int, options: dict[str, Any]) -> Any:
    plain, coded = parallel(net(), **options), parallel(net(), **options)
    state = ddp.register(coded, lb.Float32(), min_numel=0, strategy="all_gather", start_step=1, check_every=2)
    train(plain, rank, range(6))
    train(coded, rank, range(6))
    assert (state.step, state.stats.steps) == (6, 5)
    return weights(plain), weights(coded)


@pytest.mark.parametrize("options", [{}, {"gradient_as_bucket_view": True}, {"static_graph": True}])
def test_the_identity_codec_is_plain_ddp(options: dict[str, Any]) -> None:
    for plain, coded in ranks(2).run(_identity, options):
        assert same(plain, coded)


def test_the_identity_codec_is_plain_ddp_but_for_rounding() -> None:
    for plain, coded in ranks(3).run(_identity, {}):
        for name, t in plain.items():
            assert torch.allclose(t, coded[name], rtol=1e-4, atol=1e-6), name


def _trained(rank: int, codec: lb.Codec, hook: dict[str, Any], options: dict[str, Any]) -> Any:
    model = parallel(net(), **options)
    state = ddp.register(model, codec, check_every=1, **hook)
    train(model, rank, range(6))
    return weights(model), state.stats


@pytest.mark.parametrize(("codec", "hook"), STRATEGIES)
def test_replicas_stay_the_same_and_buckets_do_not_matter(codec: lb.Codec, hook: dict[str, Any]) -> None:
    results = []
    for options in ({}, {"bucket_cap_mb": 25}, {"gradient_as_bucket_view": True}, {"static_graph": True}):
        one, two = ranks(2).run(_trained, codec, hook, options)
        assert same(one[0], two[0])
        assert one[1].numbers == 4 * sum(t.numel() for t in one[0].values())
        results.append(one[0])
    assert all(same(results[0], other) for other in results[1:])


def _unused(rank: int, codec: lb.Codec, hook: dict[str, Any]) -> Any:
    model = parallel(net(), find_unused_parameters=True)
    ddp.register(model, codec, check_every=1, start_step=0, **hook)
    before = weights(model)
    optimizer = train(model, rank, range(3), spare=False)
    untouched = all(torch.equal(before[name], t) for name, t in weights(model).items() if name.startswith("spare"))
    nothing = all(p.grad is None or not p.grad.any() for p in model.module.spare.parameters())
    # Used by one rank alone: the other sends zeros.
    train(model, rank, range(3, 6), optimizer, spare=rank == 0)
    return untouched and nothing, weights(model)


@pytest.mark.parametrize(("codec", "hook"), STRATEGIES)
def test_unused_parameters_get_nothing(codec: lb.Codec, hook: dict[str, Any]) -> None:
    one, two = ranks(2).run(_unused, codec, hook)
    assert one[0]
    assert two[0]
    assert same(one[1], two[1])
    assert not torch.equal(one[1]["spare.weight"], net().spare.weight)


def _accumulated(rank: int) -> Any:
    """Two batches under no_sync are one message, that of their sum."""
    gradients = []
    for accumulate in (True, False):
        model = parallel(net())
        state = ddp.register(model, lb.Eden(2), start_step=0, check_every=1)
        x, y = batch(rank, 0), batch(rank, 1)
        if accumulate:
            with model.no_sync():
                model(x).sum().backward()
            assert state.step == 0
            model(y).sum().backward()
        else:
            (model(x).sum() + model(y).sum()).backward()
        assert state.step == 1
        gradients.append([p.grad for p in model.parameters()])
    return [torch.allclose(p, q, rtol=1e-3, atol=1e-4) for p, q in zip(*gradients, strict=True)]


def test_no_sync_sends_nothing() -> None:
    for close in ranks(2).run(_accumulated):
        assert all(close)


class Mixed(nn.Module):
    """Parameters of two dtypes, so buckets of two, and one single number."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Linear(64, 64, dtype=torch.bfloat16)
        self.high = nn.Linear(64, 64)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Use all three."""
        return self.high(self.low(x.bfloat16()).float()) * self.gain


def _mixed(rank: int, codec: lb.Codec, hook: dict[str, Any], options: dict[str, Any]) -> Any:
    torch.manual_seed(1)
    model = parallel(Mixed(), **options)
    ddp.register(model, codec, start_step=0, check_every=1, min_numel=1, **hook)
    exact = parallel(copy.deepcopy(model.module))
    for each in (model, exact):
        each(batch(rank, 0).repeat(1, 4)[:, :64]).square().mean().backward()
    return [
        (p.grad.dtype, float((p.grad - q.grad).double().square().sum() / q.grad.double().square().sum()))
        for p, q in zip(model.parameters(), exact.parameters(), strict=True)
    ]


@pytest.mark.parametrize(
    ("codec", "hook"), [(lb.Eden(8), {}), (lb.Eden(8), {"strategy": "two_phase"}), (lb.Summable(8), {})]
)
@pytest.mark.parametrize("options", [{}, {"static_graph": True}], ids=["", "static"])
def test_dtypes_may_differ(codec: lb.Codec, hook: dict[str, Any], options: dict[str, Any]) -> None:
    """A static graph's first iteration has one bucket for each dtype, all of them number 0 and none the last."""
    for gain, *rest in ranks(2).run(_mixed, codec, hook, options):
        assert gain[0] == torch.float32
        assert gain[1] < 0.02  # a bucket's single number, coded as a block of its own
        assert [dtype for dtype, _ in rest] == 2 * [torch.bfloat16] + 2 * [torch.float32]
        assert all(error < 2e-3 for _, error in rest)


class Single(nn.Module):
    """One number, so a bucket of one."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.gain


def _single(rank: int, codec: lb.Codec, hook: dict[str, Any], least: int) -> float:
    model = parallel(Single())
    ddp.register(model, codec, start_step=0, check_every=1, min_numel=least, **hook)
    model(torch.tensor(3.0 + 2 * rank)).backward()
    return model.module.gain.grad.item()


@pytest.mark.parametrize(("codec", "hook"), STRATEGIES)
def test_a_bucket_of_one_number(codec: lb.Codec, hook: dict[str, Any]) -> None:
    assert ranks(2).run(_single, codec, hook, 2) == [4.0, 4.0]
    one, two = ranks(2).run(_single, codec, hook, 1)
    assert one == two
    assert one == pytest.approx(4, rel=0.3)  # one number among 128 of a rotated block, by as little as one bit


def _half(rank: int, codec: lb.Codec, hook: dict[str, Any]) -> Any:
    """A model in bfloat16 altogether."""
    model = DistributedDataParallel(net(torch.bfloat16))
    ddp.register(model, codec, check_every=1, **hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(5):
        optimizer.zero_grad()
        model(batch(rank, step).bfloat16()).square().mean().backward()
        optimizer.step()
    return weights(model)


@pytest.mark.parametrize(("codec", "hook"), STRATEGIES)
def test_a_model_in_bfloat16(codec: lb.Codec, hook: dict[str, Any]) -> None:
    one, two = ranks(2).run(_half, codec, hook)
    assert same(one, two)
    assert all(t.isfinite().all() for t in one.values())


def _resumed(rank: int, codec: lb.Codec, hook: dict[str, Any]) -> Any:
    whole = parallel(net())
    ddp.register(whole, codec, seed=5, **hook)
    train(whole, rank, range(9))

    part = parallel(net())
    state = ddp.register(part, codec, seed=5, **hook)
    optimizer = train(part, rank, range(5))
    kept = pickle.loads(pickle.dumps([part.module.state_dict(), optimizer.state_dict(), state.state_dict()]))

    again = net()
    again.load_state_dict(kept[0])
    resumed = parallel(again)
    fresh = ddp.register(resumed, codec, **hook)
    fresh.load_state_dict(kept[2])
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.05, momentum=0.9)
    optimizer.load_state_dict(kept[1])
    train(resumed, rank, range(5, 9), optimizer)
    return same(weights(whole), weights(resumed)), fresh.step


@pytest.mark.parametrize(("codec", "hook"), STRATEGIES)
def test_resuming_changes_nothing(codec: lb.Codec, hook: dict[str, Any]) -> None:
    assert ranks(2).run(_resumed, codec, hook) == [(True, 9)] * 2


def _sometimes(rank: int) -> Any:
    """What is remembered of a layer, while it is used and while it is not."""
    model = parallel(net(), find_unused_parameters=True)
    state = ddp.register(model, lb.Sign(), start_step=0)
    norms = []
    for step in range(5):
        model.zero_grad()
        model(batch(rank, step), spare=step == 0).square().mean().backward()
        norms.append(float(state.state_dict()["memory"]["errors"]["first spare.weight[0]"].norm()))
    return norms


def test_memory_waits_while_a_parameter_is_not_used() -> None:
    """DDP drops the mean of what no rank has used: what such a message said would be lost."""
    for first, *later in ranks(2).run(_sometimes):
        assert first > 0
        assert later == [first] * 4


def _other_shapes(rank: int, kept: Any) -> Any:
    model = parallel(nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 32)))
    state = ddp.register(model, lb.Sign(), start_step=0)
    for old, new in (("first", "0"), ("second", "1")):
        kept["memory"]["errors"][f"first {new}.weight[0]"] = kept["memory"]["errors"].pop(f"first {old}.weight[0]")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state.load_state_dict({**kept, "memory": {**kept["memory"], "rank": rank}})
        model(batch(rank, 0)).sum().backward()
    return [str(warning.message) for warning in caught if "dropped" in str(warning.message)]


def test_memory_of_another_shape_is_dropped() -> None:
    want = "error feedback of 'first 1.weight[0]' is dropped: it has 4096 numbers, the gradient 2048"
    assert ranks(2).run(_other_shapes, ranks(2).run(_kept)[0]) == [[want]] * 2


def _other_world(rank: int, kept: Any) -> Any:
    model = parallel(net())
    state = ddp.register(model, lb.Sign(), check_every=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state.load_state_dict(kept)
    train(model, rank, range(3))
    return [str(warning.message) for warning in caught], state.step


def _kept(rank: int) -> Any:
    model = parallel(net())
    state = ddp.register(model, lb.Sign())
    train(model, rank, range(3))
    return state.state_dict()


def test_another_number_of_ranks_drops_error_feedback() -> None:
    kept = ranks(2).run(_kept)[0]
    assert sorted(kept["memory"]["errors"]) == [
        "first first.weight[0]",
        "first second.weight[0]",
        "first spare.weight[0]",
    ]
    for texts, step in ranks(3).run(_other_world, kept):
        assert step == 6
        assert len(texts) == 1
        assert "error feedback is dropped: it was for rank 0 of 2 by 'all_gather'" in texts[0]


def _amp(rank: int, codec: lb.Codec, hook: dict[str, Any]) -> Any:
    """Rank 1 overflows in the fourth step: all ranks skip it, and their memories stay."""
    model = parallel(net())
    state = ddp.register(model, codec, start_step=0, check_every=1, **hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
    kept = []
    for step in range(5):
        optimizer.zero_grad()
        loss = model(batch(rank, step)).square().mean()
        if (rank, step) == (1, 3):
            loss = loss * torch.inf
        before = weights(model), state.state_dict()["memory"]["errors"]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        after = weights(model), state.state_dict()["memory"]["errors"]
        moved = not same(before[0], after[0]), not same(before[1], after[1])
        if scaler.get_scale() != scale:
            state.rescale(scaler.get_scale() / scale)
            halved = state.state_dict()["memory"]["errors"]
            assert all(torch.equal(after[1][name] / 2, t) for name, t in halved.items())
        kept.append((*moved, scaler.get_scale()))
    return kept, state.stats.skipped, weights(model)


@pytest.mark.parametrize(("codec", "hook"), STRATEGIES)
def test_a_step_that_overflows_is_skipped_by_all(codec: lb.Codec, hook: dict[str, Any]) -> None:
    one, two = ranks(2).run(_amp, codec, hook)
    fed = codec == lb.Sign()
    assert one[0] == two[0] == [(True, fed, 1024.0)] * 3 + [(False, False, 512.0)] + [(True, fed, 512.0)]
    assert one[1] == two[1] == 1
    assert same(one[2], two[2])


def _zeros(rank: int, codec: lb.Codec, hook: dict[str, Any]) -> Any:
    model = parallel(net())
    ddp.register(model, codec, start_step=0, check_every=1, **hook)
    (model(batch(rank, 0)) * 0.0).sum().backward()
    return [bool(p.grad.any()) for p in model.parameters()]


@pytest.mark.parametrize(("codec", "hook"), STRATEGIES)
def test_zeros_stay_zeros(codec: lb.Codec, hook: dict[str, Any]) -> None:
    for some in ranks(2).run(_zeros, codec, hook):
        assert not any(some)


def _sub_group(rank: int) -> Any:
    group = dist.new_group([0, 2])
    if rank == 1:
        return None
    results = []
    for hooked in (True, False):
        model = parallel(net(), process_group=group)
        if hooked:
            assert ddp.register(model, lb.Float32(), strategy="all_gather", start_step=0).stats.size == 2
        train(model, rank, range(3))
        results.append(weights(model))
    return same(*results)


def test_a_sub_group_divides_by_its_own_size() -> None:
    assert ranks(3).run(_sub_group) == [True, None, True]


def _joined(rank: int) -> Any:
    """Rank 1 has no more data after two steps; it goes on sending zeros."""
    model = parallel(net())
    state = ddp.register(model, lb.Eden(1), start_step=0)
    with model.join():
        train(model, rank, range(2 if rank else 4))
    return state.step, weights(model)


def test_ranks_with_less_data_may_join() -> None:
    one, two = ranks(2).run(_joined)
    assert one[0] == two[0] == 4
    assert same(one[1], two[1])


def _damaged(rank: int) -> str:
    model = parallel(net())
    ddp.register(model, lb.Eden(1), start_step=0)
    train(model, rank, range(1))
    honest = lb.encode
    if rank == 1:
        _rounds.lb.encode = lambda *a, **k: bytes(b ^ (i == 200) for i, b in enumerate(honest(*a, **k)))
    try:
        train(model, rank, range(1, 2))
    except lb.DecodeError as error:
        return str(error)
    finally:
        _rounds.lb.encode = honest
    return "nothing was noticed"


def test_a_damaged_message_ends_the_backward_pass_on_all_ranks() -> None:
    texts = ranks(2).run(_damaged)
    assert texts[0] == texts[1]
    assert "on rank 0: the message of rank 1 of '" in texts[0]
    assert "cannot decode" in texts[0]


def _dies(rank: int, codec: lb.Codec, hook: dict[str, Any]) -> None:
    model = parallel(net())
    ddp.register(model, codec, **hook)
    optimizer = train(model, rank, range(3))
    if rank == 1:
        model.module.second.register_full_backward_hook(lambda *_: os._exit(1))
    train(model, rank, range(3, 100), optimizer)


@pytest.mark.parametrize(("codec", "hook"), STRATEGIES[:3:2])
def test_a_rank_that_dies_ends_the_others_with_an_error(codec: lb.Codec, hook: dict[str, Any]) -> None:
    own = Ranks(3)
    try:
        results = own.call(_dies, codec, hook, seconds=30)
    finally:
        own.close()
    assert [result.kind for result in results] == ["RuntimeError", "Died", "RuntimeError"]
    assert "onnection" in results[0].text


def _sparse(rank: int) -> str:
    model = parallel(nn.Embedding(100, 50, sparse=True))
    ddp.register(model, lb.Eden(1), start_step=0)
    with pytest.raises(TypeError, match=r"the gradients of \['weight'\] are sparse"):
        model(torch.arange(3)).sum().backward()
    return "refused"


def test_sparse_gradients_are_refused() -> None:
    assert ranks(2).run(_sparse) == ["refused"] * 2


def _loaded_by_one(rank: int) -> Any:
    model = parallel(net())
    state = ddp.register(model, lb.Eden(1))
    if rank == 0:
        state.load_state_dict({**state.state_dict(), "step": 100})
    train(model, rank, range(1))


def test_a_checkpoint_that_one_rank_alone_has_loaded_is_found_at_once() -> None:
    """Ranks of different steps would wait for each other, in different collectives."""
    for failed in ranks(2).call(_loaded_by_one):
        assert failed.kind == "Error"
        assert failed.text.startswith("step: ranks [1] were given another than rank 0")


def _copied(rank: int) -> Any:
    """`copy.deepcopy`, as of averaged models; what is registered for the copy is its own."""
    model = parallel(net())
    state = ddp.register(model, lb.Sign(), start_step=0)
    train(model, rank, range(2))
    for copied in (copy.deepcopy(model), torch.optim.swa_utils.AveragedModel(model).module):
        assert same(weights(copied), weights(model))
        other = ddp.register(copied, lb.Eden(1), start_step=0)
        train(copied, rank, range(2))
        assert (state.step, other.step) == (2, 2)
    return weights(copied)


def test_a_model_with_the_hook_may_be_copied() -> None:
    assert same(*ranks(2).run(_copied))


def _compiled(rank: int, around: bool) -> Any:
    """A compiled module has parameters of other names, with which it means the same ones."""
    module = net()
    compiled = torch.compile(module, backend="eager")
    model = parallel(compiled if around else module, bucket_cap_mb=25)
    state = ddp.register(model, lb.Sign(), start_step=0, check_every=1)
    train(model, rank, range(3))
    return weights(module), list(state.state_dict()["memory"]["errors"])


def test_a_compiled_model_has_the_same_keys_and_memories() -> None:
    compiled, plain = ranks(2).run(_compiled, True), ranks(2).run(_compiled, False)
    assert same(compiled[0][0], plain[0][0])
    assert same(compiled[0][0], compiled[1][0])
    assert compiled[0][1] == plain[0][1]


def _differs(rank: int) -> str:
    model = parallel(net())
    ddp.register(model, lb.Eden(1), check_every=2)
    train(model, rank, range(2))
    if rank == 1:
        with torch.no_grad():
            model.module.last.bias += 1e-6
    try:
        train(model, rank, range(2, 6))
    except lb.Error as error:
        return str(error)
    return "nothing was noticed"


def test_replicas_that_differ_are_found() -> None:
    want = "replicas differ: ranks [1] have other parameters or gradients than rank 0"
    assert ranks(2).run(_differs) == [want] * 2


def _measured(rank: int) -> Any:
    model = parallel(nn.Linear(256, 256, bias=False))
    state = ddp.register(model, lb.Eden(1), start_step=0, measure_every=1)
    for step in range(20):
        model(torch.from_numpy(np.random.default_rng([7, step]).standard_normal((4, 256), np.float32))).sum().backward()
        model.zero_grad()
    return state.stats


def test_the_error_is_what_the_codec_expects() -> None:
    """Two ranks with the same gradient: half of one message's error."""
    for stats in ranks(2).run(_measured):
        assert stats.error == pytest.approx(lb.Eden(1).expected_error(1 << 16) / 2, rel=0.02)
        assert stats.ratio_float32 == pytest.approx(32, rel=0.05)
        assert f"{stats.error:.3g}" in str(stats)


class Halves(nn.Module):
    """Two halves of one vector, as parameters of their own or as one."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.parts = nn.ParameterList([torch.zeros(n) for n in ([2048, 2048] if apart else [4096])])

    def forward(self) -> Tensor:
        """Give the vector."""
        return torch.cat(list(self.parts))


def _drowned(rank: int, apart: bool, adam: bool, codec: lb.Codec) -> float:
    """Fit two halves, the gradients of one of which are 1000 times smaller, and give what is left of it."""
    target = torch.from_numpy(np.random.default_rng(3).standard_normal(4096, np.float32))
    factor = torch.cat([torch.ones(2048), torch.full((2048,), 1e-3)])
    model = DistributedDataParallel(Halves(apart))
    ddp.register(model, codec, start_step=0)
    kind, rate = (torch.optim.Adam, 0.04) if adam else (torch.optim.SGD, 0.3)
    optimizer = kind(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=150)
    for _ in range(150):
        optimizer.zero_grad()
        (factor * (model() - target).square()).sum().mul(0.5).backward()
        optimizer.step()
        schedule.step()
    return float((model().detach() - target)[2048:].square().mean())


def test_a_message_for_each_parameter_keeps_small_gradients() -> None:
    """The table of docs/torch-ddp.md: in one message the noise of a large neighbour drowns them."""
    page = (ROOT / "docs" / "torch-ddp.md").read_text()
    for name, adam in (("SGD", False), ("Adam", True)):
        settings = (True, lb.Float32()), (True, lb.Eden(1)), (False, lb.Eden(1))
        left = [ranks(2).run(_drowned, apart, adam, codec)[0] for apart, codec in settings]
        assert f"| {name} | " + " | ".join(f"{each:.2g}" for each in left) + " |" in page
        assert left[1] < 1.2 * left[0]


def _arguments_differ(rank: int, name: str) -> None:
    ddp.register(parallel(net()), lb.Eden(1), **{name: rank + 1}, seed=rank)


@pytest.mark.parametrize("argument", ["start_step", "check_every", "measure_every"])
def test_other_arguments_on_another_rank_are_found_at_once(argument: str) -> None:
    for rank, failed in enumerate(ranks(2).call(_arguments_differ, argument)):
        assert failed.kind == "Error"
        assert failed.text == f"{argument}: ranks [1] were given another than rank 0; on rank {rank} it is {rank + 1}"


def alone(test: Any) -> Any:
    """One process that is a group."""

    def run() -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            test()
        finally:
            dist.destroy_process_group()

    return run


@alone
def _arguments() -> None:
    with pytest.raises(TypeError, match="model: expected a DistributedDataParallel, got Net"):
        ddp.register(net(), lb.Eden(1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model: \['weight', 'bias'\] are complex"):
        ddp.register(parallel(nn.Linear(3, 3, dtype=torch.complex64)), lb.Eden(1))
    model = parallel(net())
    for name in ("start_step", "check_every", "measure_every"):
        with pytest.raises(lb.Error, match=name):
            ddp.register(model, lb.Eden(1), **{name: -1})
    with pytest.raises(lb.Error, match="seed"):
        ddp.register(model, lb.Eden(1), seed=-1)
    state = ddp.register(model, lb.Eden(1), seed=2**64 - 1)
    assert state.seed == 2**64 - 1
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(state)
    with pytest.raises(TypeError, match="state: expected"):
        state.load_state_dict({})
    with pytest.warns(UserWarning, match="codec: it was Sign"):
        state.load_state_dict({**state.state_dict(), "config": {**state.state_dict()["config"], "codec": "Sign()"}})
    with pytest.raises(RuntimeError, match="hook"):
        ddp.register(model, lb.Eden(1))


def test_bad_arguments_are_named() -> None:
    _arguments()


@alone
def _alone() -> None:
    """`State` and `hook`, without `register`."""
    model = parallel(net())
    state = ddp.State(model, lb.Sign(), start_step=0, check_every=1)
    model.register_comm_hook(state, ddp.hook)
    train(model, 0, range(3))
    assert (state.step, state.stats.steps, state.stats.received) == (3, 3, 0)
    # What there is nothing to say of is left out.
    assert "nan" not in str(state.stats)
    assert "nan" not in str(ddp.register(parallel(net()), lb.Sign()).stats)


def test_a_group_of_one_sends_to_itself() -> None:
    _alone()


def test_the_pages_script_prints_what_the_page_says() -> None:
    page = (ROOT / "docs" / "torch-ddp.md").read_text()
    script, printed = (re.search(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("python", "text"))
    assert script is not None
    assert printed is not None
    assert ranks(2).run(printed_by, script[1]) == [printed[1], ""]
