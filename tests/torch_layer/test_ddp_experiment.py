"""The experiment behind docs/results/distributed.md: its plan, its records, its page, and a few steps on real ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
sys.path[:0] = [str(FOLDER / "train4bit"), str(FOLDER)]

from ddp import figures, page, plan, training, wire  # noqa: E402
from ddp.averaging import ONE_OF, averaging  # noqa: E402
from ddp.crew import Records, missing  # noqa: E402

from torch_layer.ranks import ranks  # noqa: E402


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_parts_share_runs_and_name_what_there_is() -> None:
    every = [run for part in plan.PARTS for run in plan.runs(part)]
    assert {run.task for run in every} == set(plan.EVERY)
    assert {run.way for run in every} == set(plan.WAYS)
    assert {run.size for run in every} == {2, 4}
    assert plan.PILOT not in {run.seed for run in every}
    for task, way, size in {(run.task, run.way, run.size) for run in every}:
        assert plan.Run(task, plan.FLOAT32, size, 0) in every, f"{task}, {way}: nothing to compare with"
    for task in plan.EVERY.values():
        assert task.steps % (plan.TESTS * max(way.every for way in plan.WAYS.values())) == 0


@pytest.mark.parametrize("called", [name for name, way in plan.WAYS.items() if way.recipe == "float32"])
def test_a_step_of_every_way(alone: None, called: str) -> None:
    way = replace(plan.WAYS[called], every=1)
    model = torch.nn.Linear(256, 64)
    before = model.weight.detach().clone()
    made = averaging(way, model, torch.optim.SGD(model.parameters(), 0.1), 0)
    made.model(torch.ones(1, 256)).sum().backward()
    made.optimizer.step()
    assert made.received() == 0  # from oneself
    assert torch.isfinite(model.weight).all()
    assert not torch.equal(model.weight, before)


def test_top_k_keeps_what_it_leaves_out(alone: None) -> None:
    model = torch.nn.Linear(256, 64, bias=False)
    made = averaging(plan.WAYS["top 1/64, feedback"], model, torch.optim.SGD(model.parameters(), 0.1), 0)
    x = torch.linspace(0.1, 1, 256)
    sent = torch.zeros(64, 256)
    for step in range(1, 4):
        model.zero_grad()
        made.model(x).sum().backward()
        assert model.weight.grad.count_nonzero() == 64 * 256 // ONE_OF
        sent += model.weight.grad
        left = step * x.expand(64, 256) - sent
        assert (left > -1e-5).all()
        assert left.max() < step + 1e-5


def test_local_steps_of_one_exact_are_float32_and_bytes_are_counted() -> None:
    one, other = (plan.Run("speech", way, 2, 0) for way in (plan.FLOAT32, "H = 1, exact"))
    group = ranks(2)
    a, b, c = (group.run(training.train, run, 12) for run in (one, other, replace(one, way=plan.ONE)))
    assert a[0]["nll"] == pytest.approx(b[0]["nll"], rel=1e-4)
    assert a[0]["received"] == 4 * a[0]["numbers"] * 12  # a ring of two
    assert b[0]["received"] > a[0]["received"]  # the messages' headers
    assert c[0]["nll"] != a[0]["nll"] == a[1]["nll"]
    assert [point[0] for point in a[0]["curve"]] == [2, 4, 6, 8, 10, 12]
    assert 25 < 32 / c[0]["bits"] < 30


# ---- records and the page


def made_up(run: plan.Run) -> dict[str, Any]:
    """A record as a run leaves it; few bits are a tenth of a point behind, and 700 times fewer bytes."""
    exact = run.way == plan.FLOAT32
    end = (0.95 + 0.001 * run.seed) if exact else (0.949 + 0.001 * run.seed)
    curve = [[32 * i, 2 / i, 2 / i, end - 0.5 * 0.5**i] for i in range(1, 7)]
    numbers = 70_000
    full = 8 * (run.size - 1) / run.size * numbers * 192
    return {
        **vars(run),
        **{"steps": 192, "nll": 0.3, "accuracy": end, "train_loss": 0.3, "numbers": numbers, "wall": 1.0},
        **{"received": full if exact else full / 700, "bits": None if exact else 1.0, "cpu": 0.01, "curve": curve},
    }


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """What a whole part of three seeds, and one of local steps, leave."""
    kept = Records(tmp_path / "new" / "distributed.jsonl")
    for run in [*plan.runs("main", 3), *plan.runs("local", 3)]:
        kept.add(run, [made_up(run), made_up(run) | {"received": 1.0}])
    return kept


def test_records_are_kept_and_nothing_is_run_twice(records: Records) -> None:
    again = Records(records.path)
    assert again.rows == records.rows
    assert not missing(plan.runs("main", 3), again)
    assert len(missing([*plan.runs("main", 4), *plan.runs("main", 4)], again)) == 5 * len(plan.TASKS)
    assert set(again.of("mnist", plan.ONE)) == {0, 1, 2}
    assert not again.of("mnist", plan.ONE, 2)


def test_the_page_holds_runs_against_the_margins(records: Records, tmp_path: Path) -> None:
    text = page.write(tmp_path, records).read_text()
    assert (tmp_path / "distributed-bytes.png").stat().st_size > 10_000
    assert (tmp_path / "distributed-links.png").stat().st_size > 10_000
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["`Eden(1)`: 0.5 points", "mnist", "3", "-0.10 ± 0.00 points", "**within**"] in rows
    assert ["`Eden(0.5)`: 90% of the way", "lstm", "3", "100.0% of the way, at the least", "**converge**"] in rows
    local = next(row for row in rows if row[:2] == ["H = 32, 1 bit: 1%, 500 times", "speech"])
    assert local[3].endswith("700 times fewer bytes")
    assert local[4] == "**within**"
    assert ["1 bit: 30 times smaller", "mnist", "3", "32.0 times", "**within**"] in rows


def test_a_run_that_ends_in_nan_has_not_converged(records: Records) -> None:
    run = plan.Run("mnist", plan.HALF, 4, 1)
    records.rows[run] = made_up(run) | {"nll": None}
    assert sorted(page.converged(figures.Curve(records, "mnist", plan.HALF))) == [0, 1, 1]
    run = plan.Run("mnist", plan.HALF, 4, 2)
    records.rows[run] = made_up(run) | {"nll": math.log(10)}  # no better than guessing
    assert sorted(page.converged(figures.Curve(records, "mnist", plan.HALF))) == [0, 0, 1]


def test_time_is_computing_and_bytes_over_bandwidth(records: Records) -> None:
    curve = figures.Curve(records, "speech", plan.FLOAT32)
    assert curve.fewer == pytest.approx(1)
    assert curve.seconds(1e6) == pytest.approx(0.01 + 8 * 6 * 70_000 / 1e6)
    # Means of the curve: 0.951 - 0.5 / 2**i; the straight line between the tests of steps 64 and 96.
    assert curve.near(0.951 - 0.5 * (1 / 4 + 1 / 8) / 2) == pytest.approx(80)
    assert curve.near(0.5) == 32
    assert curve.near(0.99) is None


def test_every_way_of_a_round_is_counted_once() -> None:
    assert plan.LOCAL in wire.ways()
    assert not {"H = 8, 1 bit", plan.FOUR_AND_ONE} & set(wire.ways())
