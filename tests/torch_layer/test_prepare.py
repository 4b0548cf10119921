"""``prepare``: what it converts, what it keeps, what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch

import lowbit as lb
from lowbit.torch import Spec, nn, param_groups, prepare, recipes
from torch_layer.layer_support import RECIPES, normal, step

T = torch.nn


def mlp(*sizes: int) -> T.Sequential:
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (T.Linear(a, b), T.ReLU())]
    return T.Sequential(*layers[:-1])


def converted(model: T.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]


def test_it_works_in_place_and_keeps_first_and_last() -> None:
    model = mlp(4, 5, 6, 7, 8)
    assert prepare(model, recipes.sun2020()) is model
    assert converted(model) == ["2", "4"]
    for k in (0, 6):
        assert type(model[k]) is T.Linear


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_a_network(recipe: str) -> None:
    model = prepare(
        T.Sequential(
            T.Conv2d(1, 8, 3), T.BatchNorm2d(8), T.ReLU(), T.Conv2d(8, 16, 3, bias=False), T.ReLU(),
            T.Conv2d(16, 16, 1), T.Flatten(), T.Linear(16 * 9, 32), T.ReLU(), T.Linear(32, 3),
        ),
        RECIPES[recipe](),
    )  # fmt: skip
    for name, buffer in model.named_buffers():
        if name.endswith("grad_scale"):
            buffer.fill_(2.0**12)  # where it would be after as many steps
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    x = normal(24, 1, 7, 7)
    target = T.functional.one_hot(torch.arange(24) % 3, 3).float()
    losses = [step(model, optimizer, x, target) for _ in range(40)]
    assert losses[-1] < (0.9 if recipe == "binary" else 0.75) * losses[0]


def test_first_and_last_are_in_the_order_of_the_model_not_of_names() -> None:
    model = T.Sequential(OrderedDict(z=T.Linear(4, 4), m=T.Linear(4, 4), a=T.Linear(4, 4)))
    prepare(model, recipes.sun2020())
    assert converted(model) == ["m"]


def test_parameters_are_the_same_objects() -> None:
    model = mlp(4, 5, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = [id(p) for p in model.parameters()]
    prepare(model, recipes.int4_forward())
    assert ids == [id(p) for name, p in model.named_parameters() if not name.endswith("clip")]
    before = model[2].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the clips are in no optimizer
        step(model, optimizer, normal(8, 4), normal(8, 3))
    assert not torch.equal(model[2].weight, before)


def test_hooks_flags_and_buffers_are_kept() -> None:
    model = mlp(4, 5, 6, 3)
    calls: list[str] = []
    model[2].register_forward_hook(lambda *_: calls.append("forward"))
    model[2].register_forward_pre_hook(lambda *_: calls.append("before"))
    model[2].register_full_backward_hook(lambda *_: calls.append("backward"))
    model[2].register_buffer("mine", torch.ones(2))
    model[2].note = "kept"
    model[2].weight.requires_grad_(False)
    model.eval()
    prepare(model, recipes.sun2020())
    assert isinstance(model[2], nn.Linear)
    assert not model[2].training
    assert not model[2].weight.requires_grad
    assert model[2].bias.requires_grad
    assert model[2].note == "kept"
    assert torch.equal(model[2].mine, torch.ones(2))
    model.train()
    model(normal(2, 4).requires_grad_()).sum().backward()
    assert calls == ["before", "forward", "backward"]


def test_the_last_layers_stay_float_where_the_source_keeps_some() -> None:
    """NVFP4's pretraining: about 15 % of the linear layers, the last ones."""
    model = prepare(mlp(*[4] * 21), recipes.nvfp4())
    assert converted(model) == [str(2 * k) for k in range(17)]


def test_shared_modules_stay_shared() -> None:
    shared = T.Linear(6, 6)
    model = T.Sequential(T.Linear(6, 6), shared, T.ReLU(), shared, T.Linear(6, 6))
    prepare(model, recipes.sun2020())
    assert model[1] is model[3]
    assert isinstance(model[1], nn.Linear)
    model(normal(3, 6)).sum().backward()


def test_shared_parameters_stay_shared() -> None:
    model = T.Sequential(T.Linear(6, 6), T.Linear(6, 6), T.Linear(6, 6), T.Linear(6, 6))
    model[2].weight = model[1].weight
    prepare(model, recipes.sun2020())
    assert model[2].weight is model[1].weight


@pytest.mark.parametrize("skip", ["2", ["2"], ["[2]"], [lambda: None], ("2", T.Conv2d)])
def test_skip_by_name_and_pattern(skip: Any) -> None:
    model = mlp(4, 5, 6, 7, 8)
    if skip and callable(skip[0]):
        with pytest.raises(TypeError, match="skip"):
            prepare(model, recipes.sun2020(), skip=skip)
        return
    prepare(model, recipes.sun2020(), skip=skip)
    assert type(model[2]) is T.Linear
    assert isinstance(model[4], nn.Linear)


def test_skip_by_type_and_by_branch() -> None:
    def make() -> T.Sequential:
        return T.Sequential(
            T.Linear(4, 4), mlp(4, 5, 4), T.Unflatten(1, (4, 1)), T.Conv1d(4, 4, 1), T.Flatten(), mlp(4, 3)
        )

    assert converted(prepare(make(), recipes.luq())) == ["1.0", "1.2", "3"]
    assert converted(prepare(make(), recipes.luq(), skip=[T.Conv1d])) == ["1.0", "1.2"]
    assert converted(prepare(make(), recipes.luq(), skip=["1.*"])) == ["3"]


def test_skip_inside_an_attention() -> None:
    """Honoured, or refused: not passed over."""
    model = T.Sequential(T.Linear(4, 4), T.MultiheadAttention(4, 2), T.Linear(4, 4))
    try:
        prepare(model, recipes.luq(), skip=["1.out_proj"])
    except lb.Error as error:
        refused = str(error)
    else:
        refused = ""
        assert not isinstance(model[1].out_proj, nn.Linear)
    assert not refused or "1.out_proj" in refused


def test_a_recipe_that_quantizes_nothing_is_told() -> None:
    with pytest.warns(UserWarning, match="no layer"):
        prepare(mlp(4, 5, 6), recipes.sun2020())
    prepare(mlp(4, 5, 6), recipes.float32())


def test_a_bare_layer_is_converted() -> None:
    for plain, ours in (
        (T.Linear(4, 3), nn.Linear),
        (T.Conv2d(4, 3, 3), nn.Conv2d),
        (T.LSTM(4, 3), nn.LSTM),
        (T.MultiheadAttention(4, 2), nn.MultiheadAttention),
    ):
        layer = prepare(plain, recipes.sun2020())
        assert isinstance(layer, ours)
        assert next(layer.parameters()) is next(plain.parameters())


def test_a_recipe_of_floats_changes_nothing() -> None:
    model, x = mlp(4, 5, 6, 3), normal(7, 4)
    want = model(x)
    torch.testing.assert_close(prepare(model, recipes.float32())(x), want, rtol=0, atol=0)


def test_a_prepared_model_is_refused() -> None:
    model = prepare(mlp(4, 5, 6, 3), recipes.sun2020())
    for again in (model, T.Sequential(model, T.Linear(3, 3))):
        with pytest.raises(lb.Error, match="float"):
            prepare(again, recipes.luq())
    assert converted(model) == ["2"]


def test_what_is_not_converted_is_listed_once() -> None:
    def make() -> T.Module:
        return T.ModuleDict(
            {"gru": T.GRU(4, 4), "up": T.ConvTranspose2d(4, 4, 3), "both": T.Bilinear(4, 4, 4), "norm": T.LayerNorm(4),
             "bn": T.BatchNorm1d(4), "prelu": T.PReLU(), "emb": T.Embedding(4, 4), "mlp": mlp(4, 5, 6, 3)}
        )  # fmt: skip

    with pytest.warns(UserWarning, match="gru") as record:
        prepare(make(), recipes.sun2020())
    assert len(record) == 1
    message = str(record[0].message)
    for name, listed in {"up": True, "both": True, "norm": False, "bn": False, "prelu": False, "emb": False}.items():
        assert (f"{name} " in message or f"{name}," in message or f"{name} (" in message) == listed, message
    model = make()
    with pytest.raises(lb.Error, match=r"gru[^$]*up[^$]*both"):
        prepare(model, recipes.sun2020(), strict=True)
    assert converted(model) == []  # and nothing was half done
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(make(), recipes.sun2020(), skip=["gru", "up", "both"], strict=True)


def test_a_module_with_parameters_of_its_own_is_listed() -> None:
    class Mine(T.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = T.Parameter(torch.ones(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    with pytest.warns(UserWarning, match="Mine"):
        prepare(T.Sequential(T.Linear(4, 4), Mine(), T.Linear(4, 4), T.Linear(4, 4)), recipes.sun2020())


def test_a_subclass_may_compute_something_else() -> None:
    class Doubled(T.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = T.Sequential(T.Linear(4, 4), Doubled(4, 4), T.Linear(4, 4), T.Linear(4, 4))
    with pytest.warns(UserWarning, match="Doubled"):
        prepare(model, recipes.sun2020())
    assert type(model[1]) is Doubled
    assert converted(model) == ["2"]


def test_depthwise_convolutions_stay_float_where_the_source_keeps_them() -> None:
    model = T.Sequential(*(T.Conv2d(8, 8, 3, groups=groups) for groups in (1, 8, 4, 1)))
    prepare(model, recipes.sun2020())
    assert converted(model) == ["2"]


def test_one_by_one_convolutions_in_fp8() -> None:
    model = T.Sequential(*(T.Conv2d(8, 8, k) for k in (3, 1, 3, 1)))
    prepare(model, recipes.sun2020(pointwise="fp8"))
    grad = model[1].site.products.grad_input
    assert grad is not None
    assert grad.format.startswith("fp8")
    assert model[2].site.products.grad_input.format == "radix4"
    assert recipes.sun2020(grad_weight="fp8").inner.grad_weight.format.startswith("fp8")
    assert recipes.sun2020(grad_weight="fp8").inner.grad_input.format == "radix4"


@pytest.mark.parametrize(
    "layer", [T.Linear(8, 8), T.Conv1d(4, 4, 3), T.LSTM(4, 4), T.MultiheadAttention(4, 2)], ids=str
)
def test_frozen_layers(layer: T.Module) -> None:
    layer.requires_grad_(False)
    ours = prepare(layer, recipes.int4_forward())
    frozen = [p for name, p in ours.named_parameters() if not name.endswith("clip")]
    assert not any(p.requires_grad for p in frozen)
    x = (
        normal(2, 4, 5, seed=1)
        if isinstance(layer, T.Conv1d)
        else normal(2, 3, layer.in_features if isinstance(layer, T.Linear) else 4)
    )
    x.requires_grad_()
    y = ours(x, x, x) if isinstance(layer, T.MultiheadAttention) else ours(x)
    (y if isinstance(y, torch.Tensor) else y[0]).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in frozen)


def test_an_input_that_needs_no_gradient() -> None:
    model = prepare(T.Linear(8, 8), recipes.sun2020())
    x = normal(3, 8)
    model(x).sum().backward()
    assert x.grad is None
    assert model.weight.grad is not None


def test_param_groups() -> None:
    model = prepare(mlp(4, 5, 6, 7, 3), recipes.sun2020())
    groups = param_groups(model, pact_decay=0.25, weight_decay=0.5, lr=0.125)
    every = [id(p) for group in groups for p in group["params"]]
    assert sorted(every) == sorted(id(p) for p in model.parameters())
    clips = {id(p) for name, p in model.named_parameters() if name.endswith("clip")}
    assert len(clips) == 2
    for group in groups:
        is_clip = {id(p) in clips for p in group["params"]}
        assert group["weight_decay"] == (0.25 if is_clip == {True} else 0.5)
        assert len(is_clip) == 1
        assert group["lr"] == 0.125
    torch.optim.AdamW(groups)
    assert {
        id(p) for g in param_groups(mlp(2, 3, 4), pact_decay=0.1) for p in g["params"]
    }  # a float model has no clips


def test_the_clip_decays() -> None:
    model = prepare(T.Linear(8, 8), recipes.sun2020())
    x = normal(4, 8)
    model(x)
    clip = model.site.clip.item()
    optimizer = torch.optim.SGD(param_groups(model, pact_decay=0.5), lr=0.5)
    (model(x) * 0).sum().backward()
    optimizer.step()
    assert model.site.clip.item() == pytest.approx(0.75 * clip)


def test_a_clip_in_no_optimizer_is_told_once() -> None:
    model = mlp(4, 5, 6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # before: knows no clip
    prepare(model, recipes.sun2020())
    x, target = normal(8, 4), normal(8, 3)
    step(model, optimizer, x, target)
    with pytest.warns(UserWarning, match=r"clip.*param_groups|param_groups.*clip"):
        model(x)
    for _ in range(3):
        step(model, optimizer, x, target)  # a second warning would be an error


def test_clips_in_an_optimizer_are_not_told() -> None:
    model = prepare(mlp(4, 5, 6, 3), recipes.sun2020())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer, normal(8, 4), normal(8, 3))


def test_copies_are_independent_and_pickles_whole() -> None:
    model = prepare(mlp(4, 5, 6, 3), recipes.sun2020())
    x, target = normal(8, 4), normal(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model, optimizer, x, target)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        own = torch.optim.SGD(twin.parameters(), lr=0.1)
        before = model[2].site.grad_scale.item()
        step(twin, own, x, target)
        assert model[2].site.grad_scale.item() == before
        assert twin[2].site.grad_scale.item() == 2 * before  # the twin votes for itself
        assert not torch.equal(twin[2].weight, model[2].weight)


def test_evaluation_changes_nothing_and_draws_nothing() -> None:
    for recipe in RECIPES.values():
        model = prepare(mlp(16, 16, 16, 16), recipe())
        model(normal(8, 16)).sum().backward()
        model.eval()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        torch.manual_seed(0)
        state = torch.get_rng_state()
        x = normal(3, 16, seed=1)
        with torch.no_grad():
            y = model(x)
            assert torch.equal(model(x), y)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_embedding_of_a_recipe_that_names_one() -> None:
    model = T.Sequential(T.Embedding(10, 8), T.Linear(8, 8), T.Linear(8, 8), T.Linear(8, 3))
    recipe = recipes.sun2020()
    prepare(model, recipe)
    assert isinstance(model[0], nn.Embedding) == (recipe.embedding is not None)


def test_an_encoder_is_converted_inside() -> None:
    layer = T.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = prepare(T.TransformerEncoder(layer, 3, enable_nested_tensor=False), recipes.luq())
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(nn.MultiheadAttention) >= 2
    assert kinds.count(nn.Linear) >= 4
    model(normal(2, 5, 16)).sum().backward()


def test_the_representation_tells_the_recipe() -> None:
    layer = prepare(T.Linear(4, 3), recipes.sun2020())
    assert "in_features=4" in repr(layer)
    assert "radix4" in repr(layer)


def test_a_wrapped_model_is_refused() -> None:
    with pytest.raises(lb.Error, match="wrap what prepare returns"):
        prepare(torch.nn.DataParallel(torch.nn.Linear(3, 3)), recipes.luq())


def test_an_embedding_that_cannot_be_converted_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(10, 8, sparse=True), torch.nn.Linear(8, 8))
    recipe = dataclasses.replace(recipes.luq(), embedding=Spec("int4"))
    with pytest.raises(lb.Error, match=r"0 \(Embedding\)"):
        prepare(model, recipe, strict=True)
    with pytest.warns(UserWarning, match=r"0 \(Embedding\)"):
        prepare(model, recipe)
