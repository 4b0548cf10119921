"""How well few bits estimate the mean of 1 to 1000 clients' vectors, and how fast: docs/results/mean_estimation.*.

Run ``make experiments``, or ``python experiments/mean_estimation.py`` where lowbit, scikit-learn, scipy and matplotlib
are installed. The papers' vectors have 2^20 numbers; ours have about 2^14, so that a thousand clients take minutes.
Errors of rotated vectors hardly depend on the length from a few thousand on.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from machine import watched
from numpy.typing import NDArray
from scipy import stats

import lowbit as lb
from lowbit import _core

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SEEDS = 5
MARKS = (1, 3, 10, 30, 100, 300, 1000)
ALONE = 50
SPEED_NUMBERS, SPEED_RUNS = 1 << 20, 9

#: Families of codecs by name; those of one family are a line of the picture.
FAMILIES: dict[str, list[lb.Codec]] = {
    "EDEN": [lb.Eden(bits) for bits in (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4)],
    "EDEN, entropy-coded": [lb.Eden(bits, entropy_coded=True) for bits in (0.1, 0.5, 1, 2, 4)],
    "QUIC-FL": [lb.QuicFl(bits) for bits in (1, 2, 3, 4)],
    "summable integers": [lb.Summable(bits) for bits in (1, 2, 4, 8)],
    "dither, no rotation": [lb.Dither(bits) for bits in (1, 2, 4)],
    "QSGD": [lb.Qsgd(levels) for levels in (1, 7, 127)],
    "TernGrad": [lb.TernGrad()],
    "INT4, stochastic": [lb.Packed("int4", block_size=32, rounding="stochastic")],
    "DRIVE+": [lb.DrivePlus()],
    "EDEN, least error (biased)": [lb.Eden(bits, "min_error") for bits in (0.5, 1, 2, 4)],
    "signs (biased)": [lb.Sign()],
    "EDEN, one rotation": [lb.Eden(1, rounds=1), lb.Eden(2, rounds=1)],
}
CODECS = [codec for family in FAMILIES.values() for codec in family]
ROTATIONS: list[lb.Codec] = [lb.Eden(1, rounds=1), lb.Eden(1)]


def lognormal(seed: int) -> NDArray[np.float32]:
    """Draw a vector of LogNormal(0, 1) numbers for each client."""
    return np.random.default_rng(seed).lognormal(size=(MARKS[-1], 1 << 14)).astype(np.float32)


def gradients(seed: int) -> NDArray[np.float32]:
    """Differentiate the loss of a network that has begun to learn digits, on 32 images for each client."""
    sys.path.insert(0, str(ROOT / "experiments" / "demo"))
    import data
    import network

    images = data.load("digits")
    net = network.new_network((images.pixels.shape[1], 128, 64, 10), seed)
    rng = np.random.default_rng(seed)

    def gradient(size: int) -> list[NDArray[np.float32]]:
        rows = rng.integers(len(images.labels), size=size)
        return network.gradients(net, images.pixels[rows], images.labels[rows], network.FLOAT32)[0]

    for _ in range(50):
        for weights, slope in zip(network.parameters(net), gradient(64), strict=True):
            weights[...] -= np.float32(0.1) * slope
    return np.array([np.concatenate([g.ravel() for g in gradient(32)]) for _ in range(MARKS[-1])])


def spike(_: int) -> NDArray[np.float32]:
    """Give every client (3, 1, 1, 0, ..., 0), whose signs after one rotation are always those of one column."""
    x = np.zeros((MARKS[-1], 4096), np.float32)
    x[:, :3] = 3, 1, 1
    return x


@dataclass(frozen=True)
class Data:
    """Vectors, shape (clients, numbers), and the codecs that are tried on them."""

    title: str
    numbers: int
    draw: Callable[[int], NDArray[np.float32]]
    codecs: list[lb.Codec]


DATA = {
    "lognormal": Data("LogNormal(0, 1), 16,384 numbers", 1 << 14, lognormal, CODECS),
    "gradients": Data("Gradients of a network on digits, 17,226 numbers", 17226, gradients, CODECS),
    "spike": Data("(3, 1, 1, 0, ..., 0), 4,096 numbers", 4096, spike, ROTATIONS),
}


@dataclass
class Measured:
    """One codec on one kind of data, a value for each seed."""

    alone: list[float] = field(default_factory=list)
    means: dict[int, list[float]] = field(default_factory=lambda: {n: [] for n in MARKS})
    bits: list[float] = field(default_factory=list)


def run(name: str, seed: int) -> list[tuple[float, dict[int, float], float]]:
    """Measure every codec on the same vectors: the error of single messages, of means, and bits per number."""
    data = DATA[name]
    x = data.draw(seed)
    square = np.square(x, dtype=np.float64).sum(axis=1)
    exact = {n: x[:n].mean(axis=0, dtype=np.float64) for n in MARKS}
    key, rows = lb.Key(seed).fold("mean estimation"), []
    for codec in data.codecs:
        mean, means, alone, sent = lb.Mean(key), {}, [], 0
        for sender, v in enumerate(x):
            message = lb.encode(v, codec, key=key, sender=sender)
            mean.add(message)
            sent += len(message)
            if sender < ALONE:
                alone.append(float(np.sum((lb.decode(message, key=key).astype(np.float64) - v) ** 2) / square[sender]))
            n = sender + 1
            if n in MARKS:
                means[n] = float(np.sum((mean.result() - exact[n]) ** 2) / square[:n].mean())
        rows.append((float(np.mean(alone)), means, 8 * sent / x.size))
    return rows


def measure() -> dict[str, dict[lb.Codec, Measured]]:
    """Run all seeds on all data, two processes at a time."""
    jobs = [(name, seed) for seed in range(SEEDS) for name in DATA]
    results = {name: {codec: Measured() for codec in data.codecs} for name, data in DATA.items()}
    with ProcessPoolExecutor(max_workers=2) as pool:
        for (name, _), rows in zip(jobs, pool.map(run, *zip(*jobs, strict=True)), strict=True):
            for codec, (alone, means, bits) in zip(DATA[name].codecs, rows, strict=True):
                measured = results[name][codec]
                measured.alone.append(alone)
                measured.bits.append(bits)
                for n, error in means.items():
                    measured.means[n].append(error)
    return results


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval over seeds (Student's t)."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def speed() -> tuple[float, dict[lb.Codec, tuple[float, float, float]]]:
    """Time copying, and encode, decode and a share of decode_mean of every codec, in ns per number on one thread."""
    x, key = np.random.default_rng(0).standard_normal(SPEED_NUMBERS, np.float32), lb.Key(1)
    lb.set_num_threads(1)

    def nanoseconds(call: Callable[[], object]) -> float:
        call()
        times = []
        for _ in range(SPEED_RUNS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return float(np.median(times)) / SPEED_NUMBERS * 1e9

    target, times = np.empty_like(x), {}
    copy = nanoseconds(lambda: np.copyto(target, x))
    for codec in CODECS:
        messages = [lb.encode(x, codec, key=key, sender=s) for s in range(16)]
        times[codec] = (
            nanoseconds(lambda codec=codec: lb.encode(x, codec, key=key)),
            nanoseconds(lambda messages=messages: lb.decode(messages[0], key=key)),
            nanoseconds(lambda messages=messages: lb.decode_mean(messages, key=key)) / 16,
        )
    return copy, times


def short(codec: lb.Codec) -> str:
    """Write a codec with what is not the default."""
    text = repr(codec)
    for default in (
        ", scale='unbiased'", ", rounds=2", ", entropy_coded=False", ", low=None, high=None", "rounds=2", "scale='l1'",
        "bits=", "format=",
    ):  # fmt: skip
        text = text.replace(default, "")
    return text.replace(".0,", ",").replace(".0)", ")").replace("scale=", "")


def number(value: float, half: float | None = None) -> str:
    """Write a number, and how far it may be off."""
    text = f"{value:.4g}" if value >= 1e-4 else f"{value:.2e}"
    if half is None:
        return text
    return f"{text} ± {half:.0f}" if half >= 10 else f"{text} ± {half if half > 1e-12 else 0:.1g}"


INTRODUCTION = """# Mean estimation: what few bits cost

Made by `make experiments` (`experiments/mean_estimation.py`).

NMSE is the squared error of the estimated mean over the mean squared norm of the clients' vectors. For unbiased codecs
it falls as one over the number of clients n, so that `n x NMSE` stays the error of one message. All rows of a table
saw the same vectors and keys: {seeds} seeds, {clients} clients each; ± is half of a 95 % interval over seeds. Bits
count whole messages: headers, scales, padding, checksums. *Expected* is what `expected_error` says: of codecs that do
not rotate, for normal or uniform numbers, which these are not. The papers' vectors have 2^20 numbers; these are
shorter, so that a thousand clients take minutes ({seconds:.0f} s here, on two processes).

![Errors against bits and against clients](mean_estimation.png)

What one sees:

* Rotated, both kinds of vectors cost what is expected of any vector, for one client and for the mean of a thousand.
  (Gradients a little less: their last layer, where much of the energy is, lies in small blocks that are part padding.)
* At one bit `Eden` is nearest to the limit 1 / (4^bits - 1) that no code passes for normal numbers, and its
  entropy-coded kind is nearer still, most below one bit. `QuicFl` costs 2.6 times as much at one bit, nothing at four.
* Without rotation a few large numbers set the scale, and one bit costs tens of times as much: `Dither`, `TernGrad`,
  `Qsgd`.
* Biased codecs are better for one client (0.36 against 0.57), worse from about ten on, where vectors are partly alike
  as here, and do not improve beyond a hundred: what is left is the bias. `Sign` on gradients likewise. (On LogNormal
  numbers, which are all positive, `Sign` sends nothing but their mean.)
* `Summable` clips the same few numbers for all clients, for they share the rotation: with eight bits that is what is
  left.
* One rotation does as well as two on these vectors, and fails where few numbers are large: all of the error is bias.
* At these lengths the header and the checksums are 0.05 bits of each number: `bits_per_element` tells for others.
"""

TABLE = """
## {title}

| codec | unbiased | bits | expected | one message | n x NMSE, n = 10 | 100 | 1000 | NMSE, n = 1000 |
|---|---|---|---|---|---|---|---|---|
"""

SPEED = """
## Speed

ns per number on one thread: {numbers:,} numbers, medians of {runs}; {machine}, CPU level {level}; copying the array
takes {copy:.2f}. `decode_mean` is for each of 16 messages. {others}

| codec | encode | decode | decode_mean |
|---|---|---|---|
"""


def report(results: dict[str, dict[lb.Codec, Measured]], seconds: float) -> str:
    """Write the page."""
    text = INTRODUCTION.format(seeds=SEEDS, clients=MARKS[-1], seconds=seconds)
    for name, data in DATA.items():
        text += TABLE.format(title=data.title)
        for codec, measured in results[name].items():
            cells = [f"`{short(codec)}`", codec.unbiased, f"{np.mean(measured.bits):.3f}"]
            cells += [number(codec.expected_error(data.numbers)), number(*interval(measured.alone))]
            for n in (10, 100, 1000):
                value, half = interval(measured.means[n])
                cells.append(number(n * value, n * half))
            cells.append(number(interval(measured.means[1000])[0]))
            text += f"| {' | '.join(cells)} |\n"
    return text


def report_speed() -> str:
    """Time the codecs and write what came out."""
    (copy, times), others = watched(speed)
    text = SPEED.format(
        numbers=SPEED_NUMBERS,
        runs=SPEED_RUNS,
        machine=platform.machine(),
        level=_core.cpu_level(),
        copy=copy,
        others=others,
    )
    for codec, (encode, decode, mean) in times.items():
        text += f"| `{short(codec)}` | {encode:.2f} | {decode:.2f} | {mean:.2f} |\n"
    return text


COLOURS = {
    "EDEN": "tab:blue",
    "EDEN, entropy-coded": "tab:cyan",
    "QUIC-FL": "tab:orange",
    "summable integers": "tab:green",
    "dither, no rotation": "tab:purple",
    "QSGD": "tab:brown",
    "TernGrad": "tab:red",
    "INT4, stochastic": "tab:pink",
}


def draw(results: dict[str, dict[lb.Codec, Measured]]) -> None:
    """Draw errors against bits, and against clients."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12.5, 9.5), layout="constrained")
    bits = np.geomspace(0.08, 9, 200)
    for panel, name in zip(axes[0], ("lognormal", "gradients"), strict=True):
        panel.plot(bits, 1 / (4**bits - 1), color="0.6", ls=":", label="limit: 1 / (4$^{bits}$ - 1)")
        for family, colour in COLOURS.items():
            rows = [results[name][codec] for codec in FAMILIES[family]]
            x = [np.mean(row.bits) for row in rows]
            y = [1000 * np.mean(row.means[1000]) for row in rows]
            panel.plot(x, y, "o-", ms=4.5, lw=1.4, color=colour, label=family)
        panel.set(xscale="log", yscale="log", xlabel="bits for each number, all counted", xlim=(0.08, 10))
        panel.set_title(DATA[name].title + ": 1000 clients", fontsize=11)
        panel.set_xticks([0.1, 0.25, 0.5, 1, 2, 4, 8], ["0.1", "¼", "½", "1", "2", "4", "8"])
        panel.minorticks_off()
    axes[0, 0].set_ylabel("n x NMSE of the mean")
    axes[0, 0].legend(frameon=False, fontsize=8.5, loc="lower left")

    panel, n = axes[1, 0], np.array(MARKS)
    shown: list[tuple[lb.Codec, str, str]] = [
        (lb.Eden(1), "EDEN, unbiased", "tab:blue"),
        (lb.Eden(1, "min_error"), "EDEN, least error (biased)", "tab:gray"),
        (lb.QuicFl(1), "QUIC-FL", "tab:orange"),
        (lb.TernGrad(), "TernGrad, 1.6 bits", "tab:red"),
        (lb.Sign(), "signs (biased)", "black"),
    ]
    for codec, label, colour in shown:
        y = [np.mean(results["gradients"][codec].means[k]) for k in MARKS]
        panel.plot(n, y, "o-", ms=4.5, lw=1.4, color=colour, label=label)
    panel.set(xscale="log", yscale="log", xlabel="clients n", ylabel="NMSE of the mean")
    panel.set_title("About one bit, gradients: bias does not average out", fontsize=11)
    panel.legend(frameon=False, fontsize=8.5, loc="lower left")

    panel = axes[1, 1]
    for rounds, style in ((1, "s--"), (2, "o-")):
        for name, colour, label in (("spike", "tab:red", "(3, 1, 1, 0, ...)"), ("gradients", "tab:blue", "gradients")):
            y = [np.mean(results[name][lb.Eden(1, rounds=rounds)].means[k]) for k in MARKS]
            many = "one rotation" if rounds == 1 else "two rotations"
            panel.plot(n, y, style, ms=4.5, lw=1.4, color=colour, label=f"{label}, {many}")
    panel.set(xscale="log", yscale="log", xlabel="clients n")
    panel.set_title("EDEN at one bit: one rotation is biased where few numbers are large", fontsize=11)
    panel.legend(frameon=False, fontsize=8.5, loc="lower left")
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92", lw=0.7)
        panel.set_axisbelow(True)
    figure.savefig(RESULTS / "mean_estimation.png", dpi=110)


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results = measure()
    seconds = time.perf_counter() - start
    draw(results)
    (RESULTS / "mean_estimation.md").write_text(report(results, seconds) + report_speed())
    print(f"{RESULTS / 'mean_estimation.md'}: {seconds:.0f} s")


if __name__ == "__main__":
    main()
