"""Numbers that are not finite, nothing at all, wrong types and wrong arguments."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch

import lowbit as lb
from lowbit.torch import Products, Recipe, Rotation, Spec, nn, param_groups, prepare, recipes
from torch_layer.layer_support import FLOAT, INT4, LUQ, RECIPES, SUN, normal

T = torch.nn


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "weight", "gradient"])
@pytest.mark.parametrize("products", [SUN, LUQ], ids=["sun2020", "luq"])
def test_numbers_that_are_not_finite_are_handed_on(products: Products, where: str, bad: float) -> None:
    """One scale for a tensor: one bad number makes it all NaN, and nothing raises."""
    layer = nn.Linear(8, 4, products=products)
    x, g = normal(5, 8), normal(5, 4, seed=1)
    with torch.no_grad():
        {"x": x, "weight": layer.weight, "gradient": g}[where][1, 2] = bad
    x.requires_grad_()
    y = layer(x)
    assert torch.isnan(y).all() == (where != "gradient")
    y.backward(g)
    assert (not torch.isfinite(layer.weight.grad).any()) == (where != "weight")
    assert (not torch.isfinite(x.grad).any()) == (where != "x")


def test_blocks_that_are_not_finite_stay_alone() -> None:
    block = Spec("mxfp4", per="block")
    layer = nn.Linear(64, 4, products=replace(FLOAT, weight=block))
    with torch.no_grad():
        layer.weight[1, 40] = np.nan
    y = layer(normal(3, 64))
    assert torch.isnan(y).sum(0).tolist() == [0, 3, 0, 0]


def test_the_state_survives_what_is_not_finite() -> None:
    """After a bad batch the next good one trains."""
    for recipe in ("sun2020", "luq", "luq, in hindsight"):
        layer = prepare(T.Linear(8, 4), RECIPES[recipe]())
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        x = normal(5, 8)
        layer(x).sum().backward()
        optimizer.step()
        for bad in (np.nan, np.inf):
            optimizer.zero_grad()
            layer(x).backward(torch.full((5, 4), bad))
            assert not torch.isfinite(layer.weight.grad).all()
            optimizer.zero_grad()  # a loss scaler skips the step
            layer(x * bad).sum().backward()
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).backward(normal(5, 4))
            optimizer.step()
        assert torch.isfinite(layer.weight.grad).all(), recipe
        assert layer.weight.grad.any()
        assert all(torch.isfinite(v).all() for v in layer.state_dict().values()), recipe


def test_a_first_batch_that_is_not_finite_does_not_choose_pacts_clip() -> None:
    layer = prepare(T.Linear(8, 4), recipes.sun2020())
    layer(torch.full((3, 8), np.nan))
    layer(torch.full((3, 8), np.inf))
    x = normal(3, 8)
    assert torch.isfinite(layer(x)).all()
    assert layer.site.clip.item() == x.abs().max()


def test_nor_do_a_batch_of_zeros_or_an_empty_one() -> None:
    layer = prepare(T.Linear(8, 4), recipes.sun2020())
    layer(torch.zeros(0, 8))
    layer(torch.zeros(3, 8))
    x = normal(3, 8)
    layer(x)
    assert layer.site.clip.item() == x.abs().max()


@pytest.mark.parametrize("recipe", RECIPES)
def test_empty_batches(recipe: str) -> None:
    p = RECIPES[recipe]().inner
    layers: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = [
        (nn.Linear(8, 4, products=p), (0, 8), (0, 4)),
        (nn.Linear(8, 4, products=p), (3, 0, 8), (3, 0, 4)),
        (nn.Conv1d(8, 4, 3, products=p), (0, 8, 5), (0, 4, 3)),
        (nn.Conv2d(8, 4, 3, products=p), (0, 8, 5, 5), (0, 4, 3, 3)),
    ]
    for layer, given, out in layers:
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        x = torch.zeros(given, requires_grad=True)
        y = layer(x)
        assert y.shape == out
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.shape == given
        assert not layer.weight.grad.any()
        assert not layer.bias.grad.any()
        optimizer.step()
        assert all(torch.isfinite(v).all() for v in layer.state_dict().values())


def test_an_empty_batch_does_not_vote() -> None:
    layer = nn.Linear(8, 4, products=SUN)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    layer(torch.zeros(0, 8)).sum().backward()
    optimizer.step()
    assert layer.site.grad_scale.item() == 1


def test_float64_goes_in_and_comes_out() -> None:
    """As ``lowbit`` has it: rounded to float32 first; the dtype of a result is the input's."""
    narrow = nn.Linear(8, 4, products=SUN)
    wide = nn.Linear(8, 4, products=SUN).double()
    wide.load_state_dict(narrow.state_dict())
    x = normal(5, 8)
    y = wide(x.double().requires_grad_())
    assert y.dtype == torch.float64
    assert torch.equal(y.float(), narrow(x))
    y.sum().backward()
    assert wide.weight.grad.dtype == torch.float64
    narrow(x).sum().backward()
    assert torch.equal(wide.weight.grad.float(), narrow.weight.grad)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_dtypes_that_are_no_floats(dtype: torch.dtype) -> None:
    with pytest.raises((TypeError, RuntimeError), match=r"dtype|float"):
        nn.Linear(4, 4, products=SUN)(torch.ones(2, 4).to(dtype))


def test_dtypes_that_differ_are_torchs_error() -> None:
    """Outside autocast ``torch.nn.Linear`` refuses a half of float32 weights."""
    with pytest.raises((TypeError, RuntimeError), match=r"dtype"):
        nn.Linear(4, 4, products=SUN)(torch.ones(2, 4, dtype=torch.float16))


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4, products=SUN), lambda: nn.Conv1d(4, 4, 3, products=SUN)])
def test_shapes_that_do_not_fit(make: Any) -> None:
    with pytest.raises((RuntimeError, lb.Error), match=r"shape|channels"):
        make()(torch.ones(2, 5, 6))


def test_tensors_elsewhere() -> None:
    """The meta device has shapes and no numbers: a model can be built and run there."""
    layer = nn.Linear(8, 4, products=SUN, device="meta")
    assert layer(torch.ones(2, 8, device="meta")).shape == (2, 4)


# --- Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"format": "fp5"}, "format"),
        ({"format": "radix4", "scale": "sawb"}, "scale"),
        ({"format": "int4", "scale": "absmax"}, "scale"),
        ({"format": "int4", "scale": 0.0}, "scale"),
        ({"format": "int4", "scale": -1.0}, "scale"),
        ({"format": "int4", "scale": float("nan")}, "scale"),
        ({"format": "int4", "per": "column"}, "per"),
        ({"format": "int4", "per": "block", "block_size": 0}, "block_size"),
        ({"format": "int4", "block_size": 32}, "block_size"),
        ({"format": "int4", "rounding": "up"}, "rounding"),
        ({"format": "int4", "samples": 0}, "samples"),
        ({"format": "int4", "samples": 2}, "samples"),
        ({"format": "int4", "gradient": "none"}, "gradient"),
        ({"format": "luq4", "scale": "hindsight", "momentum": 1.5}, "momentum"),
        ({"format": "luq4", "scale": "hindsight"}, "momentum"),
        ({"format": "luq4", "momentum": 0.1}, "momentum"),
    ],
)
def test_specs_that_mean_nothing(options: dict[str, Any], names: str) -> None:
    with pytest.raises((lb.Error, TypeError), match=names):
        Spec(**options)


@pytest.mark.parametrize(
    ("where", "spec"),
    [
        ("weight", Spec("int4", scale="pact")),
        ("weight", Spec("int4", scale="gradscale")),
        ("input", Spec("int4", scale="gradscale")),
        ("grad_input", Spec("uint4", scale="pact")),
        ("weight", Spec("int4", per="token")),
        ("input", Spec("int4", per="channel")),
        ("input", Spec("nvfp4", per="tile")),
        ("weight", Spec("int4", rounding="stochastic", samples=2)),
    ],
)
def test_specs_in_the_wrong_place(where: str, spec: Spec) -> None:
    with pytest.raises(lb.Error, match=where):
        Products(**{**dict.fromkeys(("weight", "input", "grad_input", "grad_weight")), where: spec})


@pytest.mark.parametrize("block", [0, 3, -4, 2.0])
def test_rotations_are_powers_of_two(block: Any) -> None:
    with pytest.raises((lb.Error, TypeError), match="block"):
        Rotation(block)


def test_specs_are_values() -> None:
    assert hash(INT4) == hash(Spec("int4_symmetric", scale="sawb"))
    assert Spec("int4") != INT4
    with pytest.raises(FrozenInstanceError):
        INT4.format = "int8"  # type: ignore[misc]
    assert {SUN: 1}[replace(SUN)] == 1


def test_factories_formats_are_formats() -> None:
    fmt = lb.float_format(4, 1)
    for given in (fmt.name, fmt):
        layer = nn.Linear(4, 4, products=replace(FLOAT, weight=Spec(given)))  # type: ignore[arg-type]
        layer(normal(2, 4)).sum().backward()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: recipes.sun2020(phases=3), "phases"),
        (lambda: recipes.sun2020(scaling="apex"), "scaling"),
        (lambda: recipes.sun2020(pointwise="int8"), "pointwise"),
        (lambda: recipes.sun2020(grad_weight="int8"), "grad_weight"),
        (lambda: recipes.sun2020(base=3), "base"),
        (lambda: recipes.sun2020(grad_scale=3.0), "grad_scale"),
        (lambda: recipes.sun2020(pact_init=-1.0), "pact_init"),
        (lambda: recipes.luq(samples=0), "samples"),
        (lambda: recipes.luq(hindsight=2.0), "hindsight"),
        (lambda: recipes.lp("nope"), "format"),
    ],
)
def test_switches_that_no_source_has(call: Any, names: str) -> None:
    with pytest.raises((lb.Error, TypeError), match=names):
        call()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: prepare("model", recipes.luq()), "model"),
        (lambda: prepare(T.Linear(2, 2), "luq"), "recipe"),
        (lambda: prepare(T.Linear(2, 2), recipes.luq), "recipe"),
        (lambda: prepare(T.Linear(2, 2), recipes.luq(), skip=[3]), "skip"),
        (lambda: nn.Linear(2, 2, products=recipes.luq()), "products"),
        (lambda: nn.Embedding(2, 2, weight_spec=SUN), "weight_spec"),
        (lambda: param_groups([T.Linear(2, 2)], pact_decay=0.1), "model"),
    ],
)
def test_arguments_of_the_wrong_type(call: Any, names: str) -> None:
    with pytest.raises(TypeError, match=names):
        call()


def test_a_skip_that_names_nothing_is_an_error() -> None:
    with pytest.raises(lb.Error, match="decoder"):
        prepare(T.Sequential(T.Linear(2, 2)), recipes.luq(), skip=["decoder"])


def test_a_model_without_layers() -> None:
    model = T.Sequential(T.ReLU())
    assert prepare(model, recipes.luq()) is model


def test_every_recipe_says_where_it_is_from() -> None:
    names = set()
    for make in RECIPES.values():
        recipe = make()
        assert isinstance(recipe, Recipe)
        assert len(recipe.source) > 10 or recipe.name.startswith("lp")  # nobody's
        names.add(recipe.name)
    assert len(names) >= 9
