"""Error feedback: nothing is lost, what is broken is not remembered, and biased codecs converge."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

import lowbit as lb
from support import assert_same

BIASED = [
    lb.Sign(),
    lb.Sign("l2"),
    lb.Packed("int4"),
    lb.Packed("radix4_odd", rounding="stochastic"),
    lb.Eden(0.25, "min_error"),
    lb.Eden(1, "min_error"),
    lb.Eden(2, "norm"),
    lb.Summable(3),
    lb.Float32(),
]


@pytest.mark.parametrize("codec", BIASED, ids=str)
def test_what_was_decoded_and_what_is_left_is_all(codec: lb.Codec) -> None:
    rng, feedback = np.random.default_rng(0), lb.ErrorFeedback()
    given, decoded = np.zeros(1500), np.zeros(1500)
    for step in range(20):
        x = rng.standard_normal(1500).astype(np.float32)
        key = lb.Key(1).fold("step", step)
        given += x
        decoded += lb.decode(feedback.encode(x, codec, key=key, sender=3), key=key)
        feedback.commit()
    # float32 roundings, of numbers of a few dozen at most.
    np.testing.assert_allclose(decoded + feedback.error, given, atol=1e-3)
    assert feedback.error.dtype == np.float32


def skewed_noise(steps: int, d: int) -> np.ndarray:
    """3 with probability 1/4, else -1: the mean is 0, the sign mostly negative."""
    return np.where(np.random.default_rng(5).random((steps, d)) < 0.25, 3.0, -1.0).astype(np.float32)


def test_sign_converges_with_feedback_and_stalls_without() -> None:
    # Minimise |x|^2 / 2 from gradients with skewed noise: plain signs follow the median, which is not the minimum.
    steps, d, rate = 3000, 64, np.float32(0.01)
    noise = skewed_noise(steps, d)
    start = np.linspace(1, 3, d, dtype=np.float32)
    plain, fed, exact = start.copy(), start.copy(), start.copy()
    feedback = lb.ErrorFeedback()
    for step in range(steps):
        plain -= lb.decode(lb.encode(rate * (plain + noise[step]), lb.Sign()))
        fed -= lb.decode(feedback.encode(rate * (fed + noise[step]), lb.Sign()))
        feedback.commit()
        exact -= rate * (exact + noise[step])
    far = [float(np.sqrt(np.mean(x.astype(np.float64) ** 2))) for x in (plain, fed, exact)]
    assert far[0] > 0.5
    assert far[1] < 0.25
    assert far[1] < 2 * far[2]


def test_codecs_that_would_make_the_memory_grow_are_refused() -> None:
    x = np.random.default_rng(0).standard_normal(4096)
    for codec in (lb.Eden(0.05, "norm"), lb.Eden(0.3, "norm"), lb.Summable(1)):
        with pytest.raises(lb.Error, match="the memory would grow for ever"):
            lb.ErrorFeedback().encode(x, codec, key=1)
    for codec in (lb.Packed("uint4"), lb.OneBit("optimal_biased", -10, 10)):
        with pytest.raises(lb.Error, match="has no place for what earlier messages left out"):
            lb.ErrorFeedback().encode(x, codec, key=1)


def test_unbiased_codecs_are_refused() -> None:
    for codec in (lb.Eden(1), lb.Drive(), lb.DrivePlus(), lb.QuicFl(2), lb.Dither(4), lb.TernGrad(), lb.Qsgd(100)):
        with pytest.raises(lb.Error, match=r"codec: .* is unbiased"):
            lb.ErrorFeedback().encode(np.ones(4), codec, key=1)
    with pytest.raises(TypeError, match="codec"):
        lb.ErrorFeedback().encode(np.ones(4), "sign")


def test_discard_forgets_the_round() -> None:
    x, feedback = np.float32([1, 2, 4]), lb.ErrorFeedback()
    first = feedback.encode(x, lb.Sign())
    feedback.discard()
    assert feedback.error is None
    assert feedback.encode(x, lb.Sign()) == first
    feedback.commit()
    error = feedback.error.copy()
    feedback.encode(x, lb.Sign())
    feedback.discard()
    feedback.discard()
    assert_same(feedback.error, error)


def test_a_round_must_be_closed() -> None:
    feedback = lb.ErrorFeedback()
    with pytest.raises(lb.Error, match=r"^commit: there is no message"):
        feedback.commit()
    feedback.encode(np.ones(3), lb.Sign())
    for call in (
        lambda: feedback.encode(np.ones(3), lb.Sign()),
        lambda: feedback.rescale(2),
        feedback.state_dict,
        lambda: feedback.load_state_dict({"error": None}),
    ):
        with pytest.raises(lb.Error, match="commit or discard"):
            call()
    feedback.commit()
    with pytest.raises(lb.Error, match=r"^commit: there is no message"):
        feedback.commit()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_round_that_is_not_finite_is_not_remembered(bad: float) -> None:
    feedback, x = lb.ErrorFeedback(), np.float32([1, 2, 4])
    broken = np.float32([1, bad, 4])
    message = feedback.encode(broken, lb.Sign())
    assert not lb.describe(message).finite
    assert np.isnan(lb.decode(message)).all()
    feedback.commit()
    assert feedback.error is None
    feedback.encode(x, lb.Sign())
    feedback.commit()
    error = feedback.error.copy()
    feedback.encode(broken, lb.Sign())
    feedback.commit()
    assert_same(feedback.error, error)


def test_a_sum_beyond_float32_is_not_remembered() -> None:
    feedback, huge = lb.ErrorFeedback(), np.float32([3e38, 1e38])
    feedback.encode(huge, lb.Sign())
    feedback.commit()
    error = feedback.error.copy()
    assert error[0] > 0
    message = feedback.encode(np.float32([3.4e38, 0]), lb.Sign())
    feedback.commit()
    assert np.isnan(lb.decode(message)).all()
    assert_same(feedback.error, error)


def test_mappings() -> None:
    feedback, rng = lb.ErrorFeedback(), np.random.default_rng(0)
    given, decoded = np.zeros((40, 50)), np.zeros((40, 50))
    for step in range(5):
        w = rng.standard_normal((40, 50)).astype(np.float32)
        message = feedback.encode({"step": step, "b": np.float16([1, 2]), "w": w}, lb.Sign(), sender=2)
        feedback.commit()
        y = lb.decode(message)
        assert list(y) == ["step", "b", "w"]
        assert (int(y["step"]), y["b"].dtype, y["b"].tolist()) == (step, np.float16, [1, 2])
        given += w
        decoded += y["w"]
    assert list(feedback.error) == ["w"]
    np.testing.assert_allclose(decoded + feedback.error["w"], given, atol=1e-4)


def test_other_arrays_are_refused() -> None:
    feedback = lb.ErrorFeedback()
    feedback.encode(np.ones((2, 3)), lb.Sign())
    feedback.commit()
    for other in (np.ones((3, 2)), np.ones(6), {"w": np.ones((2, 3))}):
        with pytest.raises(lb.Error, match=r"^x.*the memory has"):
            feedback.encode(other, lb.Sign(), min_elements=0)
    feedback.encode(np.ones((2, 3)), lb.Sign())
    named = lb.ErrorFeedback()
    named.encode({"a": np.ones(5), "b": np.ones(4)}, lb.Sign(), min_elements=0)
    named.commit()
    for other in (
        {"a": np.ones(5)},
        {"a": np.ones(5), "c": np.ones(4)},
        {"a": np.ones(5), "b": np.ones(3)},
        np.ones(5),
    ):
        with pytest.raises(lb.Error, match=r"^x.*the memory has"):
            named.encode(other, lb.Sign(), min_elements=0)


def test_inputs_are_not_changed() -> None:
    x = np.float32([1, 2, 4])
    before, feedback = x.copy(), lb.ErrorFeedback()
    for _ in range(2):
        feedback.encode(x, lb.Sign())
        feedback.commit()
    assert_same(x, before)
    with pytest.raises(ValueError, match="read-only"):
        feedback.error[0] = 1
    for half in (np.float16, np.float64):
        other = lb.ErrorFeedback()
        other.encode(x.astype(half), lb.Sign())
        other.commit()
        assert other.error.dtype == np.float32
    with pytest.raises(TypeError, match=r"^x: expected float16"):
        lb.ErrorFeedback().encode(np.arange(3), lb.Sign())


def test_a_generator_serves_private_noise() -> None:
    x = np.linspace(-1, 1, 100)
    feedback, codec = lb.ErrorFeedback(), lb.Packed("radix4_odd", rounding="stochastic")
    message = feedback.encode(x, codec, key=np.random.default_rng(0))
    feedback.commit()
    np.testing.assert_allclose(lb.decode(message) + feedback.error, x, atol=1e-6)


def test_rescale() -> None:
    feedback = lb.ErrorFeedback()
    feedback.rescale(3)
    feedback.encode(np.float32([1, 2, 4]), lb.Sign())
    feedback.commit()
    error = feedback.error.copy()
    feedback.rescale(0.5)
    assert_same(feedback.error, error / 2)
    for bad, kind in ((-1, lb.Error), (math.nan, lb.Error), (math.inf, lb.Error), (1e39, lb.Error), ("2", TypeError)):
        with pytest.raises(kind, match=r"^factor: "):
            feedback.rescale(bad)
    assert_same(feedback.error, error / 2)
    feedback.rescale(0)
    assert not feedback.error.any()


@pytest.mark.parametrize(
    "x", [np.linspace(-1, 2, 7), {"w": np.linspace(-1, 2, 7), "b": np.ones(2)}], ids=["one", "named"]
)
def test_state(x: Any) -> None:
    options: dict[str, Any] = {"codec": lb.Sign(), "min_elements": 0}
    feedback = lb.ErrorFeedback()
    assert feedback.state_dict() == {"error": None}
    feedback.encode(x, **options)
    feedback.commit()
    again = lb.ErrorFeedback()
    again.load_state_dict(pickle.loads(pickle.dumps(feedback.state_dict())))
    twin = copy.deepcopy(feedback)
    assert again.encode(x, **options) == feedback.encode(x, **options) == twin.encode(x, **options)
    again.commit()
    assert feedback.state_dict is not None
    again.load_state_dict({"error": None})
    assert again.error is None


def test_bad_state() -> None:
    feedback = lb.ErrorFeedback()
    for bad, error in [
        (None, TypeError),
        ({}, TypeError),
        ({"error": None, "more": 1}, TypeError),
        ({"error": [1.0]}, TypeError),
        ({"error": np.ones(3)}, TypeError),
        ({"error": {1: np.ones(3, np.float32)}}, TypeError),
        ({"error": np.float32([1, np.nan])}, lb.Error),
    ]:
        with pytest.raises(error):
            feedback.load_state_dict(bad)
    assert feedback.error is None
