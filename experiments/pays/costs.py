"""What computing costs, measured, and below which link fewer bits win: the model of experiments/bandwidth.py."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import bandwidth
import numpy as np
from bandwidth import FOUR, HALF, ONE, QUICK, TWO, Scheme, Speed, all_reduce, gather, two_phases
from machine import watched

import lowbit as lb

Speeds = dict[lb.Codec, Speed]
RANKS, CORES, LINKS = (2, 4, 8, 16, 64), (1, 4, 16, 64), (1e7, 1e8, 1e9, 1e10, 1e11)
BF16 = Scheme("bf16 all-reduce", all_reduce(16), lambda _: 0.0, "0.45")
CODECS = {"1/2": HALF, "1": ONE, "2": TWO, "4": FOUR, "QUIC-FL 1": QUICK}
NUMBERS, SENDERS, MANY, RUNS = 1 << 20, 16, 10_000, 15


def measure() -> dict[str, Any]:
    """Time kernels on one core, and what a message costs a receiver beside its numbers, in seconds.

    The best CPU time of several runs: what is left on a machine that others use too.
    """
    speeds, others = watched(lambda: {name: _speed(codec) for name, codec in CODECS.items()})
    return {"speeds": speeds, "message": _message(), "others": others}


def _speed(codec: lb.Codec) -> dict[str, float]:
    key, x = lb.Key(1), np.random.default_rng(0).standard_normal(NUMBERS, np.float32)
    messages = [lb.encode(x, codec, key=key, sender=s) for s in range(SENDERS)]
    return {
        "encode": _best(lambda: lb.encode(x, codec, key=key)) / NUMBERS,
        "decode": _best(lambda: lb.decode(messages[0], key=key)) / NUMBERS,
        "mean": _best(lambda: lb.decode_mean(messages, key=key)) / NUMBERS / SENDERS,
    }


def _message() -> float:
    key = lb.Key(1)
    messages = [lb.encode(np.ones(1), ONE, key=key, sender=s) for s in range(MANY)]

    def add() -> None:
        mean = lb.Mean(key)
        for message in messages:
            mean.add(message)

    return _best(add) / MANY


def _best(call: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


def speeds_of(measured: dict[str, Any]) -> Speeds:
    """Give them by codec, as the model takes them."""
    return {codec: Speed(**measured["speeds"][name]) for name, codec in CODECS.items()}


def schemes(speeds: Speeds) -> list[Scheme]:
    """List ways with fewer bits than bf16."""

    def once(name: str, codec: lb.Codec, colour: str) -> Scheme:
        return Scheme(f"{name}, all-gather", gather(codec, speeds), bandwidth.error_once(codec), colour)

    def twice(name: str, up: lb.Codec, down: lb.Codec, colour: str) -> Scheme:
        return Scheme(f"{name}, two phases", two_phases(up, down, speeds), bandwidth.error_twice(up, down), colour)

    return [
        once("1/2 bit", HALF, "tab:purple"),
        once("1 bit", ONE, "tab:red"),
        once("1 bit (QUIC-FL)", QUICK, "tab:orange"),
        once("2 bits", TWO, "tab:pink"),
        once("4 bits", FOUR, "tab:brown"),
        twice("1 bit up, 4 down", ONE, FOUR, "tab:cyan"),
        twice("2 bits up, 4 down", TWO, FOUR, "tab:olive"),
        twice("4 bits", FOUR, FOUR, "tab:green"),
    ]


def break_even(way: Scheme, ranks: int, cores: int) -> float:
    """Give the link, bits per second, below which a way beats bf16; 0 where it never does."""
    return bandwidth.break_even(way, BF16, ranks, cores)


def share(way: Scheme, ranks: int, cores: int, link: float) -> float:
    """Give a way's time in shares of bf16's."""
    return way.cost(ranks, link).seconds(link, cores) / BF16.cost(ranks, link).seconds(link, cores)


def overlapped(way: Scheme, ranks: int, cores: int, link: float, backward: float, *, spare: bool) -> float:
    """Give the time of a step's backward pass and averaging in shares of bf16's, all overlapping.

    With `spare` cores the hook runs beside the backward pass, else both are one core's work after the other. What is
    left when the last gradient is there, one bucket, is counted on neither side.
    """

    def step(cost: bandwidth.Cost) -> float:
        work, sending = cost.work / cores, cost.bits / link + cost.waiting
        return max(backward, work, sending) if spare else max(backward + work, sending)

    return step(way.cost(ranks, link)) / step(BF16.cost(ranks, link))


def receiver(messages: float, numbers: float, link: float, speed: Speed, overhead: float) -> tuple[float, float, float]:
    """Give what averaging takes of one aggregator: bytes received, seconds of its link, core-seconds."""
    received = messages * math.ceil(ONE.bits_per_element(int(numbers)) * numbers / 8)
    return received, 8 * received / link, messages * (numbers * speed.mean + overhead)
