"""What is behind docs/results: where it must agree with arithmetic on paper."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

import lowbit as lb

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

import bandwidth
import formats


def free() -> dict[lb.Codec, bandwidth.Speed]:
    """Kernels that take no time."""
    codecs = (bandwidth.HALF, bandwidth.ONE, bandwidth.TWO, bandwidth.FOUR, bandwidth.QUICK, bandwidth.FULL)
    return {codec: bandwidth.Speed(0.0, 0.0, 0.0) for codec in codecs}


def test_all_gather_of_one_bit_ends_at_64_workers_against_fp32_and_32_against_bf16() -> None:
    fp32, bf16, *_, gathered, _ = bandwidth.schemes(free())
    assert gathered.name == "1 bit, all-gather"
    slow = 1e6
    for usual, last in ((fp32, 63), (bf16, 31)):
        for n in (2, last, last + 1, 1000):
            faster = gathered.cost(n, slow).seconds(slow, 1) < usual.cost(n, slow).seconds(slow, 1)
            assert faster == (n <= last), (usual.name, n)


def test_two_phases_send_the_ratio_of_the_bits() -> None:
    ways = {way.name: way for way in bandwidth.schemes(free())}
    for name, bits in (("4 bits", 4), ("2 bits", 2), ("1 bit", 1), ("1/2 bit", 0.5)):
        cost = ways[f"{name}, two phases"].cost(64, 1e9)
        # Parts of 1.6 million numbers: headers and scales are thousandths of a bit.
        assert cost.bits == pytest.approx(ways["fp32 all-reduce"].cost(64, 1e9).bits * bits / 32, rel=5e-3)


def test_break_even_is_where_both_take_the_same_time() -> None:
    speeds = dict.fromkeys(free(), bandwidth.Speed(4e-9, 3e-9, 3e-9))
    ways = bandwidth.schemes(speeds)
    for ours in ways[3:]:
        for n in (2, 8, 1000):
            link = bandwidth.break_even(ours, ways[1], n, 16)
            if 0 < link < math.inf:
                times = [way.cost(n, link).seconds(link, 16) for way in (ours, ways[1])]
                assert times[0] == pytest.approx(times[1], rel=5e-3)
    never = bandwidth.break_even(ways[-1], ways[0], 1000, 16)
    assert bandwidth.gigabits(never) == "never"


def test_formats_are_shown_where_a_bit_pays_most() -> None:
    results = formats.measure(1 << 13)
    assert list(results) == ["Gaussian", "Laplace", "lognormal"]
    for shape, rows in results.items():
        signed = [name for name in lb.formats() if lb.get_format(name).signed]
        assert list(rows) == [*signed, "radix(2,3)", "radix(8,3)", "radix(4,3,nozero)"]
        for name, row in rows.items():
            assert formats.cost(row.best) <= formats.cost(row.default), (shape, name)
    # Shannon: no code of independent normal numbers does better than 4^-bits.
    assert all(formats.cost(row.best) > 1 for row in results["Gaussian"].values())
