"""FSDP2 by messages: exact ones are its own reduce_scatter, and what each rank keeps is its part of one average."""

from __future__ import annotations

import copy
import io
import os
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lowbit as lb
import lowbit.torch
from lowbit.torch import _rounds, fsdp
from lowbit.torch._exchange import slot_of
from torch_layer.local_support import batch, same
from torch_layer.ranks import Failed, Ranks, ranks

CODECS = [lb.Eden(1), lb.Eden(0.5), lb.QuicFl(2), lb.Sign(), lb.Summable(4), lb.Eden(1, entropy_coded=True)]


class Net(nn.Module):
    """Layers that no number of ranks divides, one inside another, one tied, one frozen, one that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 70)
        self.block = nn.Sequential(nn.Linear(70, 70), nn.LayerNorm(70), nn.Linear(70, 70))
        self.tied = nn.Linear(70, 70)
        self.tied.weight = self.first.weight = nn.Parameter(torch.randn(70, 70) / 8)
        self.frozen = nn.Linear(70, 70).requires_grad_(False)
        self.spare = nn.Linear(70, 70)
        self.last = nn.Linear(70, 1)

    def forward(self, x: Tensor, *, spare: bool = True) -> Tensor:
        """Use everything, but for the spare layer where told so."""
        y = self.tied(self.block(self.first(x).relu()).relu()).relu()
        y = self.frozen(y)
        return self.last(self.spare(y) if spare else y)


def net(ways: tuple[int, ...], codec: lb.Codec | None, **options: Any) -> tuple[Any, Any]:
    """Give a sharded model, and its state if it has a codec."""
    torch.manual_seed(7)
    model = Net()
    mesh = dist.init_device_mesh("cpu", ways, mesh_dim_names=("replicate", "shard")[-len(ways) :])
    hook = {name: options.pop(name) for name in ("seed", "min_numel", "error_feedback") if name in options}
    fully_shard(model.block, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model, None if codec is None else fsdp.register(model, codec, **hook)


def inputs(rank: int, step: int) -> Tensor:
    return batch(rank, step, 70)


def loss_of(model: nn.Module, rank: int, step: int, **forward: Any) -> Tensor:
    x = inputs(rank, step)
    return (model(x, **forward).float() - x.sum(1, keepdim=True)).square().mean()


def train(model: nn.Module, rank: int, steps: range, **forward: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, rank, step, **forward).backward()
        optimizer.step()


def whole(model: Any) -> dict[str, Tensor]:
    model.reshard()
    return {name: p.detach().full_tensor().clone() for name, p in model.named_parameters()}


def _exact(rank: int, ways: tuple[int, ...], options: dict[str, Any]) -> Any:
    results = []
    for codec in (None, lb.Float32()):
        model, _ = net(ways, codec, **options)
        train(model, rank, range(4))
        results.append(whole(model))
    return results


MIXED = {"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)}
HALF = {"mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float16)}


@pytest.mark.parametrize("options", [{}, MIXED, HALF, {"reshard_after_forward": False}])
def test_exact_messages_are_reduce_scatter(options: dict[str, Any]) -> None:
    for plain, coded in ranks(2).run(_exact, (2,), options):
        assert same(plain, coded)


@pytest.mark.parametrize("ways", [(3,), (4,), (2, 2)])
def test_exact_messages_are_reduce_scatter_but_for_rounding(ways: tuple[int, ...]) -> None:
    for plain, coded in ranks(int(np.prod(ways))).run(_exact, ways, {}):
        for name, t in plain.items():
            assert torch.allclose(t, coded[name], rtol=1e-5, atol=1e-6), name


def _parallel(rank: int) -> Any:
    """FSDP over one dimension of a mesh, tensor parallelism over the other."""
    results = []
    for codec in (None, lb.Float32(), lb.Eden(8)):
        torch.manual_seed(7)
        model: Any = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 20))
        mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        fully_shard(model, mesh=mesh["data"])
        if codec is not None:
            fsdp.register(model, codec)
        model(batch(rank // 2, 0)).square().sum().backward()
        results.append([p.grad.to_local() for p in model.parameters()])
    errors = [float((c - t).norm() / t.norm()) for t, c in zip(results[0], results[2], strict=True)]
    return all(map(torch.equal, *results[:2])), 0 < max(errors) < 0.05


def test_beside_tensor_parallelism() -> None:
    assert ranks(4).run(_parallel) == [(True, True)] * 4


def _second(rank: int) -> Any:
    results = []
    for codec in (None, lb.Float32()):
        model, _ = net((2,), codec, shard_placement_fn=lambda p: Shard(1) if p.ndim == 2 else None)
        train(model, rank, range(2))
        results.append(whole(model))
    return same(*results)


def test_sharding_along_another_dimension() -> None:
    assert ranks(2).run(_second) == [True, True]


def _gradients(rank: int, codec: lb.Codec | None, seed: int = 0, **forward: Any) -> dict[str, Tensor]:
    model, _ = net((dist.get_world_size(),), codec, seed=seed) if codec else net((dist.get_world_size(),), None)
    loss_of(model, rank, 0, **forward).backward()
    return {name: p.grad.full_tensor() for name, p in model.named_parameters() if p.grad is not None}


def _errors(rank: int, codec: lb.Codec, seeds: int) -> Any:
    exact = _gradients(rank, None)
    coded = [_gradients(rank, codec, seed) for seed in range(seeds)]
    return exact, {name: torch.stack([each[name] for each in coded]) for name in exact}


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_are_unbiased_and_small_ones_exact(size: int) -> None:
    seeds = 24
    exact, coded = ranks(size).run(_errors, lb.Eden(2), seeds)[0]
    for name, t in exact.items():
        energy = float(t.square().sum())
        single = float((coded[name] - t).square().sum()) / seeds / energy
        if t.numel() < 1024:
            assert torch.allclose(coded[name], t.expand(seeds, *t.shape), rtol=1e-5, atol=1e-6), name
        else:
            # Of ranks with the same gradient it were 0.133 / n; these differ, so that their mean is smaller.
            assert 0.13 / size < single < 1, name
            assert float((coded[name].mean(0) - t).square().sum()) / energy == pytest.approx(single / seeds, rel=0.5)


def _alike(rank: int, ways: tuple[int, ...], seeds: int) -> float:
    """Give the mean error of what ranks with the same gradient average."""
    total, x = 0.0, batch(0, 0, 64)
    for seed in range(seeds):
        model: Any = nn.Linear(64, 64, bias=False)
        mesh = dist.init_device_mesh("cpu", ways, mesh_dim_names=("replicate", "shard")[-len(ways) :])
        fsdp.register(fully_shard(model, mesh=mesh), lb.Eden(1), seed=seed)
        y = model(x)
        y.sum().backward()
        exact = x.sum(0).expand(64, 64)
        total += float((model.weight.grad.full_tensor() - exact).square().sum() / exact.square().sum())
    return total / seeds


@pytest.mark.parametrize("ways", [(4,), (2, 2)])
def test_errors_of_replicas_of_shards_are_not_alike(ways: tuple[int, ...]) -> None:
    """Four ranks with one gradient: 0.571 / 4, whichever of them are replicas."""
    assert ranks(4).run(_alike, ways, 6)[0] == pytest.approx(0.571 / 4, rel=0.1)


def _layout(rank: int) -> Any:
    model, state = net((dist.get_world_size(),), lb.Eden(1))
    said, found = {}, {}
    for name, comm in state.modules.items():
        (group,) = model.get_submodule(name)._get_fsdp_state()._fsdp_param_groups
        trained = [p for p in group.fsdp_params if p.sharded_param.requires_grad]
        said[name] = [p.padded_sharded_param_size.numel() for p in trained]
        found[name] = [count for _, count, _ in comm.chunks(sum(said[name]))]
    assert [name for name, _, _ in state.modules[""].chunks(100)] == ["100 numbers of the model"]
    return said, found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_buffers_are_cut_where_fsdp_joins_them(size: int) -> None:
    """Read off FSDP's own records, which are private."""
    for said, found in ranks(size).run(_layout):
        assert said == found
        assert set(said) == {"", "block"}


def _trained(rank: int, codec: lb.Codec) -> Any:
    model, state = net((dist.get_world_size(),), codec)
    before = sum(loss_of(model, rank, step).item() for step in range(3))
    train(model, rank, range(12))
    return before, sum(loss_of(model, rank, step).item() for step in range(3)), state.stats, whole(model)


@pytest.mark.parametrize("codec", CODECS)
def test_models_train(codec: lb.Codec) -> None:
    one, two = ranks(2).run(_trained, codec)
    assert same(one[3], two[3])
    assert one[1] + two[1] < one[0] + two[0]
    assert one[2].steps == 24
    assert one[2].ratio_bfloat16 == one[2].ratio_float32 / 2
    assert str(one[2]).startswith("reduce_scatter over 2 ranks, 24 calls, ")
    if codec == lb.Eden(1):
        # By rank and step: four messages of half a weight, one of all biases, and those of what is inside.
        weight, small = slot_of(codec, 35 * 70).length, [slot_of(lb.Float32(), n).length for n in (176, 140)]
        assert one[2].message == 12 * 2 * (4 * weight + sum(small))
        assert one[2].ratio_float32 == pytest.approx(32 / one[2].bits_per_number, rel=0.02)


def _unused(rank: int) -> Any:
    """Parameters without a gradient are not in FSDP's buffer; it is not cut then."""
    exact, coded = _gradients(rank, None, spare=False), _gradients(rank, lb.Eden(8), spare=False)
    model, _ = net((2,), lb.Sign())
    train(model, rank, range(2), spare=False)
    train(model, rank, range(2))
    return exact, coded, whole(model)


def test_parameters_that_are_not_used() -> None:
    results = ranks(2).run(_unused)
    for exact, coded, trained in results:
        assert exact.keys() == coded.keys()
        assert "spare.weight" not in exact
        error = sum(float((coded[name] - t).square().sum()) for name, t in exact.items())
        assert 0 < error < 1e-3 * sum(float(t.square().sum()) for t in exact.values())
        assert same(trained, results[0][2])


def _listed(rank: int) -> Any:
    """Several modules as one: a buffer that is not cut."""
    results = []
    for codec in (None, lb.Float32(), lb.Eden(8)):
        torch.manual_seed(7)
        model: Any = nn.Sequential(nn.Linear(70, 70), nn.Linear(70, 70), nn.Linear(70, 1))
        mesh = dist.init_device_mesh("cpu", (2,))
        fully_shard([model[0], model[1]], mesh=mesh)
        fully_shard(model, mesh=mesh)
        if codec is not None:
            fsdp.register(model, codec)
        train(model, rank, range(2))
        results.append(whole(model))
    moved = max(float((t - results[0][name]).abs().max()) for name, t in results[2].items())
    return same(*results[:2]), 0 < moved < 1e-3


def test_modules_that_are_sharded_as_one() -> None:
    assert ranks(2).run(_listed) == [(True, True)] * 2


def _accumulated(rank: int) -> Any:
    gradients = []
    for apart in (True, False):
        model, state = net((2,), lb.Eden(4))
        if apart:
            model.set_requires_gradient_sync(False)
            loss_of(model, rank, 0).backward()
            assert state.stats.steps == 0
            model.set_requires_gradient_sync(True)
            loss_of(model, rank, 1).backward()
        else:
            (loss_of(model, rank, 0) + loss_of(model, rank, 1)).backward()
        assert state.stats.steps == 2
        gradients.append({n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None})
    return all(torch.allclose(t, gradients[1][name], rtol=1e-2, atol=1e-2) for name, t in gradients[0].items())


def test_gradients_may_be_accumulated() -> None:
    assert ranks(2).run(_accumulated) == [True, True]


def _overflow(rank: int, codec: lb.Codec) -> Any:
    model, state = net((2,), codec)
    train(model, rank, range(2))
    before = state.state_dict()["memory"][0]["errors"]
    before = {name: t.clone() for name, t in before.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.zero_grad()
    loss = loss_of(model, rank, 2)
    (loss * torch.inf if rank else loss).backward()
    bad = all(not p.grad.to_local().isfinite().any() for p in model.parameters() if p.grad is not None)
    kept = same(before, state.state_dict()["memory"][0]["errors"])
    train(model, rank, range(3, 5))
    return bad, kept, state.skipped, all(t.isfinite().all() for t in whole(model).values())


@pytest.mark.parametrize("codec", [lb.Sign(), lb.Eden(1), lb.Summable(4)])
def test_what_is_not_finite_is_nan_on_every_rank(codec: lb.Codec) -> None:
    assert ranks(2).run(_overflow, codec) == [(True, True, 2, True)] * 2


def _resumed(rank: int, codec: lb.Codec) -> Any:
    model, _ = net((2,), codec, seed=5)
    train(model, rank, range(8))
    part, state = net((2,), codec, seed=5)
    train(part, rank, range(5))
    torch.save([whole(part), state.state_dict()], file := io.BytesIO())
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    again, fresh = net((2,), codec)
    with torch.no_grad():
        for name, p in again.named_parameters():
            p.copy_(dist.tensor.distribute_tensor(kept[0][name], p.device_mesh, p.placements))
    fresh.load_state_dict(kept[1])
    train(again, rank, range(5, 8))
    return same(whole(model), whole(again)), state.state_dict()


@pytest.mark.parametrize("codec", [lb.Sign(), lb.Eden(1)])
def test_resuming_changes_nothing(codec: lb.Codec) -> None:
    for resumed, state in ranks(2).run(_resumed, codec):
        assert resumed
        assert state["calls"] == {"": 5, "block": 5}


def _other_world(rank: int, state: Any) -> Any:
    model, fresh = net((3,), lb.Sign())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fresh.load_state_dict(state)
    train(model, rank, range(1))
    return [str(each.message) for each in caught]


def test_another_number_of_ranks_drops_error_feedback() -> None:
    state = ranks(2).run(_resumed, lb.Sign())[0][1]
    for texts in ranks(3).run(_other_world, state):
        assert len(texts) == 1
        assert "error feedback is dropped: it was for rank 0 of 2" in texts[0]


def _damaged(rank: int) -> str:
    model, _ = net((3,), lb.Eden(1))
    train(model, rank, range(1))
    honest = lb.encode
    if rank == 1:
        _rounds.lb.encode = lambda *a, **k: bytes(b ^ (i == 200) for i, b in enumerate(honest(*a, **k)))
    try:
        with pytest.raises(lb.DecodeError) as caught:
            loss_of(model, rank, 1).backward()
    finally:
        _rounds.lb.encode = honest
    return str(caught.value)


def test_a_damaged_message_is_an_error_on_all_ranks() -> None:
    own = Ranks(3)
    try:
        texts = own.run(_damaged)
    finally:
        own.close()
    assert len(set(texts)) == 1
    assert "on rank 0: the message of rank 1 of '" in texts[0]


def _dies(rank: int) -> None:
    model, _ = net((3,), lb.Eden(1))
    train(model, rank, range(1))
    if rank == 1:
        model.block.register_full_backward_hook(lambda *_: os._exit(1))
    train(model, rank, range(1, 50))


def test_a_rank_that_dies_ends_the_others_with_an_error() -> None:
    own = Ranks(3)
    try:
        results = own.call(_dies, seconds=30)
    finally:
        own.close()
    assert all(isinstance(result, Failed) for result in results)
    assert [result.kind for result in results] == ["RuntimeError", "Died", "RuntimeError"]


def _divided(rank: int) -> Any:
    model, _ = net((2,), lb.Float32())
    model.set_gradient_divide_factor(4.0)
    with pytest.raises(lb.Error, match="op: only sums and averages; where a gradient_divide_factor is set"):
        loss_of(model, rank, 0).backward()
    results = []
    for codec in (None, lb.Float32()):
        model, _ = net((2,), codec)
        model.set_gradient_divide_factor(4.0)
        model.set_force_sum_reduction_for_comms(True)
        train(model, rank, range(2))
        results.append(whole(model))
    return same(*results)


def test_gradients_divided_by_something_else() -> None:
    own = Ranks(2)  # FSDP does not get over an error in its backward pass
    try:
        assert own.run(_divided) == [True, True]
    finally:
        own.close()


def _pact(rank: int) -> Any:
    """Clips are scalars, which FSDP does not shard: they are left out, and their gradients averaged by hand."""
    results = []
    for sharded in (True, False):
        torch.manual_seed(3)
        layers = nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        model: Any = lowbit.torch.prepare(nn.Sequential(*layers), lowbit.torch.recipes.int4_forward(pact_init=2.0))
        keys = model.state_dict().keys()
        clips = {p for p in model.parameters() if p.ndim == 0}
        assert clips
        if sharded:
            with pytest.raises(ValueError, match="fully_shard doesn't support scalar parameters"):
                fully_shard(copy.deepcopy(model), mesh=dist.init_device_mesh("cpu", (2,)))
            fully_shard(model, mesh=dist.init_device_mesh("cpu", (2,)), ignored_params=clips)
            state = fsdp.register(model, lb.Float32())
        run = model if sharded else nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(lowbit.torch.param_groups(model, pact_decay=1e-4), lr=0.01)
        for step in range(4):
            optimizer.zero_grad()
            x = batch(rank, step)
            (run(x) - x.sum(1, keepdim=True)).square().mean().backward()
            if sharded:
                for clip in clips:
                    dist.all_reduce(clip.grad.div_(2))
            optimizer.step()
        assert model.state_dict().keys() == keys
        full = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}
        results.append({name: t.detach().clone() for name, t in full.items()})
    assert state.stats.steps == 4
    moved = [float(t) for name, t in results[0].items() if t.ndim == 0]
    assert all(each != 2 for each in moved)
    return [float((t - results[1][name]).abs().max()) for name, t in results[0].items()], moved


def test_pacts_clips_are_ignored_and_averaged_by_hand() -> None:
    one, two = ranks(2).run(_pact)
    assert max(one[0]) < 1e-6
    assert one[1] == two[1]


def _scaled(rank: int) -> Any:
    """One rank overflows; all skip that step."""
    model, state = net((2,), lb.Eden(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    kept = []
    for step in range(4):
        optimizer.zero_grad()
        loss = loss_of(model, rank, step)
        scaler.scale(loss * torch.inf if (rank, step) == (1, 2) else loss).backward()
        before = whole(model)
        scaler.step(optimizer)
        scaler.update()
        kept.append((same(before, whole(model)), scaler.get_scale()))
    return kept, state.skipped


def test_gradscaler_skips_on_every_rank() -> None:
    want = [(False, 256.0)] * 2 + [(True, 128.0), (False, 128.0)], 2
    assert ranks(2).run(_scaled) == [want, want]


def test_bad_arguments_are_named() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(TypeError, match="model: expected what fully_shard was applied to, got Net"):
            fsdp.register(Net(), lb.Eden(1))
        model, state = net((1,), lb.Eden(1))
        with pytest.raises(TypeError, match="codec"):
            fsdp.register(model, "eden")  # type: ignore[arg-type]
        with pytest.raises(lb.Error, match="min_numel"):
            fsdp.register(model, lb.Eden(1), min_numel=-1)
        with pytest.raises(lb.Error, match="seed"):
            fsdp.register(model, lb.Eden(1), seed=-1)
        with pytest.raises(lb.Error, match="error_feedback"):
            fsdp.register(model, lb.Eden(1), error_feedback=True)
        with pytest.raises(TypeError, match="state: expected what state_dict gave"):
            state.load_state_dict({})
        with pytest.raises(lb.Error, match="state: it is of a model that is sharded otherwise"):
            state.load_state_dict({**state.state_dict(), "calls": {}})
        with pytest.warns(UserWarning, match="codec: it was Sign"):
            state.load_state_dict({**state.state_dict(), "codec": "Sign()"})
        with pytest.raises(
            TypeError, match=r"model: .* is a DTensor of torch.float32; expected plain tensors of floats"
        ):
            lowbit.torch.LocalSteps(model, torch.optim.SGD(model.parameters()), every=1)
        empty = fully_shard(nn.ReLU(), mesh=dist.init_device_mesh("cpu", (1,)))
        with pytest.raises(lb.Error, match="model: it has no sharded parameters"):
            fsdp.register(empty, lb.Eden(1))
        train(model, 0, range(1))
        assert state.stats.steps == 0  # a group of one sends nothing
    finally:
        dist.destroy_process_group()
