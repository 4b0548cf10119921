"""The table of a model's layers: what it says is what the layers are, hold and compute."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import lowbit as lb
from lowbit.torch import Products, Recipe, Rotation, Spec, prepare, recipes
from lowbit.torch._freeze import freeze
from lowbit.torch._site import Site
from lowbit.torch._summary import Summary, summary


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def vision() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 4 * 4, 16), nn.Linear(16, 10))


X = torch.randn(5, 3, 10, 10)


def test_what_layers_run_in_and_their_bytes() -> None:
    table = summary(prepare(vision(), recipes.sun2020()))
    assert [row.name for row in table] == ["0", "3", "7", "8"]
    assert [row.kind for row in table] == ["Conv2d", "Conv2d", "Linear", "Linear"]
    assert table["0"].weight == table["8"].grad_input == "float32"
    inner = table["3"]
    assert (inner.weight, inner.input) == ("int4_symmetric sawb", "uint4 pact")
    assert (inner.grad_input, inner.grad_weight) == ("radix4 gradscale", "radix4_odd gradscale")
    assert (inner.parameters, inner.float_nbytes, inner.nbytes) == (8 * 4 * 9, 4 * 288, 288 // 2 + 4)
    assert table["8"].nbytes == table["8"].float_nbytes == 640
    assert inner.grad_scale == 1.0
    assert inner.scales is None
    assert inner.macs == 0
    assert table.pairs == {}
    assert math.isnan(table.modelled_cost)


def test_multiply_accumulates_by_operands() -> None:
    table = summary(prepare(vision(), recipes.sun2020()), X)
    first, second, third, last = 5 * 100 * 8 * 27, 5 * 16 * 8 * 36, 5 * 128 * 16, 5 * 16 * 10
    assert [row.macs for row in table] == [first, second, third, last]
    four = second + third
    assert table.pairs == {
        "float32 x float32": 2 * first + 3 * last,  # the image needs no gradient
        "uint4 x int4_symmetric": four,
        "radix4 x int4_symmetric": four,
        "radix4_odd x uint4": four,
    }
    wide = 2 * first + 3 * last
    assert table.modelled_cost == pytest.approx((wide + 3 * four / 7.3) / (wide + 3 * four))


@pytest.mark.parametrize(
    ("products", "pairs"),
    [
        (recipes.luq().inner, ["int4_symmetric x int4_symmetric", "luq4 x int4_symmetric", "luq4 x int4_symmetric"]),
        (recipes.ternary().inner, ["int8 x ternary", "float32 x ternary", "float32 x int8"]),
        (recipes.mxfp4().inner, ["float32 x float32", "mxfp4 x mxfp4", "mxfp4 x mxfp4"]),
        (
            Products(Spec("int4"), Spec("int8"), Spec("int4"), Spec("int4"), rotate_input=Rotation(4)),
            ["int8 x int4", "int4 x float32", "int4 x int8"],
        ),
    ],
)
def test_operands_of_the_three_products(products: Products, pairs: list[str]) -> None:
    net = prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Recipe("test", products, products, products))
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair] = counts.get(pair, 0) + 3 * 16
    assert summary(net, torch.randn(3, 4))["1"].pairs == counts


def test_the_paper_estimates_training_speeds_with_these_densities() -> None:
    """Sun et al.'s figures: INT4 forward with FP8 gradients 2.7 times FP16, with FP4 and FP8 3.9, with FP4 7.3."""
    signal, four, eight = Spec("int4"), Spec("radix4"), Spec("fp8_e5m2")
    for gradients, speed in (((eight, eight), 2.7), ((four, eight), 3.9), ((four, four), 7.3), ((None, None), 1.4)):
        products = Products(signal, signal, *gradients)
        net = prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), Recipe("test", products, products, products))
        table = summary(net, torch.randn(3, 4, requires_grad=True))
        assert 1 / table.modelled_cost == pytest.approx(speed, rel=0.03)


def test_scales_and_shares_are_those_of_the_operands() -> None:
    """Of one layer, computed again with NumPy's functions; some gradients are clipped, some lost."""
    weight = Spec("int4_symmetric", scale="sawb", gradient="clip")
    products = Products(weight, Spec("int4", scale=0.5), Spec("radix4", scale=1.0), Spec("radix4_odd", scale=1.0))
    layer = nn.Linear(32, 16)
    with torch.no_grad():
        layer.weight.normal_()
    net = prepare(nn.Sequential(layer), Recipe("test", products, products, products))
    x, grad = 3 * torch.randn(40, 32), 30 * torch.randn(40, 16) ** 3
    row = summary(net, x.requires_grad_(), loss=lambda y: (y * grad).sum())["0"]
    w = layer.weight.detach().numpy()
    q = lb.quantize(w, "int4_symmetric", scale="sawb")
    scale = float(q.scale.item())
    assert row.scales == pytest.approx((scale, 0.5, 1.0))
    xs, gs = x.detach().numpy(), grad.numpy()
    rounded = lb.fake_quantize(w, "int4_symmetric", scale="sawb"), lb.fake_quantize(xs, "int4", scale=0.5)
    assert row.clipped == pytest.approx(
        ((abs(w) > 7 * q.scale.item()).mean(), (abs(xs) > 8 * 0.5).mean(), (abs(gs) > 64).mean())
    )
    small = lb.fake_quantize(gs, "radix4", scale=1.0) == 0
    assert row.zeros == pytest.approx(((rounded[0] == 0).mean(), (rounded[1] == 0).mean(), small.mean()))
    assert 0 < min(row.clipped) < max(row.clipped) < 0.5


def test_the_model_stays_as_it_is() -> None:
    net = prepare(vision(), recipes.sun2020()).eval()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    summary(net, X)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert not net.training
    assert not any(site.recording or site.record.any() for site in net.modules() if isinstance(site, Site))


class Everything(nn.Module):
    """A layer of each kind that is no plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 8, bidirectional=True, proj_size=4)
        self.attention = nn.MultiheadAttention(8, 2)
        self.up = nn.ConvTranspose1d(8, 2, 3)
        self.head = nn.Linear(2, 3)

    def forward(self, tokens: torch.Tensor, scale: float = 1.0) -> dict[str, torch.Tensor]:
        """Give logits by name."""
        x, _ = self.lstm(self.embedding(tokens) * scale)
        x, _ = self.attention(x, x, x)
        return {"logits": self.head(self.up(x.transpose(1, 2)).transpose(1, 2))}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_other_layers() -> None:
    recipe = Recipe("test", recipes.luq().inner, embedding=Spec("int4", per="channel"))
    net = prepare(Everything(), recipe, skip=("up", "embedding"))
    tokens = torch.randint(20, (7, 5))
    table = summary(net, {"tokens": tokens, "scale": 0.5})
    n = tokens.numel()
    assert table["embedding"].macs == 0
    assert table["up"].macs == 7 * 5 * 8 * 2 * 3
    assert table["up"].weight == "float32"
    # The first layer of the recipe, so float32.
    assert table["lstm.weight_ih_l0"].macs == n * 32 * 8
    assert table["lstm.weight_hh_l0_reverse"].macs == n * 32 * 4
    assert table["lstm.weight_hr_l0"].macs == n * 4 * 8
    assert table["attention.in_proj_weight"].macs == n * 24 * 8
    assert table["attention.in_proj_weight"].weight == "int4_symmetric sawb"
    assert table["attention.out_proj"].macs == n * 8 * 8
    assert table["head"].macs == 7 * 7 * 2 * 3  # two steps more than tokens


def test_frozen_models() -> None:
    net = prepare(vision(), recipes.int4_forward())
    table = summary(freeze(net, quiet=True), X)
    assert table["3"].nbytes == 148
    assert table["3"].weight == "int4_symmetric sawb"
    assert table.pairs["uint4 x int4_symmetric"] == 5 * 16 * 8 * 36 + 5 * 128 * 16
    assert set(table.pairs) == {"uint4 x int4_symmetric", "float32 x float32"}


def test_it_prints() -> None:
    table = summary(prepare(vision(), recipes.sun2020()), X)
    text = repr(table)
    assert text.splitlines()[0] == f"4 weights, {sum(r.nbytes for r in table)} bytes packed, 10848 in float32"
    assert text.splitlines()[1].split()[:4] == ["layer", "class", "weight", "input"]
    assert text.count("a model of energy, not a measurement") == 1
    html = table._repr_html_()
    assert html.count("<tr>") == 5
    assert "int4_symmetric sawb" in html
    assert "a model of energy, not a measurement" in html
    assert isinstance(table, Summary)
    assert table[1] is table["3"]
    assert table.to_dict()["macs"] == [row.macs for row in table]
    with pytest.raises(KeyError, match="'1' is not in the table; rows are: 0, 3, 7, 8"):
        table["1"]
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module"):
        summary([])  # type: ignore[arg-type]


def test_products_of_a_packed_sequence_are_counted() -> None:
    recipe = recipes.luq()
    model = nn.Sequential(prepare(nn.LSTM(5, 6), replace(recipe, first=recipe.inner, last=recipe.inner)))
    rows = nn.utils.rnn.pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])
    table = summary(model, (rows,))
    assert [row.macs for row in table] == [6 * 4 * 6 * 5, 6 * 4 * 6 * 6]
