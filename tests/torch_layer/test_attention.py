"""Attention against the reference, and against torch's where nothing is quantized; the encoder layer's fast path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import lowbit as lb
from lowbit.torch import Products, nn, prepare, recipes
from torch_layer import reference as ref
from torch_layer.layer_support import EXACT, FLOAT, LUQ, SUN, call_keys, n, near, normal, round_weights


@pytest.mark.parametrize("batch_first", [False, True])
def test_self_attention(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=batch_first, products=SUN)
    for name, buffer in layer.named_buffers():
        if name.endswith("grad_scale"):
            buffer.fill_(32.0)
    with torch.no_grad():
        layer.in_proj_bias.copy_(normal(48, seed=3))
    x, dy = normal(3, 7, 16).requires_grad_(), normal(3, 7, 16, seed=1)
    given = x if batch_first else x.transpose(0, 1)
    y = layer(given, given, given)[0]
    y = y if batch_first else y.transpose(0, 1)
    y.backward(dy)
    sites = [ref.Site(grad_scale=ref.GradScale(32.0)) for _ in range(2)]
    want = ref.Attention(SUN, 4, *sites)
    of = [n(p) for p in (layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias)]
    near(y, want.forward(n(x), *of))
    of_in, of_out = want.backward(n(dy))
    near(x.grad, of_in.x, 1e-4)
    near(layer.in_proj_weight.grad, of_in.w, 1e-4)
    near(layer.in_proj_bias.grad, of_in.b, 1e-4)
    near(layer.out_proj.weight.grad, of_out.w, 1e-4)
    near(layer.out_proj.bias.grad, of_out.b, 1e-4)


def test_stochastic_gradients_have_the_words_of_their_calls() -> None:
    """A key for each product, in the order in which they run."""
    layer = nn.MultiheadAttention(16, 4, products=LUQ)
    x, dy = normal(7, 1, 16).requires_grad_(), normal(7, 1, 16, seed=1)
    keys = call_keys(3, 2)
    layer(x, x, x)[0].backward(dy)
    want = ref.Attention(LUQ, 4, ref.Site(), ref.Site())
    of = [n(p) for p in (layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias)]
    want.forward(n(x).swapaxes(0, 1), *of, keys)
    of_in, of_out = want.backward(n(dy).swapaxes(0, 1))
    near(x.grad, of_in.x, 1e-4)
    near(layer.in_proj_weight.grad, of_in.w, 1e-4)
    near(layer.out_proj.weight.grad, of_out.w, 1e-4)


def pair(products: Products, **options: Any) -> tuple[Any, Any]:
    """Torch's module and ours, of the same weights."""
    plain = torch.nn.MultiheadAttention(16, 4, **options)
    ours = nn.MultiheadAttention(16, 4, products=products, **options)
    with torch.no_grad():
        for p in plain.parameters():
            if p.ndim == 1:
                p.copy_(normal(*p.shape))
    round_weights(plain)
    assert not ours.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    return plain, ours


CAUSAL = torch.nn.Transformer.generate_square_subsequent_mask(5)
PADDED = torch.arange(5) >= torch.tensor([[5], [3], [4]])
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights of heads": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
    "causal": {"attn_mask": CAUSAL},
    "causal, hinted": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    "boolean mask": {"attn_mask": CAUSAL != 0},
    "mask of every head": {"attn_mask": normal(12, 5, 5)},
    "padding": {"key_padding_mask": PADDED},
    "padding and mask": {"key_padding_mask": PADDED, "attn_mask": CAUSAL != 0, "need_weights": False},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("products", [FLOAT, EXACT], ids=["float", "exact"])
def test_unquantized_it_is_torchs(products: Products, batch_first: bool, call: str, training: bool) -> None:
    plain, ours = pair(products, batch_first=batch_first)
    plain.train(training)
    ours.train(training)
    x = normal(3, 5, 16) if batch_first else normal(5, 3, 16)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    want, weights = plain(one, one, one, **CALLS[call])
    y, ours_weights = ours(two, two, two, **CALLS[call])
    torch.testing.assert_close(y, want)
    assert (weights is None) == (ours_weights is None)
    if weights is not None:
        torch.testing.assert_close(ours_weights, weights)
    want.square().sum().backward()
    y.square().sum().backward()
    torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-4)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, p.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"bias": False}, {"kdim": 6, "vdim": 10}, {"kdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True}],
    ids=str,
)
def test_attention_to_something_else(options: Any) -> None:
    plain, ours = pair(EXACT, **options)
    q, k, v = normal(5, 3, 16), normal(9, 3, options.get("kdim", 16), seed=1), normal(9, 3, options.get("vdim", 16))
    for given in ((q, k, v), (q, k, k)) if k.shape == v.shape else ((q, k, v),):
        want, weights = plain(*given)
        y, ours_weights = ours(*given)
        torch.testing.assert_close(y, want)
        torch.testing.assert_close(ours_weights, weights)
        quantized = nn.MultiheadAttention(16, 4, products=SUN, **options)
        quantized.load_state_dict(plain.state_dict(), strict=False)
        rough = quantized(*given)[0]
        assert not torch.equal(rough, want)
        assert torch.nn.functional.mse_loss(rough, want) < 0.2 * want.var()
        rough.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in quantized.parameters() if p.grad is not None)


def test_one_sequence_without_a_batch() -> None:
    layer = nn.MultiheadAttention(16, 4, products=SUN)
    x = normal(5, 16)
    y, weights = layer(x, x, x)
    assert (y.shape, weights.shape) == ((5, 16), (5, 5))
    batched = x[:, None]
    torch.testing.assert_close(y, layer(batched, batched, batched)[0][:, 0])


# --- The fast path ----------------------------------------------------------------------------------------------------


LUQ4 = recipes.luq()


def encoder(**options: Any) -> torch.nn.TransformerEncoder:
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0, **options)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_an_encoder_in_evaluation_is_quantized(norm_first: bool) -> None:
    """Torch's fast path multiplies the float weights itself, where no gradient is asked for."""
    plain = encoder(norm_first=norm_first).eval()
    x = normal(3, 5, 16)
    with torch.no_grad():
        exact = plain(x)
        # Recipes keep first and last layers: all inner here.
        ours = prepare(torch.nn.Sequential(torch.nn.Linear(16, 16), plain, torch.nn.Linear(16, 16)), recipes.sun2020())
        inner = ours[1]
        inner.train()(x)  # PACT starts
        inner.eval()
        fast = inner(x)
    slow = inner(x)
    torch.testing.assert_close(fast, slow)
    assert not torch.allclose(fast, exact, atol=1e-3)
    layer = inner.layers[0]
    with torch.inference_mode():
        assert torch.equal(layer(x), layer.train()(x))


class OfAUser(torch.nn.TransformerEncoderLayer):
    """Torch's, by another name."""


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_a_subclass_in_evaluation_is_quantized() -> None:
    ours = prepare(torch.nn.TransformerEncoder(OfAUser(16, 4, 32, batch_first=True), 2), LUQ4).eval()
    x = normal(3, 5, 16)
    with torch.no_grad():
        fast = ours(x)
    torch.testing.assert_close(fast, ours(x))  # torch's attention has another kernel for either


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_would_nest_its_padding() -> None:
    """As torch makes one: in evaluation it hands its layers nested tensors, which only the fast path takes."""
    ours = prepare(torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2), LUQ4)
    x = normal(3, 5, 16)
    ours.eval()
    slow = ours(x, src_key_padding_mask=PADDED)
    with torch.no_grad():
        fast = ours(x, src_key_padding_mask=PADDED)
    torch.testing.assert_close(fast[~PADDED], slow[~PADDED])


def test_a_whole_transformer() -> None:
    model = prepare(torch.nn.Transformer(16, 4, 2, 2, 32, batch_first=True, dropout=0.0), recipes.sun2020())
    x, y = normal(2, 5, 16), normal(2, 3, 16, seed=1)
    model(x, y).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    kinds = [type(m) for m in model.decoder.modules()]
    assert kinds.count(nn.MultiheadAttention) >= 3
    model.eval()
    with torch.no_grad():
        fast = model(x, y)
    torch.testing.assert_close(fast, model(x, y))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_one_attention_in_evaluation_is_quantized() -> None:
    layer = nn.MultiheadAttention(16, 4, batch_first=True, products=SUN).eval()
    x = normal(3, 5, 16)
    with torch.no_grad():
        fast = layer(x, x, x, need_weights=False)[0]
    slow = layer(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(fast, slow)
    exact = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    exact.load_state_dict({k: v for k, v in layer.state_dict().items() if k in exact.state_dict()})
    assert not torch.allclose(fast, exact(x, x, x)[0], atol=1e-3)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_of_ours(norm_first: bool) -> None:
    """Unquantized it is torch's, in training and in evaluation, whatever way it takes."""
    options: dict[str, Any] = {"batch_first": True, "dropout": 0.0, "norm_first": norm_first, "activation": "gelu"}
    plain = torch.nn.TransformerEncoderLayer(16, 4, 32, **options)
    round_weights(plain)
    x = normal(3, 5, 16)
    for products in (FLOAT, EXACT):
        ours = nn.TransformerEncoderLayer(16, 4, 32, products=products, **options)
        assert not ours.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
        for training in (True, False):
            with torch.set_grad_enabled(training):
                want = plain.train(training)(x, src_key_padding_mask=PADDED)
                got = ours.train(training)(x, src_key_padding_mask=PADDED)
            torch.testing.assert_close(got[~PADDED], want[~PADDED])
    rough = nn.TransformerEncoderLayer(16, 4, 32, products=SUN, **options)
    rough.load_state_dict(plain.state_dict(), strict=False)
    assert not torch.allclose(rough.eval()(x), plain.eval()(x), atol=1e-3)


@pytest.mark.parametrize(
    ("masks", "error", "says"),
    [
        ({"key_padding_mask": torch.zeros(2, 5, dtype=torch.uint8)}, TypeError, "key_padding_mask.*uint8"),
        ({"attn_mask": torch.zeros(4, 5, dtype=torch.int64)}, TypeError, "attn_mask.*int64"),
        (
            {"key_padding_mask": torch.zeros(1, 5, dtype=torch.bool)},
            lb.Error,
            r"key_padding_mask.*\(1, 5\), not \(2, 5\)",
        ),
        ({"attn_mask": torch.zeros(5, 4)}, lb.Error, r"attn_mask.*\(4, 5\) or \(4, 4, 5\)"),
        ({"attn_mask": torch.zeros(2, 4, 5)}, lb.Error, r"attn_mask.*\(2, 4, 5\)"),
    ],
)
def test_masks_that_do_not_fit_are_named(masks: dict[str, Tensor], error: type[Exception], says: str) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True, products=SUN)
    with pytest.raises(error, match=says):
        layer(torch.ones(2, 4, 8), torch.ones(2, 5, 8), torch.ones(2, 5, 8), **masks)


def test_keys_of_another_batch_are_named() -> None:
    with pytest.raises(lb.Error, match=r"key, value: \(1, 5\)"):
        nn.MultiheadAttention(8, 2, batch_first=True, products=SUN)(
            torch.ones(2, 4, 8), torch.ones(1, 5, 8), torch.ones(1, 5, 8)
        )
