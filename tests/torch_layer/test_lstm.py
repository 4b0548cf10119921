"""The LSTM against the reference's step equations, and against torch's where nothing is quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lowbit.torch import Products, Spec, nn, prepare, recipes
from torch_layer import reference as ref
from torch_layer.layer_support import EXACT, FLOAT, LUQ, SUN, call_keys, n, near, normal, round_weights

AMAX = replace(SUN, grad_input=Spec("radix4", scale="amax"), grad_weight=Spec("radix4_odd", scale="amax"))
FIXED = replace(SUN, grad_input=Spec("radix4", scale=2.0**-7), grad_weight=Spec("radix4_odd", scale=2.0**-7))


def reference_of(
    lstm: Any, products: Products, x: Any, dy: Any, scale: float = 1.0, keys: Any = None
) -> dict[str, Any]:
    """Run layers and directions through the reference; time comes first."""
    keys = iter(keys or [None] * 1000)
    p = dict(lstm.named_parameters())
    tails = ["", "_reverse"] if lstm.bidirectional else [""]
    layers, given = [], x
    for k in range(lstm.num_layers):
        runs, ys = [], []
        for tail in tails:
            sites = [ref.Site(grad_scale=ref.GradScale(scale)) for _ in range(2)]
            run = ref.Lstm(products, *sites, reverse=bool(tail))
            names = [f"{name}_l{k}{tail}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
            y = run.forward(given, *(n(p[name]) for name in names), [next(keys) for _ in range(len(x) + 1)])
            runs.append((run, names))
            ys.append(y)
        given = np.concatenate(ys, axis=2)
        layers.append(runs)
    found = {"y": given}
    for runs in reversed(layers):
        parts = np.split(dy, len(runs), axis=2)
        dx = 0.0
        for part, (run, names) in zip(parts, runs, strict=True):
            of_input, of_hidden = run.backward(part)
            found |= dict(zip(names, (of_input.w, of_hidden.w, of_input.b, of_hidden.b), strict=True))
            dx = dx + of_input.x.reshape(*dy.shape[:2], -1).astype(np.float64)
        dy = dx
    return found | {"x": dy}


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("products", [SUN, AMAX, FIXED], ids=["gradscale", "amax", "fixed"])
def test_the_step_equations(products: Products, both: bool, layers: int) -> None:
    lstm = nn.LSTM(6, 5, num_layers=layers, bidirectional=both, products=products)
    for name, buffer in lstm.named_buffers():
        if name.endswith("grad_scale"):
            buffer.fill_(64.0)
    x, dy = normal(7, 3, 6).requires_grad_(), normal(7, 3, 10 if both else 5, seed=1)
    y = lstm(x)[0]
    y.backward(dy)
    found = reference_of(lstm, products, n(x), n(dy), 64.0)
    near(y, found.pop("y"))
    near(x.grad, found.pop("x"), 1e-4)
    for name, want in found.items():
        near(getattr(lstm, name).grad, want, 1e-4)


def test_the_clips_gradients() -> None:
    """One clip for the input and one for the hidden state, which collects over all steps."""
    products = replace(SUN, input=Spec("uint4", scale="pact"))
    lstm = nn.LSTM(6, 5, products=products)
    x, dy = normal(7, 3, 6), normal(7, 3, 5, seed=1)
    lstm(x)
    p, alphas = dict(lstm.named_parameters()), {"ih": 1.5, "hh": 0.25}
    clips = {key: p[next(name for name in p if name.endswith("clip") and key in name)] for key in alphas}
    for name, buffer in lstm.named_buffers():
        if name.endswith("grad_scale"):
            buffer.fill_(64.0)
    with torch.no_grad():
        for key, clip in clips.items():
            clip.fill_(alphas[key])
    sites = [ref.Site(alphas[key], True, ref.GradScale(64.0)) for key in ("ih", "hh")]
    run = ref.Lstm(products, *sites)
    y = lstm(x)[0]
    names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
    near(y, run.forward(n(x), *(n(p[name]) for name in names)))
    y.backward(dy)
    for key, want in zip(("ih", "hh"), run.backward(n(dy)), strict=True):
        near(clips[key].grad, want.alpha, 1e-4)
        assert want.alpha != 0
        near(p[f"weight_{key}_l0"].grad, want.w, 1e-4)


def test_every_layer_and_direction_has_two_sites() -> None:
    lstm = prepare(torch.nn.LSTM(6, 5, num_layers=2, bidirectional=True), recipes.sun2020())
    clips = [name for name, _ in lstm.named_parameters() if name.endswith("clip")]
    scales = [name for name, _ in lstm.named_buffers() if name.endswith("grad_scale")]
    assert len(clips) == len(scales) == 8


def test_pact_of_the_hidden_state_is_signed() -> None:
    """The first step's zeros must not choose an unsigned format, nor a clip of zero."""
    lstm = prepare(torch.nn.LSTM(6, 5), recipes.sun2020())
    exact = torch.nn.LSTM(6, 5)
    x = normal(20, 4, 6)
    y = lstm(x)[0]
    exact.load_state_dict({k: v for k, v in lstm.state_dict().items() if k in exact.state_dict()})
    assert torch.nn.functional.mse_loss(y, exact(x)[0]) < 0.03 * exact(x)[0].var()
    y.sum().backward()
    for name, p in lstm.named_parameters():
        if name.endswith("clip"):
            assert p.item() > 0
        assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "dropout": 0.0}, {"bias": False}])
@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("products", [FLOAT, EXACT], ids=["float", "exact"])
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_unquantized_it_is_torchs(products: Products, options: Any, proj_size: int, batch_first: bool) -> None:
    options = {**options, "proj_size": proj_size, "batch_first": batch_first}
    plain, ours = torch.nn.LSTM(6, 5, **options), nn.LSTM(6, 5, products=products, **options)
    round_weights(plain)
    missing = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    x = normal(4, 7, 6)
    sides = (2 if options.get("bidirectional") else 1) * options.get("num_layers", 1)
    batch = 4 if batch_first else 7
    given = normal(sides, batch, proj_size or 5, seed=1), normal(sides, batch, 5, seed=2)
    found = []
    for module in (ours, plain):
        module(x)[0].sum().backward()
        start = [s.clone().requires_grad_() for s in given]
        inner = x.clone().requires_grad_()
        y, (h, c) = module(inner, tuple(start))
        (y.square().sum() + (h * given[0]).sum() + c.square().sum()).backward()
        found.append((y, h, c, inner.grad, start[0].grad, start[1].grad))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sort", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("products", [FLOAT, EXACT], ids=["float", "exact"])
def test_packed_sequences(products: Products, both: bool, sort: bool) -> None:
    lengths = torch.tensor([7, 4, 1] if sort else [4, 7, 1])
    plain = torch.nn.LSTM(6, 5, num_layers=2, bidirectional=both)
    ours = nn.LSTM(6, 5, num_layers=2, bidirectional=both, products=products)
    round_weights(plain)
    ours.load_state_dict(plain.state_dict(), strict=False)
    packed = pack_padded_sequence(normal(7, 3, 6), lengths, enforce_sorted=sort)
    y, (h, c) = ours(packed)
    want, (h2, c2) = plain(packed)
    assert type(y) is type(want)
    torch.testing.assert_close(pad_packed_sequence(y), pad_packed_sequence(want))
    for state in (y, want):
        state.data.square().sum().backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(h, h2)
    torch.testing.assert_close(c, c2)


def test_a_packed_sequence_of_equal_lengths_is_the_padded_one() -> None:
    lstm = nn.LSTM(6, 5, products=SUN)
    x = normal(7, 3, 6)
    y = lstm(pack_padded_sequence(x, torch.tensor([7, 7, 7])))[0]
    assert torch.equal(pad_packed_sequence(y)[0], lstm(x)[0])


def test_one_sequence_without_a_batch() -> None:
    lstm = nn.LSTM(6, 5, products=SUN)
    x = normal(7, 6)
    y, (h, c) = lstm(x)
    assert (y.shape, h.shape, c.shape) == ((7, 5), (1, 5), (1, 5))
    assert torch.equal(y, lstm(x[:, None])[0][:, 0])


def test_dropout_lies_between_layers_and_only_in_training() -> None:
    lstm = nn.LSTM(6, 5, num_layers=2, dropout=0.5, products=SUN)
    x = normal(7, 3, 6)
    torch.manual_seed(0)
    one = lstm(x)[0]
    assert not torch.equal(one, lstm(x)[0])
    torch.manual_seed(0)
    assert torch.equal(one, lstm(x)[0])
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])


def test_stochastic_gradients_follow_the_seed_and_differ_from_step_to_step() -> None:
    lstm = nn.LSTM(6, 5, products=LUQ)
    x, grads = normal(7, 3, 6), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        lstm.zero_grad()
        lstm(x)[0].square().sum().backward()
        grads.append([p.grad.clone() for p in lstm.parameters()])
    assert all(map(torch.equal, grads[0], grads[1]))
    assert not torch.equal(grads[0][0], grads[2][0])


def test_stochastic_gradients_have_the_words_of_their_calls() -> None:
    """A key for each product, in the order in which they run: of the input, then of every step."""
    lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, products=LUQ)
    x, dy = normal(7, 3, 6).requires_grad_(), normal(7, 3, 10, seed=1)
    keys = call_keys(3, 4 * 8)
    y = lstm(x)[0]
    y.backward(dy)
    found = reference_of(lstm, LUQ, n(x), n(dy), keys=keys)
    near(y, found.pop("y"))
    near(x.grad, found.pop("x"), 1e-4)
    for name, want in found.items():
        near(getattr(lstm, name).grad, want, 1e-4)


def test_steps_have_words_of_their_own() -> None:
    """Every step has the same dL/dgates and h here: errors that were alike would not average out over 100 steps."""
    spec = Spec("luq4", scale="amax", rounding="stochastic")
    grads = []
    for products in (FLOAT, replace(FLOAT, grad_weight=spec)):
        lstm = nn.LSTM(2, 8, products=products)
        with torch.no_grad():
            for p, seed in zip(lstm.parameters(), range(4), strict=False):
                p.copy_(normal(*p.shape, seed=seed))
            lstm.weight_hh_l0.zero_()
            lstm.bias_hh_l0[8:16] = -100.0  # everything is forgotten
        lstm(torch.ones(101, 1, 2))[0].sum().backward()
        grads.append(lstm.weight_hh_l0.grad)
    exact, found = grads
    used = exact != 0
    assert used.sum() == 3 * 8 * 8
    error = ((found - exact) / exact)[used].abs()
    assert 0 < error.mean() < 0.05  # one draw's: 0.25 and more


def test_a_batch_of_nothing_runs_as_torchs() -> None:
    plain, ours = torch.nn.LSTM(5, 6), nn.LSTM(5, 6, products=SUN)
    (y, (h, c)), (want, (want_h, want_c)) = ours(torch.zeros(4, 0, 5)), plain(torch.zeros(4, 0, 5))
    assert (y.shape, h.shape, c.shape) == (want.shape, want_h.shape, want_c.shape)
