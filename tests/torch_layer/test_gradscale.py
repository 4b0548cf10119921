"""GradScale: the vote, one update for every optimizer step, ranks, non-finite gradients."""

from __future__ import annotations

import datetime
import gc
import socket
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lowbit.torch import Products, Spec, nn, prepare, recipes
from torch_layer import reference as ref
from torch_layer.layer_support import SUN, normal

UP = np.nextafter(np.float32([32, 64]), np.float32(np.inf)).tolist()


def linear(width: int = 4, *, bias: bool = True) -> Any:
    return nn.Linear(width, width, bias=bias, products=SUN)


def backward(layer: Any, peak: float) -> None:
    """Send a gradient of this largest magnitude through a layer."""
    g = torch.zeros(2, layer.out_features)
    g[1, 0] = -peak
    layer(normal(2, layer.in_features)).backward(g)


def optimizer_of(*layers: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.0)


@pytest.mark.parametrize("scale", [0.25, 1.0, 1024.0])
@pytest.mark.parametrize("m", [0.0, 32.0, UP[0], 64.0, UP[1], np.inf, np.nan])
def test_the_vote(m: float, scale: float) -> None:
    layer, want = linear(), ref.GradScale(scale, peak=m / scale)
    layer.site.grad_scale.fill_(scale)
    optimizer = optimizer_of(layer)
    backward(layer, m / scale)
    optimizer.step()
    want.step()
    assert layer.site.grad_scale.item() == want.scale
    assert want.scale == scale * (1 if np.isnan(m) else 2 if m <= 32 else 1 if m <= 64 else 0.5)


def test_the_window_is_the_formats() -> None:
    """(reference / 2, reference]: an int8 gradient's reference is 127."""
    spec = Spec("int8_symmetric", scale="gradscale")
    layer = nn.Linear(4, 4, products=Products(None, None, spec, spec))
    optimizer = optimizer_of(layer)
    for share, scale in ((0.5, 2.0), (np.nextafter(np.float32(0.5), np.float32(1)), 1.0), (1.0, 1.0), (1.01, 0.5)):
        layer.site.grad_scale.fill_(1.0)
        backward(layer, float(np.float32(127) * np.float32(share)))
        optimizer.step()
        assert layer.site.grad_scale.item() == scale


def test_it_finds_its_window_from_anywhere() -> None:
    for start in (2.0**-12, 2.0**12):
        layer = linear()
        layer.site.grad_scale.fill_(start)
        optimizer = optimizer_of(layer)
        for _ in range(20):
            backward(layer, 0.75)
            optimizer.step()
        assert layer.site.grad_scale.item() == 64


def test_it_starts_where_the_recipe_says() -> None:
    assert prepare(torch.nn.Linear(4, 4), recipes.sun2020()).site.grad_scale.item() == 1
    assert prepare(torch.nn.Linear(4, 4), recipes.sun2020(grad_scale=1024.0)).site.grad_scale.item() == 1024


def test_accumulation_makes_one_update_from_the_largest() -> None:
    layer = linear()
    optimizer = optimizer_of(layer)
    for peak in (1.0, 48.0, 2.0):
        backward(layer, peak)
    assert layer.site.grad_scale.item() == 1
    optimizer.step()
    assert layer.site.grad_scale.item() == 1  # 48 lies in the window
    for peak in (1.0, 2.0):
        backward(layer, peak)
    optimizer.step()
    assert layer.site.grad_scale.item() == 2


def test_a_layer_called_twice_votes_once_with_its_largest() -> None:
    layer = linear()
    optimizer = optimizer_of(layer)
    x = normal(2, 4)
    (layer(x) * 0.5 + layer(x) * 100).sum().backward()
    optimizer.step()
    assert layer.site.grad_scale.item() == 0.5


def test_two_optimizers_make_one_update() -> None:
    layer = linear()
    one, two = torch.optim.SGD([layer.weight], lr=0.0), torch.optim.SGD([layer.bias], lr=0.0)
    backward(layer, 1.0)
    one.step()
    two.step()
    assert layer.site.grad_scale.item() == 2


def test_a_layer_that_was_not_used_does_not_vote() -> None:
    used, idle = linear(), linear()
    optimizer = optimizer_of(used, idle)
    for _ in range(3):
        backward(used, 1.0)
        with torch.no_grad():
            idle(normal(2, 4))
        optimizer.step()
    assert (used.site.grad_scale.item(), idle.site.grad_scale.item()) == (8, 1)


def test_only_the_optimizer_of_a_layer_is_its_step() -> None:
    one, two = linear(), linear()
    first, second = optimizer_of(one), optimizer_of(two)
    first.step()
    second.step()
    backward(one, 1.0)
    backward(two, 1.0)
    second.step()
    assert (one.site.grad_scale.item(), two.site.grad_scale.item()) == (1, 2)
    backward(one, 48.0)
    first.step()
    assert (one.site.grad_scale.item(), two.site.grad_scale.item()) == (1, 2)


def test_a_model_that_was_trained_can_be_forgotten() -> None:
    """What hears of every optimizer's steps must not keep models alive."""
    model = prepare(torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3))), recipes.sun2020())
    optimizer = optimizer_of(model)
    model(normal(2, 4)).sum().backward()
    optimizer.step()
    known = weakref.ref(model[1]), weakref.ref(model[1].site), weakref.ref(model[1].weight)
    del model, optimizer
    gc.collect()
    assert [ref() for ref in known] == [None] * 3


def test_a_frozen_weight_still_has_a_scale() -> None:
    """Its dL/dx is quantized."""
    frozen, last = linear(), linear()
    frozen.requires_grad_(False)
    optimizer = optimizer_of(last)
    last.weight.requires_grad_()
    x = normal(2, 4).requires_grad_()
    for _ in range(9):
        (frozen(x) * 1e-3).sum().backward()
        optimizer.step()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    assert frozen.weight.grad is None
    assert frozen.site.grad_scale.item() == 2**9


@pytest.mark.parametrize("norm", ["spectral_norm", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_weight_that_is_computed_has_a_scale_too(norm: str) -> None:
    """It is no Parameter: no optimizer holds it."""
    layer = prepare(getattr(torch.nn.utils, norm)(torch.nn.Linear(4, 4)), recipes.sun2020())
    optimizer = optimizer_of(layer)
    for _ in range(12):
        backward(layer, 1.0)
        optimizer.step()
    assert layer.site.grad_scale.item() == 64  # where 1 lies in the window


def test_master_copies_step_for_the_layer() -> None:
    """The optimizer has float32 copies of a bfloat16 model's weights, and never heard of those."""
    layer = linear().bfloat16()
    masters = [p.detach().float() for p in layer.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.0)
    for _ in range(12):
        layer(normal(2, 4).bfloat16()).sum().backward()
        optimizer.step()
    assert layer.site.grad_scale.item() == 64  # where 1 lies in the window


def test_a_step_without_closure_and_with_one_are_alike() -> None:
    layer = linear()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)

    def closure() -> float:
        optimizer.zero_grad()
        backward(layer, 1.0)
        return 0.0

    optimizer.step(closure)
    assert layer.site.grad_scale.item() == 2


@pytest.mark.parametrize("peak", [0.0, 3e38])
def test_scales_end_where_float32_does(peak: float) -> None:
    """A dead layer votes for ever."""
    layer = linear()
    optimizer = optimizer_of(layer)
    layer.site.grad_scale.fill_(2.0**120 if peak == 0 else 2.0**-120)
    for _ in range(12):
        backward(layer, peak)
        optimizer.step()
    optimizer.zero_grad()
    backward(layer, 1.0)
    assert torch.isfinite(layer.weight.grad).all()
    assert np.log2(layer.site.grad_scale.item()) % 1 == 0


def test_underflow_is_cured() -> None:
    """Gradients of 1e-6 vanish at first, and are seen once the scale has grown."""
    layer = nn.Linear(8, 8, bias=False, products=SUN)
    optimizer = optimizer_of(layer)
    x, g = normal(4, 8), normal(4, 8, seed=1, scale=1e-6)
    layer(x).backward(g)
    assert not layer.weight.grad.any()
    for _ in range(30):
        optimizer.step()
        optimizer.zero_grad()
        layer(x).backward(g)
    true = g.T @ x
    assert torch.cosine_similarity(layer.weight.grad.flatten(), true.flatten(), 0) > 0.8
    peak = layer.site.grad_scale * g.abs().max()
    assert 32 < peak <= 64


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("scaling", ["gradscale", "amax", 8.0])
def test_a_loss_scaler_sees_gradients_that_are_not_finite(bad: float, scaling: Any) -> None:
    """Without biases, whose gradients are plain sums: only what the products give."""
    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(4)))
    prepare(model, recipes.sun2020(scaling=scaling))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    g = torch.ones(3, 8)
    g[1, 2] = bad
    scaler.scale(torch.ones(()))  # what makes its state
    model[2].register_full_backward_pre_hook(lambda module, grads: (g,))
    model(normal(3, 8)).sum().backward()
    before = [p.detach().clone() for p in model[1].parameters()]
    for k in (1, 2):
        assert not torch.isfinite(model[k].weight.grad).all()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0  # backed off
    for p, was in zip(model[1].parameters(), before, strict=True):
        assert torch.equal(p, was)


def test_a_skipped_step_is_no_step() -> None:
    """``GradScaler`` does not call the optimizer: nobody votes until the next real step."""
    layer = linear()
    optimizer = optimizer_of(layer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    backward(layer, np.inf)
    scaler.step(optimizer)
    scaler.update()
    assert layer.site.grad_scale.item() == 1
    optimizer.step()
    assert layer.site.grad_scale.item() == 0.5


# --- Ranks ------------------------------------------------------------------------------------------------------------

PEAKS = [  # of two ranks, and what the sum of their votes makes of the scale
    (1.0, 1.0, 2.0),
    (1.0, 48.0, 2.0),
    (48.0, 100.0, 0.5),
    (1.0, 100.0, 1.0),
    (48.0, 48.0, 1.0),
    (np.nan, 100.0, 0.5),
]


def _same_everywhere(x: Tensor) -> bool:
    every = [torch.zeros_like(x) for _ in range(2)]
    torch.distributed.all_gather(every, x.detach().clone())
    return torch.equal(*every)


def _votes(rank: int) -> None:
    layer, unused = linear(), linear()
    optimizer = optimizer_of(layer, unused)
    for *peaks, factor in PEAKS:
        layer.site.grad_scale.fill_(1.0)
        backward(layer, peaks[rank])
        optimizer.step()
        assert layer.site.grad_scale.item() == factor, (peaks, layer.site.grad_scale)
    if rank == 0:  # a layer that only one rank has used: all ranks follow its vote, none waits
        backward(unused, 1.0)
    backward(layer, 48.0)
    optimizer.step()
    assert unused.site.grad_scale.item() == 2
    assert _same_everywhere(unused.site.grad_scale)


def _data_parallel(rank: int) -> None:
    """Ranks see different batches, and train one model: PACT's clips too, which start from the first batch."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    model = prepare(torch.nn.Sequential(*layers), recipes.sun2020())
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for k in range(3):
        optimizer.zero_grad()
        x = (normal(4, 8, seed=10 * k + rank) * (1 + rank)).relu()
        parallel(x).square().mean().backward()
        optimizer.step()
    for name, x in model.state_dict().items():
        assert _same_everywhere(x), name


def _rank(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=20)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=wait)
    try:
        _votes(rank)
        _data_parallel(rank)
    finally:
        torch.distributed.destroy_process_group()


def test_two_ranks() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = torch.get_num_threads()
    other = torch.multiprocessing.get_context("spawn").Process(target=_rank, args=(1, port))
    other.start()
    try:
        _rank(0, port)  # this process is the first rank: starting torch is what takes long
        other.join(30)
        assert other.exitcode == 0
    finally:
        other.kill()
        torch.set_num_threads(threads)


def test_nothing_is_seen_in_evaluation() -> None:
    """dL/dx of a model in eval mode (an attack, an attribution) is none of training's business."""
    layer = linear().eval()
    optimizer = optimizer_of(layer)
    x: Tensor = normal(2, 4).requires_grad_()
    layer(x).backward(torch.full((2, 4), 100.0))
    optimizer.step()
    assert layer.site.grad_scale.item() == 1
