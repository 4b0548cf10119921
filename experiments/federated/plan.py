"""What is compared."""

from __future__ import annotations

from dataclasses import dataclass

import lowbit as lb

SEEDS = 5
ROUNDS = 30
#: The first rounds whose accuracy says how well a way ends: the mean of the last five.
LAST = 5


@dataclass(frozen=True)
class Way:
    """One way of sending.

    Attributes
    ----------
    name : str
        What tables and the picture call it.
    up, down : lowbit.Codec or None
        Of clients' updates and of models; None leaves arrays as they are. Without `up` the strategy is Flower's own.
    asked : float
        The share of clients that each round asks.
    """

    name: str
    up: lb.Codec | None = None
    down: lb.Codec | None = None
    asked: float = 1.0


FP32 = Way("float32")
HALF_FP32 = Way("float32, half of the clients", asked=0.5)
ONE = lb.Eden(1, "min_error")
ALL = (
    FP32,
    Way("float16 both ways", lb.Packed("float16"), lb.Packed("float16")),
    Way("4 bits both ways", lb.Eden(4), lb.Eden(4, "min_error")),
    Way("1 bit up", lb.Eden(1)),
    Way("1 bit up, 4 down", lb.Eden(1), lb.Eden(4, "min_error")),
    Way("1 bit both ways", lb.Eden(1), ONE),
    Way("1 bit both ways, biased with feedback", ONE, ONE),
    Way("signs both ways, with feedback", lb.Sign(), lb.Sign()),
    Way("1/2 bit up, 1 down", lb.Eden(0.5), ONE),
    Way("1/2 bit both ways", lb.Eden(0.5), lb.Eden(0.5, "min_error")),
)
SOME = (HALF_FP32, Way("1 bit both ways, half of the clients", lb.Eden(1), ONE, asked=0.5))
WAYS = (*ALL, *SOME)


def baseline(way: Way) -> Way:
    """Give the way that another is compared with, seed by seed."""
    return FP32 if way.asked == 1 else HALF_FP32
