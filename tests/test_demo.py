"""The demo: its gradients, its votes, its messages, and what it leaves on the disk.

What needs only NumPy runs here on made-up images; the runs of the whole program need the extra ``demo``.
"""

import math
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import lowbit as lb

DEMO = Path(__file__).resolve().parents[1] / "experiments" / "demo"
sys.path.insert(0, str(DEMO))

import data  # noqa: E402
import network  # noqa: E402
import training  # noqa: E402
import workers  # noqa: E402

MISSING = [name for name in ("sklearn", "matplotlib", "tqdm") if find_spec(name) is None]
needs_the_extra = pytest.mark.skipif(bool(MISSING), reason=f"not installed (extra `demo`): {', '.join(MISSING)}")


def made_up_images(n: int = 256, inputs: int = 16) -> data.Images:
    """Ten blobs that a network can learn."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 10, n)
    pixels = rng.random((10, inputs))[labels] + rng.normal(0, 0.05, (n, inputs))
    return data.Images("blobs", np.clip(pixels, 0, 1).astype(np.float32), labels, rate=0.03)


# ---- the two-phase gradient, a second time, one number after the other


def slow_int4(row: list[float]) -> list[float]:
    low, high = min(row), max(row)
    step = (high - low) / 15 or 1.0
    return [round((x - low) / step) * step + low for x in row]


def slow_radix4(t: float, *, odd: bool) -> float:
    """Round by the thresholds of the paper: 0.625 * 4^n upwards is 4^n; the odd phase has half of everything."""
    phase = 0.5 if odd else 1.0
    below = [0.0] + [phase * 4.0**n for n in range(-3, 4) if abs(t) >= phase * 0.625 * 4.0**n]
    return math.copysign(below[-1], t)


def slow_gradients(
    weights: list[np.ndarray], biases: list[np.ndarray], scales: list[float], x: np.ndarray, labels: np.ndarray
) -> list[np.ndarray]:
    rounded_weights = [np.reshape(slow_int4(w.ravel().tolist()), w.shape) for w in weights]
    grads = [np.zeros(a.shape) for pair in zip(weights, biases, strict=True) for a in pair]
    for image, label in zip(x.tolist(), labels, strict=True):
        inputs, rounded, value = [], [], image
        for wq, b in zip(rounded_weights, biases, strict=True):
            inputs.append(value)
            rounded.append(slow_int4(value))
            value = [
                sum(rounded[-1][i] * wq[i, j] for i in range(wq.shape[0])) + float(b[j]) for j in range(wq.shape[1])
            ]
            scores, value = value, [max(v, 0.0) for v in value]
        total = sum(math.exp(s) for s in scores)
        dy = [(math.exp(s) / total - (j == label)) / len(x) for j, s in enumerate(scores)]
        for k in reversed(range(len(weights))):
            for j, g in enumerate(dy):
                odd = slow_radix4(g * scales[k], odd=True) / scales[k]
                grads[2 * k + 1][j] += odd
                for i, a in enumerate(rounded[k]):
                    grads[2 * k][i, j] += a * odd
            even = [slow_radix4(g * scales[k], odd=False) / scales[k] for g in dy]
            dy = [
                sum(even[j] * rounded_weights[k][i, j] for j in range(len(even))) * (inputs[k][i] > 0)
                for i in range(len(inputs[k]))
            ]
    return grads


def small_network() -> tuple[network.Network, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    net = network.new_network((6, 8, 7, 5), seed=1)
    for layer, scale in zip(net, (2.0**7, 2.0**8, 2.0**8), strict=True):
        layer.bias[:] = rng.normal(0, 0.1, layer.bias.shape)
        layer.grad_scale.scale = scale
    return net, rng.random((9, 6), dtype=np.float32), rng.integers(0, 5, 9)


def test_two_phase_gradients_equal_a_slow_reference():
    net, x, labels = small_network()
    grads, _ = network.gradients(net, x, labels, network.TWO_PHASE)
    expected = slow_gradients(
        [layer.weight for layer in net],
        [layer.bias for layer in net],
        [layer.grad_scale.scale for layer in net],
        x,
        labels,
    )
    for got, want in zip(grads, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


def test_the_phases_differ_where_they_should():
    net, x, labels = small_network()
    one, _ = network.gradients(net, x, labels, network.ONE_PHASE)
    two, _ = network.gradients(net, x, labels, network.TWO_PHASE)
    for a, b in zip(one, two, strict=True):
        assert not np.array_equal(a, b)


def test_float32_gradients_are_derivatives():
    net, x, labels = small_network()
    grads, _ = network.gradients(net, x, labels, network.FLOAT32)

    def loss() -> float:
        scores = network.forward(net, x, network.FLOAT32)[0].astype(np.float64)
        return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(labels)), labels]))

    for parameter, grad in zip(network.parameters(net), grads, strict=True):
        before, h = parameter.flat[0], np.float32(2.0**-7)
        parameter.flat[0] = before + h
        up = loss()
        parameter.flat[0] = before - h
        down = loss()
        parameter.flat[0] = before
        assert (up - down) / (2 * h) == pytest.approx(grad.flat[0], rel=0.02, abs=2e-5)


# ---- GradScale


@pytest.mark.parametrize(
    ("largest", "vote"),
    [
        (0.0, 1),
        (32.0, 1),
        (np.nextafter(np.float32(32), np.float32(33)), 0),
        (64.0, 0),
        (np.nextafter(np.float32(64), np.float32(65)), -1),
        (np.inf, -1),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 2.0**10, 2.0**-5])
def test_a_vote_is_the_papers(largest, vote, scale):
    dy = np.array([[0, -largest], [largest / 3, 0]], np.float32) / np.float32(scale)
    assert network.GradScale(scale).vote(dy) == vote


def test_votes_move_the_scale_by_the_sign_of_their_sum():
    for votes, scale in ((8, 16.0), (1, 16.0), (0, 8.0), (-1, 4.0), (-8, 4.0)):
        grad_scale = network.GradScale(8.0)
        grad_scale.update(votes)
        assert grad_scale.scale == scale


@pytest.mark.parametrize(("start", "votes"), [(2.0**126, 1), (2.0**-126, -1)])
def test_a_layer_without_gradients_keeps_a_scale_that_formats_take(start, votes):
    grad_scale = network.GradScale(start)
    grad_scale.update(votes)
    assert grad_scale.scale == start
    network.round_gradient(np.zeros((2, 2), np.float32), "radix4", grad_scale)


# ---- messages


@pytest.mark.parametrize("channel", workers.CHANNELS, ids=lambda channel: channel.scheme or "float32")
def test_a_message_weighs_what_it_says_and_keeps_its_promise(channel):
    array = np.random.default_rng(5).normal(0, 0.01, (37, 11)).astype(np.float32)
    largest = np.abs(array).max()
    received = np.zeros(array.shape)
    rounds = 400
    for number in range(rounds):
        key = lb.Key(9).fold(number)
        message = workers.send(array, channel, key, sender=3)
        assert message.nbytes == (4 * array.size if channel.scheme is None else math.ceil(array.size / 8) + 4)
        received += workers.receive(message, array.shape, channel, key, sender=3)
    # Unbiased: the deviation of a mean of `rounds` numbers, each off by at most half the range (rms), four times over.
    margin = 0.0 if channel.scheme is None else 4.5 * largest / math.sqrt(rounds)
    np.testing.assert_allclose(received / rounds, array, rtol=1e-6, atol=margin)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_a_gradient_that_has_no_range_arrives_as_what_it_is(value):
    array = np.full((3, 5), value, np.float32)
    message = workers.send(array, workers.CHANNELS[-1], lb.Key(1), 0)
    received = workers.receive(message, array.shape, workers.CHANNELS[-1], lb.Key(1), 0)
    assert message.nbytes == 4
    assert (received == 0).all() if value == 0 else np.isnan(received).all()


def test_workers_toss_different_coins():
    array = np.zeros(4096, np.float32)
    array[0] = 1.0
    sent = [workers.send(array, workers.CHANNELS[-1], lb.Key(1), worker).payload for worker in range(2)]
    differing = np.unpackbits(sent[0] ^ sent[1]).mean()
    assert 0.45 < differing < 0.55


def test_all_the_bytes_of_a_round_are_counted():
    images = made_up_images()
    net = network.new_network((16, 12, 10), seed=0)
    together = workers.work_together(
        net,
        images.pixels[:64],
        images.labels[:64],
        network.TWO_PHASE,
        channel=workers.CHANNELS[-1],
        key=lb.Key(0),
    )
    arrays = [array.size for array in network.parameters(net)]
    assert together.sent == sum(math.ceil(size / 8) + 4 for size in arrays) + workers.VOTE_BYTES * len(net)
    assert together.error == pytest.approx((1 / math.tanh(1) - 1) / 4, rel=0.1)


# ---- training


@pytest.mark.parametrize(
    "kind", [{"recipe": network.TWO_PHASE}, {"channel": workers.CHANNELS[-1]}], ids=("one", "eight")
)
def test_training_learns_and_repeats_itself(kind):
    images = made_up_images(640)
    first, second = (training.train(images, seed=1, rounds=140, **kind) for _ in range(2))
    assert first.accuracies == second.accuracies
    assert first.accuracies[0] < 30
    assert first.accuracies[-1] > 60
    for a, b in zip(network.parameters(first.network), network.parameters(second.network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shades_are_counted_and_the_error_is_half_a_step_at_most():
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None]
    shades = data.count_shades(ramp)
    assert (shades.before, shades.after) == (256, 16)
    assert 0.9 / 30 < shades.largest_error <= 1 / 30 + 1e-6
    assert shades.rms_error == pytest.approx(1 / 15 / math.sqrt(12), rel=0.05)


# ---- the whole program


def start(folder: Path, *options: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(DEMO), "--quick", *options], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@needs_the_extra
def test_the_demo_writes_its_picture_and_prints_its_table(tmp_path):
    demo = start(tmp_path)
    out, err = demo.communicate(timeout=120)
    assert demo.returncode == 0, err.decode()
    assert [path.name for path in tmp_path.iterdir()] == ["demo.png"]
    png = (tmp_path / "demo.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    for name in (*network.RECIPES, *workers.CHANNELS):
        assert name.name in out.decode()


@needs_the_extra
def test_an_interrupt_leaves_no_file_and_one_calm_line(tmp_path):
    demo = start(tmp_path)
    assert demo.stderr is not None
    first = os.read(demo.stderr.fileno(), 1)  # the first progress line: the work has begun
    demo.send_signal(signal.SIGINT)
    out, err = demo.communicate(timeout=60)
    assert first
    assert demo.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert b"Traceback" not in err
    assert err.decode().rstrip().splitlines()[-1] == "Stopped. Nothing was written."
    assert out == b""


@needs_the_extra
def test_a_picture_half_written_never_shows(tmp_path):
    import picture

    class Broken:
        def savefig(self, path: Path, **options: object) -> None:
            path.write_bytes(b"half a picture")
            raise KeyboardInterrupt

    (tmp_path / "demo.png").write_bytes(b"the last run's")
    with pytest.raises(KeyboardInterrupt):
        picture.save(Broken(), tmp_path / "demo.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the last run's"]


@needs_the_extra
@pytest.mark.parametrize(
    ("options", "named"),
    [(["--out", "no/such/folder.png"], "--out"), (["--seeds", "1"], "--seeds"), (["--rate", "nan"], "--rate")],
)
def test_a_bad_option_is_named_before_any_work(tmp_path, options, named):
    demo = start(tmp_path, *options)
    _, err = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert named in err.decode()
