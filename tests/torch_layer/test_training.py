"""The rest of a training script: seeds, threads, autocast, checkpointing, compilation, layouts."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.utils.checkpoint import checkpoint

import lowbit as lb
import lowbit.torch
from lowbit.torch import _keys, nn, ops, prepare, recipes
from lowbit.torch._site import Site
from torch_layer.layer_support import LUQ, RECIPES, SUN, equal_models, n, near, normal, step

T = torch.nn


def mlp(recipe: str = "luq") -> T.Sequential:
    torch.manual_seed(0)
    layers = T.Linear(16, 24), T.ReLU(), T.Linear(24, 24), T.ReLU(), T.Linear(24, 24), T.ReLU(), T.Linear(24, 3)
    return prepare(T.Sequential(*layers), RECIPES[recipe]())


def gradients(model: T.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_seed_decides_everything(recipe: str) -> None:
    model, x = mlp(recipe), normal(9, 16)
    model(x)
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        found.append(gradients(model, x))
    assert all(map(torch.equal, found[0], found[1]))
    p = RECIPES[recipe]().inner
    specs = (p.weight, p.input, p.grad_input, p.grad_weight, p.weight_again, p.input_again)
    drawn = any(spec is not None and spec.rounding == "stochastic" for spec in specs)
    assert all(map(torch.equal, found[0], found[2])) != drawn


def test_two_backward_passes_of_one_forward_are_alike() -> None:
    """The key is the forward call's."""
    model, x = mlp(), normal(9, 16)
    loss = model(x).square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss.backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(once, model.parameters(), strict=True))


def test_nothing_is_drawn_when_nothing_is_stochastic() -> None:
    torch.manual_seed(1)
    model = mlp("sun2020")
    state = torch.get_rng_state()
    gradients(model, normal(9, 16))
    assert torch.equal(torch.get_rng_state(), state)


THREADED: dict[str, tuple[Any, Tensor, float]] = {
    "linear": (lambda: nn.Linear(700, 96, products=SUN), normal(130, 700), 1.0),
    "conv": (lambda: nn.Conv2d(16, 32, 3, padding=1, products=LUQ), normal(20, 16, 20, 20), 1.0),
    "sums beyond float32's integers": (lambda: nn.Linear(64, 48, products=SUN), normal(5000, 64).abs() + 3, 1e6),
}


@pytest.mark.parametrize("kind", THREADED)
def test_threads_change_no_bit_of_integer_products(kind: str) -> None:
    make, x, size = THREADED[kind]
    layer, found = make(), []
    before = torch.get_num_threads(), lb.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            lb.set_num_threads(count)
            torch.manual_seed(0)
            inner = x.clone().requires_grad_()
            layer.zero_grad()
            y = layer(inner)
            y.backward(normal(*y.shape, seed=1, scale=size))
            found.append((y, inner.grad, layer.weight.grad))
    finally:
        torch.set_num_threads(before[0])
        lb.set_num_threads(before[1])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("k", [512, 4096])
def test_the_largest_codes_do_not_overflow_exactness(k: int) -> None:
    """Long sums of the largest products: 7 x 64, all of one sign but one in 3."""
    layer = nn.Linear(8, 4, bias=False, products=SUN)
    x, g = torch.ones(k, 8), torch.full((k, 4), 64.0)
    x[::3] = -1
    x[1] = 3 / 7
    g[::5] = 1 / 64
    layer.site.grad_scale.fill_(1.0)
    layer(x).backward(g)
    odd = torch.where(g == 64, 32.0, 1 / 128)
    near(layer.weight.grad, n(odd).astype("f8").T @ n(x).astype("f8"), 2e-7)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("recipe", ["luq", "sun2020", "nvfp4"])
def test_activation_checkpointing_gives_the_same_gradients(recipe: str, use_reentrant: bool) -> None:
    x, found, scales = normal(9, 16), [], []
    for again in (False, True):
        model = mlp(recipe)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        model(x)
        torch.manual_seed(3)
        given = x.clone().requires_grad_()
        y = checkpoint(model, given, use_reentrant=use_reentrant) if again else model(given)
        y.square().sum().backward()
        found.append([given.grad, *(p.grad for p in model.parameters())])
        optimizer.step()
        scales.append([b for name, b in model.named_buffers() if name.endswith("grad_scale")])
    assert all(map(torch.equal, *found))
    assert all(map(torch.equal, *scales))


@pytest.mark.parametrize("recipe", ["sun2020", "luq", "int4_forward", "nvfp4"])
def test_a_compiled_model_trains_like_the_eager_one(recipe: str) -> None:
    torch._dynamo.reset()
    models = [mlp(recipe), mlp(recipe)]
    for model in models:
        model(normal(8, 16))  # PACT starts
    runs = [models[0], torch.compile(models[1], fullgraph=True, backend="aot_eager")]
    losses = []
    for model, run in zip(models, runs, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        torch.manual_seed(4)
        losses.append([step(run, optimizer, normal(8, 16, seed=k), normal(8, 3, seed=9)) for k in range(6)])
    assert losses[0] == losses[1]
    equal_models(*models)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's own
def test_pact_does_not_start_in_a_compilers_hands() -> None:
    """All in one graph it cannot: an error. In graphs that may break it does, as in eager mode."""
    torch._dynamo.reset()
    with pytest.raises((RuntimeError, torch._dynamo.exc.Unsupported), match="first batch"):
        torch.compile(mlp("sun2020"), fullgraph=True, backend="aot_eager")(normal(8, 16))
    torch._dynamo.reset()
    model, eager, x = mlp("sun2020"), mlp("sun2020"), normal(8, 16)
    assert torch.equal(torch.compile(model, backend="aot_eager")(x), eager(x))
    equal_models(model, eager)


@pytest.mark.parametrize("kind", ["conv", "encoder"])
def test_other_models_compile(kind: str) -> None:
    torch._dynamo.reset()
    layers = {
        "conv": lambda: (T.Conv1d(5, 4, 1), T.BatchNorm1d(4), T.Conv1d(4, 4, 3), T.Conv1d(4, 2, 1)),
        "encoder": lambda: (T.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0),),
    }[kind]
    torch.manual_seed(0)
    model = prepare(T.Sequential(*layers()), recipes.luq())
    run = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 6):
        x, found = normal(batch, 5, 8), []
        for call in (model, run):
            torch.manual_seed(1)
            found.append(gradients(call, x))
        assert all(map(torch.equal, *found))


def test_autocast_decides_the_output() -> None:
    layer = nn.Linear(16, 8, products=SUN)
    x = normal(5, 16)
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert (plain.dtype, y.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(y, plain.to(torch.bfloat16))  # products accumulate in float32, whatever comes out
    g = normal(5, 8, seed=1).to(torch.bfloat16)
    y.backward(g)
    narrow = layer.weight.grad.clone()
    assert narrow.dtype == torch.float32
    layer.zero_grad()
    plain.backward(g.float())
    assert torch.equal(layer.weight.grad, narrow)  # a bfloat16 gradient is widened, not rounded again


def test_autocast_of_a_whole_model() -> None:
    model = mlp("sun2020")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(normal(8, 16)) - normal(8, 3, seed=9)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", ["lstm", "attention", "conv"])
def test_autocast_of_other_layers(kind: str) -> None:
    x = normal(4, 3, 8)
    layer: Any = {
        "lstm": lambda: nn.LSTM(8, 8, products=SUN),
        "attention": lambda: nn.MultiheadAttention(8, 2, products=SUN),
        "conv": lambda: nn.Conv1d(3, 3, 3, products=SUN),
    }[kind]()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, x, x) if kind == "attention" else layer(x)
    y = y if isinstance(y, Tensor) else y[0]
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_the_width(dtype: torch.dtype) -> None:
    wide = nn.Linear(16, 8, products=SUN)
    narrow = nn.Linear(16, 8, products=SUN).to(dtype)
    narrow.load_state_dict(wide.state_dict())
    wide.load_state_dict(narrow.state_dict())  # the same, rounded numbers
    x = normal(5, 16).to(dtype)
    y = narrow(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, wide(x.float()).to(dtype))
    y.sum().backward()
    assert narrow.weight.grad.dtype == dtype


def test_layouts_change_no_number() -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1, products=LUQ)
    x, g = normal(4, 6, 7, 7), normal(4, 8, 7, 7, seed=1)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        conv.zero_grad()
        given = x.clone(memory_format=layout).requires_grad_()
        conv(given).backward(g.clone(memory_format=layout))
        found.append((conv.weight.grad, given.grad))
    assert all(map(torch.equal, *found))
    linear = nn.Linear(6, 8, products=LUQ)
    found = []
    for given in (x[:, :, 0].transpose(1, 2), x[:, :, 0].transpose(1, 2).contiguous()):
        torch.manual_seed(0)
        linear.zero_grad()
        y = linear(given)
        y.backward(normal(*y.shape))
        found.append((y, linear.weight.grad))
    assert all(map(torch.equal, *found))


def test_channels_last_comes_out_as_it_went_in() -> None:
    conv = nn.Conv2d(6, 8, 3, products=SUN)
    y = conv(normal(4, 6, 7, 7).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("flush", [False, True])
def test_flushed_subnormals_change_no_bit(flush: bool) -> None:
    layer = nn.Linear(8, 8, bias=False, products=SUN)
    x, g = normal(4, 8, scale=2.0**-130), normal(4, 8, seed=1)
    layer.site.grad_scale.fill_(16.0)
    want = layer(x)
    assert torch.set_flush_denormal(flush) or not flush
    try:
        y = layer(x)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(y, want)
    y.backward(g)


@pytest.mark.parametrize("recipe", RECIPES)
def test_in_torchs_operations_every_bit_is_the_same(recipe: str) -> None:
    """What other devices compute, on this one."""
    p = RECIPES[recipe]().inner
    layers: list[Any] = [nn.Linear(24, 12, products=p), nn.Conv2d(6, 12, 3, products=p)]
    for layer, x in zip(layers, (normal(37, 24), normal(5, 6, 6, 5).relu()), strict=True):
        layer(x)
        found = []
        for plain in (False, True):
            ops.use_plain(plain)
            try:
                torch.manual_seed(0)
                given = x.clone().requires_grad_()
                layer.zero_grad()
                y = layer(given)
                y.backward(normal(*y.shape, seed=1))
            finally:
                ops.use_plain(False)
            found.append((y, given.grad, layer.weight.grad))
        assert all(map(torch.equal, *found))


def test_what_follows_may_work_in_place() -> None:
    """``ReLU(inplace=True)``, a residual's ``+=``."""
    x, p = normal(3, 4, 6), RECIPES["luq"]().inner
    layers: list[Any] = [
        nn.Linear(6, 6, products=p),
        nn.Linear(6, 6, bias=False, products=p),
        nn.Conv1d(4, 4, 3, padding=1, products=p),
        nn.LSTM(6, 6, products=p),
        nn.MultiheadAttention(6, 2, products=p),
        nn.Embedding(6, 6, weight_spec=p.weight),
    ]
    for layer in layers:
        found = []
        for in_place in (False, True):
            torch.manual_seed(0)
            layer.zero_grad()
            given = (x > 0).long() if isinstance(layer, nn.Embedding) else x
            y = layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else layer(given)
            y = y if isinstance(y, Tensor) else y[0]
            y = y.relu_() if in_place else y.relu()
            y.sum().backward()
            found.append([q.grad.clone() for q in layer.parameters()])
        assert all(map(torch.equal, *found)), layer


def test_no_grad_saves_nothing_and_evaluation_draws_nothing() -> None:
    model = mlp("luq").eval()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert model(normal(4, 16)).grad_fn is None
    with torch.inference_mode():
        model(normal(4, 16))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", ["linear", "norm"])
def test_every_checkpointed_layer_draws_anew(kind: str, use_reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, draw = [], _keys.draw

    def spy() -> Tensor:
        drawn.append(draw())
        return drawn[-1]

    if kind == "linear":
        model = prepare(T.Sequential(*(T.Linear(8, 8) for _ in range(4))), RECIPES["luq"]())
        layers = model[1:3]  # the first and the last draw nothing
    else:
        layers = prepare(T.Sequential(T.LayerNorm(8), T.LayerNorm(8)), recipes.float32(), compress_activations=True)
    monkeypatch.setattr(_keys, "draw", spy)
    for _ in range(3):
        h = normal(4, 8).requires_grad_()
        for layer in layers:
            h = checkpoint(layer, h, use_reentrant=use_reentrant)
        h.square().sum().backward()
    # Once as the layer runs, and once more as it runs again.
    assert len(drawn) == 12
    assert len({tuple(key.tolist()) for key in drawn}) == 6


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_gradients_in_evaluation(recipe: str) -> None:
    model = mlp(recipe)
    model(normal(5, 16))
    model.eval()
    x = normal(5, 16).requires_grad_()
    model(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_rotation_in_evaluation_is_undone() -> None:
    # The input is turned in the forward pass, dL/dy in the backward one: by the same signs, or the product is noise.
    products = recipes.mxfp4().inner
    assert products.input_again is not None
    products = replace(products, input_again=replace(products.input_again, rounding="nearest"))
    layer = nn.Linear(64, 64, bias=False, products=products).eval()
    x, g = normal(64, 64), normal(64, 64, seed=1)
    layer(x).backward(g)
    want = g.T @ x
    assert torch.cosine_similarity(layer.weight.grad.flatten(), want.flatten(), 0) > 0.9


def test_an_average_of_weights_starts_where_its_model_did() -> None:
    model = mlp("sun2020")
    average = torch.optim.swa_utils.AveragedModel(model)
    model(normal(9, 16))
    for a, p in zip(average.module.parameters(), model.parameters(), strict=True):
        a.data.copy_(p.data)
    for a, p in zip(average.module.buffers(), model.buffers(), strict=True):
        a.copy_(p)
    x = 3 * normal(9, 16)
    assert torch.equal(average.eval()(x), model.eval()(x))


@pytest.mark.parametrize("how", ["parametrized", "called with other weights"])
def test_a_computed_weight_holds_on_to_nothing(how: str) -> None:
    model = mlp("sun2020")
    if how == "parametrized":
        torch.nn.utils.parametrizations.weight_norm(model[2])
        model(normal(9, 16)).sum().backward()
    else:
        weights = {name: 2 * p for name, p in model.named_parameters()}
        torch.func.functional_call(model, weights, (normal(9, 16),)).sum().backward()
    assert all(site._weight[0].grad_fn is None for site in model.modules() if isinstance(site, Site))
    again = copy.deepcopy(model)
    x = normal(9, 16)
    assert torch.equal(again(x), model(x))
    lowbit.torch.summary(model)


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("recipe", ["sun2020", "int4_forward", "luq", "nvfp4", "int4_rescaled"])
def test_saved_activations_are_packed(recipe: str, kind: str) -> None:
    """At most 0.16 of float32's bytes, the bit of a clip included."""
    p = RECIPES[recipe]().inner
    layer: Any = nn.Linear(512, 8, products=p) if kind == "linear" else nn.Conv2d(64, 8, 3, products=p)
    x = normal(512, 512) if kind == "linear" else normal(32, 64, 12, 12)
    layer(x)
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    del y
    sizes.pop(layer.weight.untyped_storage().data_ptr(), None)
    assert 0.06 * x.nbytes < sum(sizes.values()) <= 0.16 * x.nbytes + layer.weight.nbytes / 4


def test_a_model_cast_to_float16_keeps_its_scale() -> None:
    """The paper's scales reach 2^24, which float16 does not."""
    layer = nn.Linear(8, 4, products=SUN)
    layer.site.grad_scale.fill_(2.0**24)
    layer.half().float()
    assert layer.site.grad_scale.item() == 2.0**24


def test_a_weight_changed_before_the_backward_pass_is_torchs_error() -> None:
    layer = nn.Linear(8, 4, products=SUN)
    y = layer(normal(3, 8).requires_grad_())
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("how", ["data", "assigned", "numpy", "no_grad"])
def test_every_way_to_change_a_weight_is_seen(how: str) -> None:
    """Whatever is kept of the last call's codes."""
    layer = nn.Linear(8, 4, bias=False, products=SUN)
    x = normal(3, 8)
    before = layer(x)
    if how == "data":
        layer.weight.data.mul_(2)
    elif how == "assigned":
        layer.weight.data = 2 * layer.weight.data
    elif how == "numpy":
        n(layer.weight)[:] *= 2
    else:
        with torch.no_grad():
            layer.weight.mul_(2)
    assert torch.equal(layer(x), 2 * before)


def test_twice_differentiated_is_refused_or_right() -> None:
    """Straight-through gradients have no second derivative: torch must say so, not give a wrong one."""
    layer = nn.Linear(8, 4, products=SUN)
    x = normal(3, 8).requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentia|grad"):
        dx.square().sum().backward()


def test_the_recipes_fixed_power_is_a_gradscale_that_stands() -> None:
    fixed, moving = (prepare(T.Linear(8, 8), recipes.sun2020(scaling=s)) for s in (2.0**5, "gradscale"))
    moving.load_state_dict(fixed.state_dict(), strict=False)
    moving.site.grad_scale.fill_(2.0**5)
    for layer in (fixed, moving):
        layer(normal(4, 8)).backward(normal(4, 8, seed=1))
    assert torch.equal(fixed.weight.grad, moving.weight.grad)
    assert fixed.weight.grad.any()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("recipe", ["sun2020", "luq"])
def test_two_compiled_calls_before_one_backward(recipe: str) -> None:
    model, x = mlp(recipe), normal(5, 16)
    model(x)
    again = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    grads = []
    for module in (model, compiled):
        torch.manual_seed(1)
        module.zero_grad()
        (module(x).square().sum() + module(2 * x).square().sum()).backward()
        grads.append([p.grad for p in module.parameters()])
    assert all(map(torch.equal, *grads))
    # The graph wrote to the copy's records, by their numbers.
    sites = [[m for m in module.modules() if isinstance(m, Site)] for module in (model, again)]
    for ours, theirs in zip(*sites, strict=True):
        assert ours._order != theirs._order
        assert torch.equal(ours.record, theirs.record)


def _shards(rank: int, folder: str, results: Any) -> None:
    torch.distributed.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    recipe, scales = recipes.sun2020(), []
    for sharded in (False, True):
        model = T.Sequential(*(T.Linear(8, 8) for _ in range(4)))
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.copy_(normal(*p.shape, seed=i))
        model = prepare(model, replace(recipe, first=recipe.inner, last=recipe.inner))
        if rank == 0:
            lowbit.torch.summary(model, normal(4, 8))  # a trial of one rank waits for nobody
        data = T.parallel.DistributedDataParallel(model)
        if rank == 0:
            copies = copy.deepcopy(model)  # one rank's averages of weights
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-5)
        if sharded:
            optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=1e-5)
        for step_ in range(4):
            optimizer.zero_grad()
            (1e-4 * data(normal(6, 8, seed=10 * rank + step_)).square().sum()).backward()
            optimizer.step()
        scales.append([float(site.grad_scale) for site in model.modules() if isinstance(site, Site)])
        if rank == 0:
            assert all(site.grad_scale == 1 for site in copies.modules() if isinstance(site, Site))
    results[rank] = scales
    torch.distributed.destroy_process_group()


def test_optimizers_of_shards_move_the_scales_of_all_ranks_alike(tmp_path: Path) -> None:
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_shards, (str(tmp_path), results), nprocs=2)
        assert results[0] == results[1]
        one, sharded = results[0]
        assert sharded == one
        assert len(one) == 4
        assert any(scale != 1 for scale in one)
