"""Frozen models: the same outputs, plain tensors, and the bytes they say."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.torch import Products, Recipe, Spec, prepare, recipes
from lowbit.torch._freeze import FrozenSite, PackedWeight, freeze


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 5))


def convolutions() -> nn.Module:
    middle = nn.Conv2d(6, 8, 3, stride=2, padding="valid", groups=2), nn.Conv2d(8, 8, 1, bias=False)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), *middle, nn.Conv2d(8, 4, (2, 1)))


class Speech(nn.Module):
    """LSTMs, with what they can have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.inner = nn.LSTM(5, 8, num_layers=2, bidirectional=True, batch_first=True, proj_size=4)
        self.plain = nn.LSTM(8, 6, bias=False)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Give three numbers for each step."""
        return self.last(self.plain(self.inner(self.first(x))[0])[0])


class Attention(nn.Module):
    """Self-attention in an encoder layer, and projections of other widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, kdim=8, vdim=6, batch_first=True, bias=False)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Give three numbers for each place."""
        x = self.encoder(self.first(x))
        return self.last(self.other(x, x, x[..., :6])[0])


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (7, 12)),
    "convolutions": (convolutions, (2, 3, 9, 9)),
    "speech": (Speech, (3, 4, 5)),
    "attention": (Attention, (2, 5, 8)),
}
INT4 = Spec("int4", scale="minmax")
RECIPES: dict[str, Recipe] = {
    "sun2020": recipes.sun2020(),
    "luq": recipes.luq(),
    "nvfp4": recipes.nvfp4(),
    "mxfp4": recipes.mxfp4(forward=True),
    "ternary": recipes.ternary(),
    "binary": recipes.binary(),
    "lp(nf4)": recipes.lp("nf4"),
    "offsets": Recipe("offsets", Products(INT4, INT4), Products(INT4, INT4), Products(INT4), source="test"),
}


def prepared(model: str, recipe: str) -> tuple[nn.Module, Tensor]:
    """A prepared model that has seen a batch and moved, and an input."""
    make, shape = MODELS[model]
    net = prepare(make(), RECIPES[recipe])
    x = torch.randn(shape)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).square().mean().backward()
    optimizer.step()
    return net, torch.randn(shape)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.detach().view(torch.uint8), b.detach().view(torch.uint8))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", MODELS)
def test_outputs_are_those_of_the_prepared_model(model: str, recipe: str, tmp_path: Path) -> None:
    net, x = prepared(model, recipe)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    frozen = freeze(net, quiet=True)
    with torch.no_grad():
        want = net.eval()(x)
        assert same(frozen(x), want)
    assert not any(site.train().training for site in frozen.modules() if isinstance(site, FrozenSite))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(p.requires_grad for p in frozen.parameters())
    assert any(isinstance(module, PackedWeight) for module in frozen.modules())

    # Through both files into a model with other weights, which was frozen by itself.
    state = frozen.state_dict()
    assert all(type(tensor) is Tensor or type(tensor) is nn.Parameter for tensor in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    safetensors.torch.save_file(state, tmp_path / "frozen.safetensors")
    torch.manual_seed(1)
    other = freeze(prepared(model, recipe)[0], quiet=True)
    for read in (torch.load(file, weights_only=True), safetensors.torch.load_file(tmp_path / "frozen.safetensors")):
        assert not same(other(x), want)
        other.load_state_dict(read)
        assert same(other(x), want)
        other = freeze(prepared(model, recipe)[0], quiet=True)


@pytest.mark.parametrize("spec", [Spec("int4"), Spec("nf4", per="channel"), Spec("int4", per="block", block_size=4)])
@pytest.mark.parametrize("columns", [8, 7])
def test_embeddings_decode_the_rows_they_look_up(spec: Spec, columns: int) -> None:
    layer = nn.Sequential(nn.Embedding(11, columns, padding_idx=2), nn.Linear(columns, 3))
    net = prepare(
        layer, Recipe("test", Products(INT4, INT4), Products(INT4), Products(INT4), embedding=spec, source="")
    )
    indices = torch.tensor([[3, 3, 10], [0, 2, 5]])
    frozen = freeze(net, quiet=True)
    assert same(frozen(indices), net.eval()(indices))
    assert same(frozen[0](indices[:0]), net[0](indices[:0]))
    table = frozen[0].weight
    arguments = indices, table.packed, table.scale, table.rest
    rest = table.text, list(table.shape), list(table.kept_shape)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.lowbit.frozen_rows.default, (*arguments, *rest), test_utils=tests)
    if spec.per == "tensor" and columns == 8:
        compiled = torch.compile(frozen, backend="aot_eager", fullgraph=True)
        assert same(compiled(indices), frozen(indices))


def test_bytes_are_measured() -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 128), nn.Linear(128, 10))
    float_bytes = sum(p.nbytes for p in net.parameters())
    frozen: Any = freeze(prepare(net, recipes.int4_forward()), quiet=True)
    # Codes of 4 bits, and a scale; the clip and its sign are 12 bytes more of the model before and after.
    assert frozen.nbytes.weights == 64 * 128 // 2 + 4
    assert frozen.nbytes.float_weights == 64 * 128 * 4
    assert frozen.nbytes.float_model == float_bytes + 12
    assert frozen.nbytes.model == float_bytes - 64 * 128 * 4 + 64 * 128 // 2 + 4 + 12
    file = io.BytesIO()
    torch.save(frozen.state_dict(), file)
    assert len(file.getvalue()) < frozen.nbytes.model + 6000  # what torch writes around every tensor


def test_the_bytes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    frozen: Any = freeze(prepare(perceptron(), recipes.int4_forward()))
    assert capsys.readouterr().out == f"{frozen.nbytes}\n"
    assert "packed weights, with scales: 304 bytes, 0.127 of 2400" in str(frozen.nbytes)


def test_cross_attention_needs_the_codes_of_three() -> None:
    net = prepare(
        nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)), recipes.luq()
    )
    query, memory = torch.randn(2, 3, 8), torch.randn(2, 4, 8)
    attention = net[1].eval()
    with pytest.raises(lb.Error, match="cross_attention=True"):
        freeze(net, quiet=True)[1](query, memory, memory)
    frozen = freeze(net, cross_attention=True, quiet=True)[1]
    assert same(frozen(query, memory, memory)[0], attention(query, memory, memory)[0])
    assert same(frozen(query, query, query)[0], attention(query, query, query)[0])


def test_autocast_and_other_dtypes() -> None:
    net, x = prepared("convolutions", "sun2020")
    frozen = freeze(net, quiet=True)
    net.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(frozen(x), net(x))
    # What was frozen before it was cast has the codes of the float32 weights: the cast must not touch their scales.
    half = copy.deepcopy(frozen).to(torch.bfloat16)
    for name, tensor in frozen.state_dict().items():
        assert not name.startswith("1.weight") or torch.equal(half.state_dict()[name], tensor)
    assert half(x.to(torch.bfloat16)).dtype == torch.bfloat16
    assert same(freeze(net.to(torch.bfloat16), quiet=True)(x.to(torch.bfloat16)), net(x.to(torch.bfloat16)))


def test_compiled_as_a_whole() -> None:
    net, x = prepared("convolutions", "sun2020")
    frozen = freeze(net, quiet=True)
    compiled = torch.compile(frozen, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert same(compiled(x), frozen(x))
    layer = frozen[1].weight
    arguments = (torch.randn(2, 6, 9, 9), layer.packed, layer.scale, layer.rest, None, torch.tensor(1.0), None)
    shapes = (frozen[1].site._plan.text, [2, 2, 0, 0, 1, 1, 2], list(layer.shape), list(layer.kept_shape))
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.lowbit.frozen_product.default, (*arguments, *shapes), test_utils=tests)


def test_stochastic_inputs_and_weights() -> None:
    """Inputs draw as in the prepared model; a weight's noise was drawn when it was frozen."""
    noisy = Spec("int4", rounding="stochastic")
    for products, stays in ((Products(Spec("int4"), noisy), True), (Products(noisy, Spec("int4")), False)):
        net = prepare(nn.Sequential(nn.Linear(64, 64)), Recipe("test", products, products, products)).eval()
        frozen, x = freeze(net, quiet=True), torch.randn(3, 64)
        outputs = []
        with torch.no_grad():
            for module in (net, frozen, frozen):
                torch.manual_seed(5)
                outputs.append(module(x))
        assert same(outputs[1], outputs[2])
        assert same(outputs[0], outputs[1]) == stays


def test_no_float_weight_is_left() -> None:
    def alive() -> int:
        gc.collect()
        tensors = (thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter))
        return sum(tensor.shape == (61, 53) for tensor in tensors)

    net = prepare(nn.Sequential(nn.Linear(5, 53), nn.Linear(53, 61), nn.Linear(61, 5)), recipes.sun2020())
    net(torch.randn(2, 5)).sum().backward()
    net.zero_grad()
    before = alive()
    frozen = freeze(net, quiet=True)
    frozen(torch.randn(2, 5))
    assert alive() == before == 1


def test_what_cannot_be_frozen() -> None:
    net, _ = prepared("perceptron", "luq")
    frozen = freeze(net, quiet=True)
    with pytest.raises(lb.Error, match="it is frozen already"):
        freeze(frozen)
    with pytest.raises(lb.Error, match="none of its weights is quantized; prepare it first"):
        freeze(perceptron())
    with pytest.raises(lb.Error, match="none of its weights is quantized"):
        freeze(prepare(perceptron(), recipes.mxfp4()))
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got list"):
        freeze([])  # type: ignore[type-var]
    with torch.no_grad():
        net[2].weight[0, 0] = float("nan")
    with pytest.raises(lb.Error, match=r"2.weight is not finite"):
        freeze(net)
    with pytest.raises(TypeError, match="input: expected a float tensor"):
        frozen[2](torch.ones(1, 20, dtype=torch.int64))


def test_a_frozen_model_can_be_copied_and_pickled() -> None:
    net, x = prepared("speech", "sun2020")
    frozen = freeze(net, quiet=True)
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    for other in (copy.deepcopy(frozen), torch.load(file, weights_only=False)):
        assert same(other(x), frozen(x))


def test_tied_weights_are_packed_once() -> None:
    recipe = recipes.luq()
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))
    model[2].weight = model[1].weight
    model = prepare(model, replace(recipe, first=recipe.inner, last=recipe.inner))
    frozen = freeze(model, quiet=True)
    assert frozen[1].weight is frozen[2].weight
    assert frozen.nbytes.float_weights == 2 * 4 * 64 * 64
    x = torch.randn(5, 64)
    assert torch.equal(frozen(x), model.eval()(x))
