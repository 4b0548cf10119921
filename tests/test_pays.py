"""experiments/pays: its arithmetic, its rounds at a size that runs at once, and its committed results."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "experiments" / "pays"))

import costs  # noqa: E402
import forms  # noqa: E402
import plan  # noqa: E402
import report  # noqa: E402
import simulate  # noqa: E402

import lowbit as lb  # noqa: E402

V = lb.Eden(1).expected_error(1024)
KEY = lb.Key(77)


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_a_tree_of_one_level_or_of_exact_aggregators_is_flat() -> None:
    for rho in (0.0, 0.3, 1.0):
        assert forms.tree([V], [400], rho) == forms.flat(V, 400)
        assert forms.tree([V, 0.0, 0.0], [20, 4, 5], rho) == pytest.approx(forms.flat(V, 400))


def test_an_error_of_a_level_is_divided_by_its_nodes() -> None:
    only_above = [forms.tree([0.0, V], [1000 // nodes, nodes], 1.0) for nodes in (10, 100)]
    assert only_above == pytest.approx([V / 10, V / 100])
    # Of vectors that have nothing in common the nodes' means are small, and so are their errors.
    assert forms.tree([0.0, V], [100, 10], 0.0) == pytest.approx(V / 1000)


def test_two_phases_are_a_tree_whose_root_encodes() -> None:
    for rho in (0.1, 1.0):
        assert forms.two_phase(V, 0.1, 8, rho) == pytest.approx(forms.tree([V, 0.1], [8, 1], rho))


def test_drop_outs_of_nobody_change_nothing() -> None:
    flat = forms.flat(V, 100)
    assert forms.known(V, 100, 0.0, 0.5) == forms.expected(V, 100, 0.0) == forms.ignored(V, 100, 0.0, 0.5) == flat
    assert forms.stale(V, 100, 0.0, 1.0, taken=True) == pytest.approx(forms.stale(V, 100, 0.0, 1.0, taken=False))
    for weighted in (False, True):
        assert forms.groups(V, 100, (0.0, 0.0), 2.0, weighted=weighted) == pytest.approx(flat)


def test_late_ones_pay_where_senders_are_few() -> None:
    taken, left = ([forms.stale(V, n, 0.2, 0.01, taken=t) for n in (100, 10_000)] for t in (True, False))
    assert taken[0] < left[0]
    assert taken[1] > 5 * left[1]


def found(call: Any, runs: int = 60) -> float:
    return float(np.mean([call(np.random.default_rng([9, run]), KEY.fold(run)) for run in range(runs)]))


@pytest.mark.parametrize("rho", [0.05, 1.0])
def test_a_small_tree_has_the_error_that_was_promised(rho: float) -> None:
    codecs, fans = [lb.Eden(1), lb.Eden(2), lb.Eden(4)], [4, 3, 2]
    seen = found(lambda r, key: simulate.Tree(simulate.Senders(r, 1024, rho), codecs, fans, key).error())
    assert seen == pytest.approx(forms.tree([c.expected_error(1024) for c in codecs], fans, rho), rel=0.05)


def test_levels_have_keys_of_their_own_and_senders_are_numbered_through() -> None:
    tree = simulate.Tree(simulate.Senders(rng(), 1024, 1.0), [lb.Eden(1), lb.Eden(1)], [3, 2], KEY)
    assert [lb.describe(tree.message(0, i)).sender for i in range(4)] == [0, 1, 2, 3]
    above = lb.describe(tree.message(1, 1))
    assert above.sender == 1
    assert above.key_id != lb.describe(tree.message(0, 1)).key_id


def test_small_rounds_have_the_errors_that_were_promised() -> None:
    one = lb.Eden(1)
    seen = found(lambda r, key: simulate.two_phase(simulate.Senders(r, 4096, 1.0), 4, one, lb.Eden(4), key))
    assert seen == pytest.approx(forms.two_phase(V, lb.Eden(4).expected_error(1024), 4, 1.0), rel=0.05)
    seen = found(lambda r, key: simulate.bounded_liars(simulate.direction(r, 1024), 20, 0.05, 2.0, one, key))
    assert seen == pytest.approx(forms.bounded_liars(V, 20, 0.05, 2.0), rel=0.05)
    seen = found(lambda r, key: simulate.late(r, 1024, 20, 0.2, 1.0, one, key)["taken"])
    assert seen == pytest.approx(forms.stale(V, 20, 0.2, 1.0, taken=True), rel=0.05)
    seen = found(lambda r, key: simulate.one_liar(r, 1024, 20, 100.0, 4.0, one, key)["refused"])
    assert seen == pytest.approx(forms.flat(V, 19), rel=0.05)


def test_equal_numbers_make_subtrees_worth_one() -> None:
    one = lb.Eden(1)
    alike, apart = (
        found(
            lambda r, key, folded=folded: simulate.numbered_alike(
                simulate.direction(r, 1024), one, 5, 4, key, folded=folded
            )
        )
        for folded in (False, True)
    )
    assert alike == pytest.approx(V / 4, rel=0.05)
    assert apart == pytest.approx(V / 20, rel=0.05)


def test_the_audit_finds_the_liar_alone() -> None:
    assert simulate.lying_aggregator(simulate.direction(rng(), 1024), 5, 6, lb.Eden(1), KEY)["audit"] == 1


def test_a_late_message_is_refused_by_name() -> None:
    assert plan.refused_late(KEY) == plan.REFUSED


def test_one_core_wins_below_where_its_computing_takes_what_it_saves() -> None:
    speeds = dict.fromkeys(costs.CODECS.values(), costs.Speed(2e-9, 1e-9, 1e-9))
    way = next(way for way in costs.schemes(speeds) if way.name == "1 bit, all-gather")
    for cores in (1, 16):
        # 24 bits of a ring or 3 of messages; an encoding and four decodings.
        assert costs.break_even(way, 4, cores) == pytest.approx(cores * (24 - 3) / 6e-9, rel=0.02)
        assert costs.share(way, 4, cores, costs.break_even(way, 4, cores)) == pytest.approx(1, rel=1e-2)
    # A backward pass that hides bf16's traffic leaves nothing to win.
    hours = 1e4
    assert costs.overlapped(way, 4, 1, 1e9, hours, spare=True) == 1
    assert costs.overlapped(way, 4, 1, 1e9, hours, spare=False) > 1


def test_a_cell_is_judged_by_its_margin_and_interval() -> None:
    cell = plan.Cell("part", "name", 5, lambda *_: {}, {"error": 1.0})
    rows = [{"error": 1 + 0.001 * k} for k in (-2, -1, 0, 1, 2)]
    (seen,) = plan.judged(cell, rows)
    assert seen.met
    assert seen.half == pytest.approx(2.7764 * 0.0015811 / math.sqrt(5), rel=1e-3)
    assert not plan.judged(cell, [{"error": row["error"] + 0.06} for row in rows])[0].met


def test_a_page_of_any_records(tmp_path: Path) -> None:
    speed = {"encode": 2e-9, "decode": 1e-9, "mean": 1e-9}
    kept = {
        "costs": {"speeds": dict.fromkeys(costs.CODECS, speed), "message": 3e-6, "others": ""},
        "late": plan.REFUSED,
        "cells": {cell.title: {"seconds": 1.0, "runs": [cell.promised] * cell.runs} for cell in plan.cells()},
    }
    page = report.write(tmp_path, kept).read_text()
    assert (tmp_path / "pays.png").stat().st_size > 10_000
    numbers = sum(len(cell.promised) for cell in plan.cells())
    assert f"Met: {numbers + 1} of {numbers + 1}." in " ".join(page.split())
    assert "MISSED" not in page


def test_the_committed_records_are_of_this_plan() -> None:
    kept = json.loads((ROOT / "docs" / "results" / "pays.json").read_text())
    assert set(kept["cells"]) == {cell.title for cell in plan.cells()}
    assert kept["late"] == plan.REFUSED
    page = (ROOT / "docs" / "results" / "pays.md").read_text()
    missed = []
    for cell in plan.cells():
        rows = kept["cells"][cell.title]["runs"]
        assert len(rows) == cell.runs
        missed += [row for row in plan.judged(cell, rows) if not row.met]
    assert page.count("MISSED") == len(missed)
