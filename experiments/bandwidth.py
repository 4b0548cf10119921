"""When do messages of a few bits beat all-reduce? Our kernels' speed and a model of links: docs/results/bandwidth.*.

Run ``make experiments``, or ``python experiments/bandwidth.py`` where lowbit and matplotlib are installed.

The model. n workers average vectors of d numbers. Each has a link of so many bits per second, both ways at once, and
cores on which our kernels run as fast as on one core here, times their number. Sending and computing do not overlap.

* all-reduce of b bits: the faster of a ring, ``2 (n - 1) / n d b / link + 2 (n - 1) HOP``, and pipelined trees,
  ``2 d b / link + 2 log2(n) HOP``. Converting to and from b bits costs nothing.
* all-gather: everyone encodes once and reads all n messages: ``(n - 1) m(d) / link + log2(n) HOP``.
* two phases: everyone sends a part of d / n numbers to everyone, averages its part and sends the mean to everyone:
  ``(n - 1) (m_up(d / n) + m_down(d / n)) / link + 2 HOP + 2 (n - 1) SEND``.
* server: n messages go in by one link and n copies of the mean come out: ``n (m_up(d) + m_down(d)) / link + 2 HOP``.

m(d) is the length of a message, header and all, as ``bits_per_element`` tells it.
"""

from __future__ import annotations

import math
import os
import platform
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import watched

import lowbit as lb
from lowbit import _core

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
NUMBERS = 10**8
WORKERS = (2, 8, 64, 1000, 10_000, 100_000)
LINKS = (1e9, 10e9, 25e9, 100e9, 400e9)
#: The largest squared error of a mean, against the mean squared norm, at which ways are compared.
MOST_ERROR = 0.2
#: Seconds that one step of a collective takes beside its bits, and that one more message takes in an all-to-all.
HOP, SEND = 10e-6, 1e-6
SPEED_NUMBERS, SPEED_RUNS = 1 << 20, 9


@dataclass(frozen=True)
class Speed:
    """Seconds per number on one core."""

    encode: float
    decode: float
    mean: float


@dataclass(frozen=True)
class Cost:
    """What a way to average takes: bits through the narrowest link, seconds of waiting, seconds of one core."""

    bits: float
    waiting: float
    work: float = 0.0

    def seconds(self, link: float, cores: int) -> float:
        """Give the whole time on such a link and so many cores."""
        return self.bits / link + self.waiting + self.work / cores


@dataclass(frozen=True)
class Scheme:
    """A way to average, with its squared error as a share of the mean squared norm."""

    name: str
    cost: Callable[[int, float], Cost]
    error: Callable[[int], float]
    colour: str


def all_reduce(bits: int) -> Callable[[int, float], Cost]:
    """Give the cost of summing numbers of so many bits on the way; conversion is free."""

    def cost(n: int, link: float) -> Cost:
        ring = Cost(2 * (n - 1) / n * NUMBERS * bits, 2 * (n - 1) * HOP)
        tree = Cost(2 * NUMBERS * bits, 2 * math.ceil(math.log2(n)) * HOP)
        return min(ring, tree, key=lambda way: way.seconds(link, 1))

    return cost


def length(codec: lb.Codec, d: float) -> float:
    """Bits of a message of d numbers."""
    return codec.bits_per_element(max(1, round(d))) * d


def gather(codec: lb.Codec, speeds: dict[lb.Codec, Speed]) -> Callable[[int, float], Cost]:
    """Give the cost of sending every message to everyone."""
    speed = speeds[codec]

    def cost(n: int, _: float) -> Cost:
        work = NUMBERS * (speed.encode + n * speed.mean)
        return Cost((n - 1) * length(codec, NUMBERS), math.ceil(math.log2(n)) * HOP, work)

    return cost


def two_phases(up: lb.Codec, down: lb.Codec, speeds: dict[lb.Codec, Speed]) -> Callable[[int, float], Cost]:
    """Give the cost of averaging parts and collecting their means."""

    def cost(n: int, _: float) -> Cost:
        part = NUMBERS / n
        work = NUMBERS * (speeds[up].encode + speeds[up].mean + speeds[down].encode / n + speeds[down].decode)
        bits = (n - 1) * (length(up, part) + length(down, part))
        return Cost(bits, 2 * HOP + 2 * (n - 1) * SEND, work)

    return cost


def server(up: lb.Codec, down: lb.Codec, speeds: dict[lb.Codec, Speed]) -> Callable[[int, float], Cost]:
    """Give the cost of one server that reads everyone's message and sends the mean to everyone."""

    def cost(n: int, _: float) -> Cost:
        work = NUMBERS * (speeds[up].encode + n * speeds[up].mean + speeds[down].encode + speeds[down].decode)
        return Cost(n * (length(up, NUMBERS) + length(down, NUMBERS)), 2 * HOP, work)

    return cost


def error_once(codec: lb.Codec) -> Callable[[int], float]:
    """Give the error of a mean of messages."""
    return lambda n: codec.expected_error(NUMBERS) / n


def error_twice(up: lb.Codec, down: lb.Codec) -> Callable[[int], float]:
    """Give the error if the mean is coded once more, for alike vectors (where the mean is as large as they are)."""
    first, second = up.expected_error(NUMBERS), down.expected_error(NUMBERS)
    return lambda n: first / n + second * (1 + first / n)


HALF, ONE, TWO, FOUR, QUICK, FULL = lb.Eden(0.5), lb.Eden(1), lb.Eden(2), lb.Eden(4), lb.QuicFl(1), lb.Float32()


def schemes(speeds: dict[lb.Codec, Speed]) -> list[Scheme]:
    """List what is compared: the usual three, then ours."""

    def twice(name: str, up: lb.Codec, down: lb.Codec, colour: str) -> Scheme:
        return Scheme(name, two_phases(up, down, speeds), error_twice(up, down), colour)

    def once(name: str, codec: lb.Codec, colour: str) -> Scheme:
        return Scheme(name, gather(codec, speeds), error_once(codec), colour)

    return [
        Scheme("fp32 all-reduce", all_reduce(32), lambda _: 0.0, "black"),
        Scheme("bf16 all-reduce", all_reduce(16), lambda _: 0.0, "0.45"),
        Scheme("8-bit all-reduce", all_reduce(8), lambda _: math.nan, "0.7"),
        twice("4 bits, two phases", FOUR, FOUR, "tab:green"),
        twice("2 bits, two phases", TWO, TWO, "tab:olive"),
        twice("1 bit up, 4 down, two phases", ONE, FOUR, "tab:cyan"),
        twice("1 bit, two phases", ONE, ONE, "tab:blue"),
        twice("1/2 bit, two phases", HALF, HALF, "tab:purple"),
        once("1 bit, all-gather", ONE, "tab:red"),
        once("1 bit (QUIC-FL), all-gather", QUICK, "tab:orange"),
    ]


def servers(speeds: dict[lb.Codec, Speed]) -> list[Scheme]:
    """List ways with one server."""
    ways = [("fp32", FULL, FULL), ("4 bits", FOUR, FOUR), ("1 bit up, 4 down", ONE, FOUR)]
    ways += [("1 bit up (QUIC-FL), 4 down", QUICK, FOUR), ("1 bit", ONE, ONE)]
    return [
        Scheme(f"{name}, server", server(up, down, speeds), error_twice(up, down), "black") for name, up, down in ways
    ]


def measure(threads: int) -> dict[lb.Codec, Speed]:
    """Time our kernels: seconds per number, the median of several runs."""
    x, key = np.random.default_rng(0).standard_normal(SPEED_NUMBERS, np.float32), lb.Key(1)
    lb.set_num_threads(threads)

    def seconds(call: Callable[[], object]) -> float:
        call()
        times = []
        for _ in range(SPEED_RUNS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return float(np.median(times)) / SPEED_NUMBERS

    speeds = {}
    for codec in (HALF, ONE, TWO, FOUR, QUICK, FULL):
        messages = [lb.encode(x, codec, key=key, sender=s) for s in range(16)]
        speeds[codec] = Speed(
            seconds(lambda codec=codec: lb.encode(x, codec, key=key)),
            seconds(lambda messages=messages: lb.decode(messages[0], key=key)),
            seconds(lambda messages=messages: lb.decode_mean(messages, key=key)) / 16,
        )
    return speeds


def break_even(ours: Scheme, usual: Scheme, n: int, cores: int) -> float:
    """Find the link below which ours is faster; infinite if it always is, 0 if never."""
    low, high = 1e3, 1e15

    def wins(link: float) -> bool:
        return ours.cost(n, link).seconds(link, cores) < usual.cost(n, link).seconds(link, cores)

    if wins(high):
        return math.inf
    if not wins(low):
        return 0.0
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if wins(middle) else (low, middle)
    return low


def gigabits(link: float) -> str:
    return "always" if link == math.inf else "never" if link == 0 else f"{link / 1e9:.3g}"


PAGE = """# When do one-bit messages pay?

Made by `make experiments` (`experiments/bandwidth.py`, whose first lines are the model). {numbers:,} numbers are
averaged over n workers. The kernels' speeds were measured in this run, on one core; c cores are taken to be c times as
fast ({threads} threads here: encode {encode:.1f}, decode {decode:.1f} times). Sending and computing do not overlap; a
gradient hook that overlaps them gains for both sides, and more for whoever computes less.

![Time against link and workers](bandwidth.png)

## What the kernels need

ns per number on one core ({machine}, CPU level {level}). `decode_mean` is for each message. {others}

| codec | encode | decode | decode_mean |
|---|---|---|---|
"""

BELOW = """
## Below which link they win

Gbit/s of every worker's link, below which a way is faster than the usual one, with {cores} cores for each worker; left
out where it never is. *error* is the squared error of the mean over the mean squared norm, if vectors are alike: rows
are not of the same quality, and all-reduce in 32 bits has none.

| way | workers | error | beats fp32 below | bf16 | 8-bit |
|---|---|---|---|---|---|
"""

TIMES = """
## Seconds for one mean

With {cores} cores for each worker.

"""

SERVER = """
## One server

Everything passes the server's link, and the server reads all n messages ({cores} cores). Seconds for one mean:

"""

READING = """
## What to make of it

"Ours" is the fastest of the ways above that leaves an error of at most {most_error}; {cores} cores for each worker.

* **Slow links.** With {workers} workers on 1 Gbit/s, {slow}. At 10 Gbit/s, {ten}. The latter wins below about
{even:.3g} Gbit/s against bf16 and {even_fp32:.3g} against fp32.
* **Fast links.** On 100 Gbit/s, {hundred}. On 400 Gbit/s, {fourhundred}. On these cores it is the computing that
counts, {work:.2g} core-seconds whatever the link. Such links come with accelerators, on which computing costs less;
with kernels there this page would say something else.
* **One bit both ways** is fast, but the mean, coded a second time, keeps that second error: {twice:.2f} with 1,000
workers, where the mean before had {once:.4f}. One bit up and four down costs little more and leaves {down:.3f}.
* **All-gather ends early.** Everyone receives n - 1 messages and decodes n: one bit beats bf16 all-reduce on 1 Gbit/s
up to {gather} workers. Two phases need the same bits for any number of workers.
* **Very many workers.** With {most:,} workers a part is {part:,} numbers, of which a message makes {header:.2f} bits
each, not one: headers are what is sent. Average within a node or a rack first.
* **One server** is bound by its link where that is slow and by decoding where it is fast. `decode_mean` of one-bit
QUIC-FL, which rotates back once for all, takes {faster:.2f} times as long for each message as EDEN's.
"""


def wrapped(text: str) -> str:
    """Break the lines of a page's points anew."""
    points = text.replace("\n", " ").split(" * ")
    return "\n".join(
        textwrap.fill(f"* {point.strip()}", 120, subsequent_indent="  ", break_on_hyphens=False) for point in points
    )


def page(speeds: dict[lb.Codec, Speed], scaling: Speed, threads: int, others: str) -> str:
    """Write the page."""
    ways, cores = schemes(speeds), 16
    by_name = {way.name: way for way in ways}
    one, bf16, collected = by_name["1 bit, two phases"], by_name["bf16 all-reduce"], by_name["1 bit, all-gather"]
    text = PAGE.format(
        numbers=NUMBERS, threads=threads, encode=scaling.encode, decode=scaling.decode, machine=platform.machine(),
        level=_core.cpu_level(), others=others,
    )  # fmt: skip
    for codec, speed in speeds.items():
        cells = [f"{1e9 * each:.2f}" for each in (speed.encode, speed.decode, speed.mean)]
        text += f"| `{codec}` | {' | '.join(cells)} |\n"

    text += BELOW.format(cores=cores)
    for way in ways[3:]:
        for n in WORKERS:
            cells = [gigabits(break_even(way, usual, n, cores)) for usual in ways[:3]]
            if set(cells) != {"never"}:
                text += f"| {way.name} | {n:,} | {way.error(n):.2g} | {' | '.join(cells)} |\n"

    def table(rows: list[Scheme], links: tuple[float, ...], workers: tuple[int, ...]) -> str:
        columns = [(n, link) for n in workers for link in links]
        head = [f"n = {n:,}, {link / 1e9:g} Gbit/s" for n, link in columns]
        lines = ["| way | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
        for way in rows:
            cells = [f"{way.cost(n, link).seconds(link, cores):.3g}" for n, link in columns]
            lines.append(f"| {way.name} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    text += TIMES.format(cores=cores) + table(ways, (1e9, 10e9, 100e9, 400e9), (8, 1000))
    text += SERVER.format(cores=cores) + table(servers(speeds), (1e9, 100e9), (8, 1000))

    n = 64
    fair = [way for way in ways[3:] if way.error(n) <= MOST_ERROR]

    def fastest(of: list[Scheme], link: float) -> Scheme:
        return min(of, key=lambda way: way.cost(n, link).seconds(link, cores))

    def verdict(link: float) -> str:
        ours, usual = fastest(fair, link), fastest(ways[:2], link)
        rate = usual.cost(n, link).seconds(link, cores) / ours.cost(n, link).seconds(link, cores)
        if rate > 1:
            return f"ours ({ours.name}) is {rate:.2g} times as fast as {usual.name}"
        return f"ours ({ours.name}) loses: it takes {1 / rate:.2g} times as long as {usual.name}"

    best, slow, part = fastest(fair, 10e9), LINKS[0], NUMBERS // WORKERS[-1]
    gathered = [k for k in range(2, 2000) if break_even(collected, bf16, k, cores) > slow]
    head, points = READING.format(
        most_error=MOST_ERROR,
        cores=cores,
        workers=n,
        slow=verdict(slow),
        ten=verdict(10e9),
        hundred=verdict(100e9),
        fourhundred=verdict(400e9),
        even=break_even(best, bf16, n, cores) / 1e9,
        even_fp32=break_even(best, ways[0], n, cores) / 1e9,
        work=best.cost(n, slow).work,
        twice=one.error(1000),
        once=collected.error(1000),
        down=by_name["1 bit up, 4 down, two phases"].error(1000),
        gather=max(gathered, default=1),
        most=WORKERS[-1],
        part=part,
        header=ONE.bits_per_element(part),
        faster=speeds[QUICK].mean / speeds[ONE].mean,
    ).split("\n* ", 1)
    return text + head + "\n" + wrapped(points) + "\n"


def draw(speeds: dict[lb.Codec, Speed]) -> None:
    """Draw seconds against links and against workers, and what is fastest where."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    ways, cores = schemes(speeds), 16
    figure, axes = plt.subplots(2, 2, figsize=(12.5, 9.5), layout="constrained")
    links, workers = np.geomspace(1e8, 1e12, 120), np.unique(np.geomspace(2, 1e5, 60).astype(int))

    def lines(panel: plt.Axes, x: np.ndarray, y: Callable[[Scheme, float], float]) -> None:
        for way in ways:
            style = {"lw": 2.0, "ls": "--"} if "all-reduce" in way.name else {"lw": 1.5}
            panel.plot(x, [y(way, each) for each in x], color=way.colour, label=way.name, **style)
        panel.set(xscale="log", yscale="log")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92", lw=0.7)

    def fastest(n: int, link: float, many: int) -> int:
        fair = (k for k, way in enumerate(ways) if not way.error(n) > MOST_ERROR)
        return min(fair, key=lambda k: ways[k].cost(n, link).seconds(link, many))

    lines(axes[0, 0], links / 1e9, lambda way, x: way.cost(64, 1e9 * x).seconds(1e9 * x, cores))
    axes[0, 0].set(xlabel="link, Gbit/s", ylabel="seconds for one mean")
    axes[0, 0].set_title(f"64 workers, {cores} cores each, 10$^8$ numbers", fontsize=11)
    axes[0, 0].legend(frameon=False, fontsize=8.5, loc="lower left")
    lines(axes[0, 1], workers, lambda way, n: way.cost(int(n), 10e9).seconds(10e9, cores))
    axes[0, 1].set(xlabel="workers", ylabel="seconds for one mean", ylim=(None, 100))
    axes[0, 1].set_title(f"10 Gbit/s, {cores} cores each", fontsize=11)

    for panel, many in zip(axes[1], (16, 64), strict=True):
        best = np.array([[fastest(int(n), link, many) for n in workers] for link in links])
        colours = ListedColormap([way.colour for way in ways])
        panel.pcolormesh(workers, links / 1e9, best, cmap=colours, vmin=-0.5, vmax=len(ways) - 0.5, shading="nearest")
        panel.set(xscale="log", yscale="log", xlabel="workers", ylabel="link, Gbit/s")
        panel.set_title(
            f"Fastest with an error of at most {MOST_ERROR}, {many} cores each (8 bits: taken as exact)", fontsize=11
        )
        handles = [Patch(color=ways[k].colour, label=ways[k].name) for k in np.unique(best)]
        panel.legend(handles=handles, fontsize=8.5, loc="lower right", framealpha=0.9)
    figure.savefig(RESULTS / "bandwidth.png", dpi=110)


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    threads = os.cpu_count() or 1
    (speeds, together), others = watched(lambda: (measure(1), measure(threads)))
    scaling = Speed(speeds[ONE].encode / together[ONE].encode, speeds[ONE].decode / together[ONE].decode, math.nan)
    (RESULTS / "bandwidth.md").write_text(page(speeds, scaling, threads, others))
    draw(speeds)
    print(RESULTS / "bandwidth.md")


if __name__ == "__main__":
    main()
