"""What is simulated, what arithmetic promises for it (forms.py), and what counts as met. Written before the runs.

A number is met if its 95 % interval and the promise within 5 % overlap. The interval is Student's t over at least five
runs, which differ in keys and vectors; for fewer, that of a sum of d independent squares, 1.96 sqrt(2 / (d runs)),
since the error of a mean of many messages is close to normal and alike in all coordinates.

A promise of v / n cannot hold for ever for EDEN, which is unbiased only as vectors grow: on a vector of three numbers
and zeros docs/messages.md measured a bias of 7e-6 at 4,096 numbers, below which no mean can come. So the promise for it
is v / n + 7e-6 there, with a margin of 20 % (the 7e-6 has one digit), and v / n for QuicFl, which has no bias. Sums in
float32 are expected to cost nothing that shows: 10^6 terms, each rounded by 2^-25 of the sum, leave 4e-10 of it.
(They did cost: the first runs of a million were off by 4e-6 and more, which a hundred accumulators were not. `lb.Mean`
adds in lots of 4,096 since, and the cells of 10^5 and 10^6 senders were run again with the same keys.)

Beside the numbers: a late message is refused by name and changes nothing, and whoever makes an aggregator's message
again from what it read finds the one that lied and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import forms
import numpy as np
import simulate as sim
from scipy.stats import t

import lowbit as lb

D = 1024
LONG = 4096
MARGIN, BIAS_MARGIN, BIAS = 0.05, 0.2, 7e-6
LEVEL = 0.95
REFUSED = "cannot decode: the messages of senders 0 and 1 differ in their key; a mean needs messages alike"
ONE, FOUR, EIGHT, FULL, QUICK = lb.Eden(1), lb.Eden(4), lb.Eden(8), lb.Float32(), lb.QuicFl(1)

Found = dict[str, float]
Run = Callable[[np.random.Generator, lb.Key], Found]


@dataclass(frozen=True)
class Cell:
    """A round that is run some times, and the error that each of its numbers is promised."""

    part: str
    name: str
    runs: int
    run: Run
    promised: Found
    numbers: int = D
    margin: float = MARGIN

    @property
    def title(self) -> str:
        """What records call it."""
        return f"{self.part}: {self.name}, {'-'.join(self.promised)}"


def v(codec: lb.Codec, d: int = D) -> float:
    """One message's error."""
    return codec.expected_error(d)


def flat() -> list[Cell]:
    """One receiver, up to a million senders: normal vectors, and the worst that is known."""
    cells = []
    for name, codec, d, bias in (
        ("normal, `Eden(1)`", ONE, D, 0.0),
        ("three numbers, `Eden(1)`", ONE, LONG, BIAS),
        ("three numbers, `QuicFl(1)`", QUICK, LONG, 0.0),
    ):
        for counts, runs in (((1, 10, 100, 1000, 10_000), 10), ((100_000, 1_000_000), 1)):

            def run(
                rng: np.random.Generator,
                key: lb.Key,
                codec: lb.Codec = codec,
                d: int = d,
                counts: Sequence[int] = counts,
                name: str = name,
            ) -> Found:
                x = sim.direction(rng, d) if name.startswith("normal") else sim.spike(d)
                return dict(zip(map(str, counts), sim.flat(x, codec, counts, key), strict=True))

            promised = {str(n): forms.flat(v(codec, d), n) + bias for n in counts}
            cells.append(Cell("flat", name, runs, run, promised, d, BIAS_MARGIN if bias else MARGIN))
    return cells


def trees() -> list[Cell]:
    """Trees of 10^4 senders by what aggregators send, how many levels and how alike vectors are; two of 10^6."""
    shapes: list[tuple[tuple[int, ...], tuple[lb.Codec, ...], float, int]] = [
        *(((100, 100), (ONE, up), 1.0, 10) for up in (ONE, FOUR, EIGHT, FULL)),
        *(((100, 100), (ONE, up), 0.01, 10) for up in (ONE, FOUR)),
        *(((10, 1000), (ONE, up), 1.0, 10) for up in (ONE,)),
        *(((1000, 10), (ONE, up), 1.0, 10) for up in (ONE, FOUR)),
        *(((10, 10, 10, 10), ups, 1.0, 10) for ups in ((ONE,) * 4, (ONE, ONE, FOUR, EIGHT))),
        *(((100, 100, 100), ups, 1.0, 1) for ups in ((ONE, ONE, ONE), (ONE, FOUR, EIGHT))),
    ]
    return [
        Cell(
            "tree",
            f"{' x '.join(map(str, fans))}: {', '.join(map(bits, codecs))}; rho {rho:g}",
            runs,
            lambda rng, key, fans=fans, codecs=codecs, rho=rho: {
                "error": sim.Tree(sim.Senders(rng, D, rho), codecs, fans, key).error()
            },
            {"error": forms.tree([v(codec) for codec in codecs], fans, rho)},
        )
        for fans, codecs, rho, runs in shapes
    ]


def bits(codec: lb.Codec) -> str:
    """Say how many bits a level sends."""
    return "32" if isinstance(codec, lb.Float32) else f"{codec.bits:g}"  # type: ignore[attr-defined]


def phases() -> list[Cell]:
    """Two phases, parts of 1,024 numbers."""
    return [
        Cell(
            "two phases",
            f"{n} ranks, 1 bit up, {bits(down)} down; rho {rho:g}",
            10,
            lambda rng, key, n=n, down=down, rho=rho: {
                "error": sim.two_phase(sim.Senders(rng, n * D, rho), n, ONE, down, key)
            },
            {"error": forms.two_phase(v(ONE), v(down), n, rho)},
        )
        for n in (8, 64)
        for down in (ONE, FOUR, EIGHT)
        for rho in (1.0, 0.1)
    ]


N, LOST = 10_000, 0.3
HALVES = (0.1, 0.5)
LATE = 0.2
LIAR, MOST, LIARS, BOUND = 1000.0, 4.0, 0.01, 2.0


def absences() -> list[Cell]:
    """Drop-outs and late answers."""
    cells = [
        Cell(
            "drop-outs",
            f"{LOST:.0%} of {N:,} at random; rho {rho:g}",
            20,
            lambda rng, key, rho=rho: sim.dropped(sim.Senders(rng, D, rho), N, LOST, ONE, key),
            {
                "known": forms.known(v(ONE), N, LOST, rho),
                "expected": forms.expected(v(ONE), N, LOST),
                "ignored": forms.ignored(v(ONE), N, LOST, rho),
            },
        )
        for rho in (1.0, 0.5)
    ]
    cells.append(
        Cell(
            "drop-outs",
            f"{HALVES[0]:.0%} of one half of {N:,}, {HALVES[1]:.0%} of the other",
            20,
            lambda rng, key: sim.leaning(rng, D, N, HALVES, ONE, key),
            {
                "plain": forms.groups(v(ONE), N, HALVES, 2.0, weighted=False),
                "weighted": forms.groups(v(ONE), N, HALVES, 2.0, weighted=True),
            },
        )
    )
    return cells + [
        Cell(
            "late",
            f"{LATE:.0%} of {n:,} a round late, the mean moved by {drift:g}",
            20 if n > 100 else 50,
            lambda rng, key, n=n, drift=drift: sim.late(rng, D, n, LATE, drift, ONE, key),
            {
                "left out": forms.stale(v(ONE), n, LATE, drift, taken=False),
                "taken": forms.stale(v(ONE), n, LATE, drift, taken=True),
            },
        )
        for n in (100, N)
        for drift in (0.01, 1.0)
    ]


def hostility() -> list[Cell]:
    """Wrong numbers and wrong vectors."""
    x = sim.direction

    def audited(rng: np.random.Generator, key: lb.Key) -> Found:
        return sim.lying_aggregator(x(rng, D), 100, 100, ONE, key)

    cells = [
        Cell(
            "numbers",
            f"100 subtrees of 100, each numbered from 0; {'a key each' if folded else 'one key'}",
            10,
            lambda rng, key, folded=folded: {"error": sim.numbered_alike(x(rng, D), ONE, 100, 100, key, folded=folded)},
            {"error": forms.flat(v(ONE), N if folded else 100)},
        )
        for folded in (False, True)
    ]
    return [
        *cells,
        Cell(
            "hostile",
            f"one of {N:,} sends {LIAR:,.0f} times too much",
            10,
            lambda rng, key: sim.one_liar(rng, D, N, LIAR, MOST, ONE, key),
            {"taken": forms.one_liar(v(ONE), N, LIAR), "refused": forms.flat(v(ONE), N - 1)},
        ),
        Cell(
            "hostile",
            f"{LIARS:.0%} of {N:,} send the opposite, {BOUND:g} times as long",
            10,
            lambda rng, key: {"error": sim.bounded_liars(x(rng, D), N, LIARS, BOUND, ONE, key)},
            {"error": forms.bounded_liars(v(ONE), N, LIARS, BOUND)},
        ),
        Cell(
            "hostile",
            "one of 100 aggregators sends the opposite",
            10,
            audited,
            {"error": forms.lying_aggregator(v(ONE), N, 100), "audit": 1.0},
        ),
    ]


def cells() -> list[Cell]:
    """List everything, what is quick first."""
    every = [*trees(), *phases(), *absences(), *hostility(), *flat()]
    return sorted(every, key=lambda cell: cell.runs < 5)


@dataclass(frozen=True)
class Seen:
    """A number of a cell: its mean over runs, the interval's half, the promise, and whether it was met."""

    part: str
    cell: str
    name: str
    runs: int
    mean: float
    half: float
    promised: float
    met: bool


def judged(cell: Cell, rows: Sequence[Found]) -> list[Seen]:
    """Hold what was found against the promises."""
    seen = []
    for name, promise in cell.promised.items():
        values = np.array([row[name] for row in rows])
        mean = float(values.mean())
        if len(values) >= 5:
            half = float(t.ppf(0.5 + LEVEL / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
        else:
            half = float(1.96 * mean * (2 / (cell.numbers * len(values))) ** 0.5)
        met = abs(mean - promise) <= half + cell.margin * promise
        seen.append(Seen(cell.part, cell.name, name, len(values), mean, half, promise, met))
    return seen


refused_late = partial(sim.refused_late, D, ONE)
