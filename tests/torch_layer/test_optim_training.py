"""LowPrecision in a training script: schedulers, scalers, closures, hooks, checkpoints, ranks; and what goes wrong."""

from __future__ import annotations

import datetime
import io
import socket
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import lowbit as lb
from lowbit.torch import Spec
from lowbit.torch.optim import LowPrecision
from torch_layer.torch_support import assert_same, numbers


def problem(n: int = 64, d: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    x = numbers((n, d), 1)
    return x, x @ numbers((d, 1), 2) + 0.1 * numbers((n, 1), 3)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    made = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return made.to(dtype)


def loss_of(net: nn.Module) -> torch.Tensor:
    x, y = problem()
    dtype = next(net.parameters()).dtype
    return nn.functional.mse_loss(net(x.to(dtype)).float(), y)


def train(net: nn.Module, optimizer: Any, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()


RUNS: dict[str, tuple[torch.dtype, Any, dict[str, Any]]] = {
    "one pass": (torch.bfloat16, torch.optim.AdamW, {"weight": "bfloat16"}),
    "one pass, states too": (torch.bfloat16, torch.optim.AdamW, {"weight": "bfloat16", "momentum": "bfloat16"}),
    "one pass, momentum": (
        torch.bfloat16,
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, dampening=0.1),
        {"weight": "bfloat16", "grad": "fp8_e5m2"},
    ),
    "general": (torch.bfloat16, torch.optim.RMSprop, {"weight": "bfloat16", "momentum": "fp8_e5m2"}),
    "accumulators": (torch.float32, torch.optim.Adam, {"weight": "int4", "accumulator": "bfloat16"}),
    "packed": (
        torch.float32,
        torch.optim.AdamW,
        {"weight": "int4", "accumulator": "float16", "momentum": "mxfp8", "store": "packed"},
    ),
    "packed, to nearest": (
        torch.float32,
        torch.optim.Adam,
        {"momentum": "mxint8", "store": "packed", "rounding": "nearest"},
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_five_steps_a_checkpoint_and_five_more_are_ten(run: str) -> None:
    dtype, inner, options = RUNS[run]

    def start(key: int) -> tuple[nn.Module, LowPrecision, Any]:
        net = model(dtype)
        seed = {} if options.get("rounding") == "nearest" else {"key": key}
        optimizer = LowPrecision(inner(net.parameters(), lr=0.01), **options, **seed)
        return net, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3)

    def go(net: nn.Module, optimizer: LowPrecision, scheduler: Any) -> None:
        for _ in range(5):
            train(net, optimizer, 1)
            scheduler.step()

    whole = start(1)
    go(*whole)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in whole], file)
    go(*whole)
    file.seek(0)
    again = start(2)
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    go(*again)
    for (name, got), want in zip(again[0].state_dict().items(), whole[0].state_dict().values(), strict=True):
        assert_same(got, want, name)
    _same_states(again[1].state_dict(), whole[1].state_dict())
    assert again[1].steps == 10


def _same_states(got: Any, want: Any) -> None:
    """The same keys, numbers and bits, however deep."""
    assert type(got) is type(want)
    if isinstance(want, torch.Tensor):
        assert_same(got, want)
    elif isinstance(want, dict):
        assert got.keys() == want.keys()
        for name in want:
            _same_states(got[name], want[name])
    elif isinstance(want, list):
        for a, b in zip(got, want, strict=True):
            _same_states(a, b)
    else:
        assert got == want


def test_states_move_between_this_and_the_inner_optimizer() -> None:
    net, bare = model(torch.bfloat16), model(torch.bfloat16)
    ours = LowPrecision(torch.optim.AdamW(net.parameters(), lr=0.01), weight="bfloat16", key=1)
    theirs = torch.optim.AdamW(bare.parameters(), lr=0.01)
    train(net, ours, 2)
    state = ours.state_dict()
    state.pop("low_precision")
    theirs.load_state_dict(state)
    train(bare, theirs, 1)
    state = theirs.state_dict()
    ours.load_state_dict(state)
    train(net, ours, 1)
    first = next(net.parameters())
    assert ours.state[first]["step"] == 4
    assert ours.state[first]["exp_avg"].dtype is torch.float32
    assert ours.steps == 3, "what the inner optimizer saved says nothing of it"


def test_another_slot_cannot_read_packed_codes() -> None:
    def make(slot: Any) -> LowPrecision:
        p = nn.Parameter(torch.ones(64))
        p.grad = torch.ones(64)
        return LowPrecision(torch.optim.SGD([p], lr=1.0, momentum=0.9), momentum=slot, store="packed", key=1)

    a, b = make("mxfp8"), make("mxfp6")
    a.step()
    b.load_state_dict(a.state_dict())
    with pytest.raises(lb.Error, match=r"momentum: momentum_buffer was packed as mxfp8 .*formats it was saved with"):
        b.step()


def test_schedulers_drive_it() -> None:
    net = model()
    optimizer = LowPrecision(torch.optim.SGD(net.parameters(), lr=1.0), weight="int8", key=1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    inner = torch.optim.lr_scheduler.ExponentialLR(optimizer.optimizer, 0.5)
    seen = []
    for _ in range(3):
        train(net, optimizer, 1)
        seen.append(optimizer.optimizer.param_groups[0]["lr"])
        scheduler.step()
        inner.step()
    assert len(set(seen)) == 3
    assert optimizer.param_groups is optimizer.optimizer.param_groups


def test_a_scaler_skips_and_the_words_do_not_move() -> None:
    net = model()
    optimizer = LowPrecision(torch.optim.SGD(net.parameters(), lr=0.1), weight="int8", key=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(loss_of(net) * (float("inf") if bad else 1.0)).backward()
        before = [p.detach().clone() for p in net.parameters()]
        scaler.step(optimizer)
        scaler.update()
        for p, was in zip(net.parameters(), before, strict=True):
            assert torch.equal(p, was) == bad
    assert optimizer.steps == 2


def test_hooks_of_either_object_run_once_a_step() -> None:
    net, called = model(), []
    inner = torch.optim.Adam(net.parameters())
    inner.register_step_pre_hook(lambda *_: called.append("inner"))
    optimizer = LowPrecision(inner, momentum="int8", store="packed", key=1)
    optimizer.register_step_post_hook(lambda *_: called.append("outer"))
    optimizer.register_state_dict_pre_hook(lambda *_: called.append("state"))
    handle = register_optimizer_step_post_hook(lambda who, *_: called.append(type(who).__name__))
    try:
        train(net, optimizer, 1)
        optimizer.state_dict()
    finally:
        handle.remove()
    assert called == ["inner", "outer", "LowPrecision", "state"]


@pytest.mark.parametrize("store", ["float", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_closure_is_the_loop_without_one(dtype: torch.dtype, store: str) -> None:
    """For optimizers that call it once: same losses, same weights; gradients are rounded after the call."""

    def make() -> tuple[nn.Module, LowPrecision]:
        net = model(dtype)
        options = {"weight": "bfloat16", "accumulator": "float16", "grad": "fp8_e5m2", "momentum": "int8"}
        return net, LowPrecision(torch.optim.RMSprop(net.parameters(), lr=0.01), key=1, store=store, **options)

    (a, loop), (b, closed) = make(), make()
    for _ in range(5):
        train(a, loop, 1)

        def closure() -> torch.Tensor:
            closed.zero_grad()
            loss = loss_of(b)
            loss.backward()
            return loss

        want = loss_of(b)
        assert_same(closed.step(closure).detach(), want.detach())
    values = torch.tensor(lb.get_format("fp8_e5m2").values)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert_same(q.data, p.data)
        # Gradients of other dtypes are rounded in a copy.
        assert torch.isin(q.grad.float(), values).all() == (dtype is torch.float32)


@pytest.mark.parametrize("options", [{"grad": "fp8_e4m3"}, {"accumulator": "float16"}, {}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_line_search_goes_on(dtype: torch.dtype, options: dict[str, Any]) -> None:
    net = model(dtype)
    inner = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
    optimizer = LowPrecision(inner, weight="bfloat16", key=1, **options)
    held = list(net.parameters())
    seen = set()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        seen.add(next(net.parameters()).dtype)
        assert all(p is q for p, q in zip(held, optimizer.param_groups[0]["params"], strict=True))
        loss = loss_of(net)
        loss.backward()
        return loss

    first = loss_of(net).item()
    for _ in range(6):
        optimizer.step(closure)
    assert seen == {dtype}, "a model never sees weights of another dtype"
    assert loss_of(net).item() < 0.2 * first
    assert all((p == p.bfloat16()).all() for p in net.parameters())


def test_a_closure_that_raises_loses_nothing() -> None:
    net = model(torch.bfloat16)
    optimizer = LowPrecision(torch.optim.RMSprop(net.parameters()), weight="bfloat16", accumulator="float16", key=1)
    train(net, optimizer, 2)
    before = optimizer.state_dict()
    held = [(p, p.detach().clone()) for p in net.parameters()]

    def closure() -> torch.Tensor:
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step(closure)
    _same_states(optimizer.state_dict(), before)
    for (p, was), now in zip(held, optimizer.param_groups[0]["params"], strict=True):
        assert p is now
        assert_same(p.data, was)


def test_parameters_that_are_added_later() -> None:
    a, b = nn.Parameter(torch.ones(8, dtype=torch.bfloat16)), nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = LowPrecision(torch.optim.AdamW([a], lr=0.1), weight="bfloat16", key=1)
    a.grad = torch.ones_like(a)
    optimizer.step()
    optimizer.add_param_group({"params": [b], "lr": 0.2})
    b.grad = torch.ones_like(b)
    optimizer.step()
    assert (b < 0.9).all()
    assert [len(group["params"]) for group in optimizer.optimizer.param_groups] == [1, 1]
    assert optimizer.state[a]["step"] == 2
    assert optimizer.state[b]["step"] == 1


def test_bfloat16_trains_as_float32_where_rounding_to_nearest_stalls() -> None:
    """Updates of a tenth of a step: to nearest they are lost, at random they arrive on average."""
    start, losses = loss_of(model()).item(), {}
    for rounding in (None, "stochastic", "nearest"):
        torch.manual_seed(0)
        net = model(torch.float32 if rounding is None else torch.bfloat16)
        optimizer: Any = torch.optim.AdamW(net.parameters(), lr=2e-4)
        if rounding is not None:
            optimizer = LowPrecision(optimizer, weight="bfloat16", rounding=rounding)
        train(net, optimizer, 800)
        losses[rounding or "float32"] = loss_of(net).item()
    way = start - losses["float32"]
    assert start - losses["stochastic"] > 0.98 * way
    assert start - losses["nearest"] < 0.2 * way


def _ranks(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=wait)
    try:
        torch.manual_seed(rank)
        for ranks, alike in (("alike", True), ("differ", False)):
            for options in ({"key": None}, {"key": 5}):
                net = model(torch.bfloat16)
                parallel = nn.parallel.DistributedDataParallel(net)
                inner = torch.optim.AdamW(net.parameters(), lr=0.01)
                optimizer = LowPrecision(inner, weight="bfloat16", momentum="bfloat16", ranks=ranks, **options)
                for step in range(3):
                    optimizer.zero_grad()
                    parallel(numbers((4, 16), 10 * step + rank).bfloat16()).square().mean().backward()
                    optimizer.step()
                weights = torch.cat([p.detach().float().flatten() for p in net.parameters()])
                gathered = [torch.empty_like(weights) for _ in range(2)]
                torch.distributed.all_gather(gathered, weights)
                assert torch.equal(*gathered) == alike, (ranks, options)
    finally:
        torch.distributed.destroy_process_group()


def test_two_ranks_stay_alike_or_differ() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = torch.get_num_threads()
    other = torch.multiprocessing.get_context("spawn").Process(target=_ranks, args=(1, port))
    other.start()
    try:
        _ranks(0, port)
        other.join(60)
        assert other.exitcode == 0
    finally:
        other.kill()
        torch.set_num_threads(threads)


def test_a_key_that_is_drawn_is_torchs() -> None:
    def key() -> lb.Key:
        torch.manual_seed(4)
        return LowPrecision(torch.optim.SGD([torch.zeros(1)], lr=1.0), weight="int8").key

    assert key() == key()
    torch.manual_seed(4)
    before = torch.get_rng_state()
    LowPrecision(torch.optim.SGD([torch.zeros(1)], lr=1.0), weight="int8", rounding="nearest")
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn where nothing is random"


def test_sparse_gradients_are_named() -> None:
    table = nn.Embedding(10, 4, sparse=True)
    for params, name in (([table.weight], "number 0"), (list(table.named_parameters()), "'weight'")):
        optimizer = LowPrecision(torch.optim.SGD(params, lr=1.0), weight="int8", key=1)
        table.weight.grad = None
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(TypeError, match=f"gradient of parameter {name} is torch.sparse_coo"):
            optimizer.step()


def _sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(2)], lr=1.0)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"optimizer": "sgd"}, TypeError, "optimizer: expected a torch.optim.Optimizer, got str"),
    ({"weight": 4}, TypeError, "weight: expected a format's name, a lowbit.Format or a lowbit.torch.Spec, got int"),
    ({"grad": "fp9"}, lb.Error, "grad: .*fp9"),
    ({"momentum": "sign"}, lb.Error, "momentum: sign has no zero"),
    ({"accumulator": "sign"}, lb.Error, "accumulator: sign has no zero"),
    ({"momentum": {"exp_avg_sq": "sign"}}, lb.Error, r"momentum\['exp_avg_sq'\]: sign has no zero"),
    ({"momentum": "uint8"}, lb.Error, "momentum: uint8 has no negative numbers.*momentum={'exp_avg_sq': ...}"),
    ({"weight": "uint4"}, lb.Error, "weight: uint4 has no negative numbers"),
    ({"momentum": {1: "int8"}}, TypeError, "momentum: names of states are str, got int"),
    ({"weight": Spec("int4", scale="pact")}, lb.Error, "weight: scale='pact' belongs to layers"),
    ({"weight": Spec("int4", per="token")}, lb.Error, "weight: per='token' belongs to layers"),
    ({"grad": Spec("int4", rounding="stochastic", samples=2)}, lb.Error, "grad: samples and gradient belong to layers"),
    ({"rounding": "up"}, lb.Error, "rounding: 'up' is not known"),
    ({"store": "disk"}, lb.Error, "store: 'disk' is not known"),
    ({"ranks": "same"}, lb.Error, "ranks: 'same' is not known"),
    ({"store": "packed", "weight": "int8"}, lb.Error, "store: 'packed' is for states and accumulators"),
    ({"store": "packed", "momentum": lb.fixed_point(20, 8)}, lb.Error, "store: 'packed' needs codes"),
    ({"grad_scale": 2.0}, lb.Error, "grad_scale: it scales what grad= rounds"),
    ({"grad_scale": 0.0, "grad": "int8"}, lb.Error, "grad_scale: 0.0 is not a positive number"),
    ({"grad_scale": "2", "grad": "int8"}, TypeError, "grad_scale"),
    ({"key": "seed", "weight": "int8"}, TypeError, "key: expected"),
    ({"key": np.random.default_rng(), "weight": "int8"}, TypeError, "key: a Generator serves only"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        LowPrecision(**{"optimizer": _sgd(), **options})


def test_bad_optimizers_and_names() -> None:
    with pytest.raises(lb.Error, match="optimizer: it is a LowPrecision already"):
        LowPrecision(LowPrecision(_sgd()))
    with pytest.raises(lb.Error, match="optimizer: differentiable=True has no meaning"):
        LowPrecision(torch.optim.SGD([torch.zeros(2)], lr=1.0, differentiable=True))
    with pytest.raises(TypeError, match=r"optimizer: a parameter of torch.complex64 cannot be rounded"):
        LowPrecision(torch.optim.SGD([torch.zeros(2, dtype=torch.complex64)], lr=1.0))
    with pytest.raises(lb.Error, match="store: LBFGS looks at all parameters at once"):
        LowPrecision(torch.optim.LBFGS([torch.zeros(2)]), momentum="int8", store="packed")
    w = nn.Parameter(torch.zeros(2))
    optimizer = LowPrecision(torch.optim.Adam([w]), momentum={"exp_average": "int8"}, key=1)
    w.grad = torch.ones(2)
    with pytest.raises(lb.Error, match=r"momentum: no state is called 'exp_average'; .*: exp_avg, exp_avg_sq, step"):
        optimizer.step()


def test_a_compiled_step_draws_anew() -> None:
    def trained(compiled: bool) -> torch.Tensor:
        p = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
        optimizer = LowPrecision(torch.optim.AdamW([p], 1e-3), weight="bfloat16", key=1)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        p.grad = torch.ones_like(p)
        for _ in range(3):
            step()
        assert optimizer.steps == 3
        return p.detach()

    assert torch.equal(trained(compiled=False), trained(compiled=True))
