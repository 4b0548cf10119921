"""What is behind docs/results/federated.md, without its runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments" / "federated"))

import engine
import plan
import report
import task

import lowbit as lb
from flower_layer.flower_support import Wire, average, rounds
from lowbit.flower import Compressed


def test_every_image_is_dealt_once_and_clients_see_few_digits() -> None:
    learn, test = task.images("digits", 0)
    dealt = task.shares("digits", 0)
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(learn.labels)))
    assert len(learn.labels) + len(test.labels) == 1797
    seen = [len(set(learn.labels[rows].tolist())) for rows in dealt]
    assert max(seen) <= 4
    assert np.median(seen) <= 3


def test_training_is_the_same_for_every_way() -> None:
    model = task.new_model("digits", 1)
    assert sum(array.size for array in model.values()) == 64 * 200 + 200 + 200 * 200 + 200 + 200 * 10 + 10
    (one, images), (two, _) = (task.train(model, "digits", 1, 3, 2) for _ in range(2))
    assert images == len(task.shares("digits", 1)[3])
    assert all(np.array_equal(one[name], two[name]) for name in model)
    assert not any(np.shares_memory(one[name], model[name]) for name in model)
    other, _ = task.train(model, "digits", 1, 3, 3)
    assert not np.array_equal(one["w0"], other["w0"])


def test_all_bytes_of_a_message_are_counted() -> None:
    wire = Wire()
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Eden(1))
    rounds(strategy, wire, {"w": np.zeros((500, 800), np.float32)})
    sent = sum(map(engine.nbytes, wire.sent))
    counted = strategy.traffic[0].down
    # Message, three records and two chunks, each with a header.
    assert counted < sent < counted + 3 * 2000


def test_a_page_of_any_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def run(way: plan.Way) -> list[dict[str, float]]:
        ends = 90.0 if way.up is None else 87.5
        row = {"asked": 10 * way.asked, "down": 1000.0 if way.up is None else 100.0, "up": 1000.0}
        return [{"accuracy": ends - 40 * 0.5 ** (number + 4) + rng.normal(0, 0.1), **row} for number in range(8)]

    runs = {str(seed): {way.name: run(way) for way in plan.WAYS} for seed in range(3)}
    kept: dict[str, Any] = {"data": "digits", "rounds": 8, "runs": runs}
    page = report.write(tmp_path, kept).read_text()
    assert (tmp_path / "federated.png").stat().st_size > 10_000
    rows = [line for line in page.splitlines() if line.startswith("| 1 bit both ways |")]
    assert len(rows) == 1
    cells = [cell.strip() for cell in rows[0].split("|")]
    assert cells[2] == '`Eden(1)`, `Eden(1, "min_error")`'
    assert cells[6] == "1.8"
    assert -3 < float(cells[9].split()[0]) < -2
    # More than a point below the end of float32.
    assert cells[10] == cells[11] == "-"


@pytest.mark.parametrize("way", plan.WAYS, ids=lambda way: way.name)
def test_every_way_can_be_made(way: plan.Way) -> None:
    strategy = engine.strategy_of(way, 0)
    assert isinstance(strategy, Compressed) == (way.up is not None)
    assert way.name in {plan.baseline(way).name, *(other.name for other in plan.ALL + plan.SOME)}
