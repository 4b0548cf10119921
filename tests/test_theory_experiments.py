"""experiments/theory: a quick run works, and the committed results are what the plan says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="experiments/theory reads scikit-learn's data")
pytest.importorskip("tqdm", reason="experiments/theory draws progress bars")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "theory"
RECORDS = ROOT / "docs" / "results" / "theory" / "records.jsonl"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER), *arguments], capture_output=True, text=True, check=False, timeout=600
    )


def committed(part: str) -> dict[str, dict[str, float]]:
    rows = map(json.loads, RECORDS.read_text().splitlines())
    return {row["name"]: row for row in rows if row["part"] == part}


def test_a_quick_run_writes_the_page_and_keeps_what_it_has(tmp_path: Path) -> None:
    records = tmp_path / "theory" / "records.jsonl"
    records.parent.mkdir()
    cell = {"d": 16, "sparse": True, "gap": 0.0077, "error": 0.0001, "steps": 1}
    finished = json.dumps({"part": "dimension", "name": "sparse 16", "quick": True, "seconds": 1.0, **cell})
    records.write_text(finished + "\n")
    done = run("all", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "theory.md").read_text()
    for title in ("## E1.", "## E2.", "## E3.", "## E4.", "## E5.", "## E6."):
        assert title in page
    for name in ("dimension", "grids", "slope", "exponents", "loops", "bits", "averages"):
        assert f"(theory/{name}.png)" in page
        assert (tmp_path / "theory" / f"{name}.png").stat().st_size > 10_000
    lines = records.read_text().splitlines()
    assert lines[0] == finished
    names = [(row["part"], row["name"]) for row in map(json.loads, lines)]
    assert len(names) == len(set(names))
    assert "| 16 | 0.0077 ± 0.0001 |" in page


def test_a_bad_option_ends_before_any_work(tmp_path: Path) -> None:
    done = run("everything", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "invalid choice: 'everything'" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_gap_does_not_grow_with_the_dimension() -> None:
    rows = committed("dimension")
    sparse = [rows[f"sparse {d}"]["gap"] for d in (16, 64, 256, 1024)]
    assert max(sparse) / min(sparse) < 1.15
    # T3: (4 - 2 a X2^2) g - delta X1 sqrt(2 g) = a X2^2 E[e^2] + delta X1 E|e|, solved for sqrt(g).
    lr, step, noise = 0.1, 2**-5 * 8**0.5, 0.05
    a, b, c = 4 - 2 * lr, step * 2**0.5, lr * noise**2 + step * noise * (2 / np.pi) ** 0.5
    bound = ((b + (b * b + 4 * a * c) ** 0.5) / (2 * a)) ** 2
    assert bound == pytest.approx(2.7e-3, rel=0.01)
    assert max(sparse) <= bound
    assert rows["dense 1024"]["gap"] / rows["dense 16"]["gap"] > 10


def test_halp_has_no_floor_where_fixed_grids_have_one() -> None:
    rows = {name: row["gaps"] for name, row in committed("centering").items()}
    assert rows["synthetic, HALP 8, 3 mu"][-1] < 1e-8
    assert rows["synthetic, LP-SGD 8"][-1] > 1e-4
    assert rows["synthetic, LP-SVRG 8"][-1] > 1e-4
    for halp, svrg in zip(rows["synthetic, HALP 16, 3 mu"], rows["synthetic, SVRG"], strict=True):
        assert halp <= 2 * svrg + 1e-12


def test_the_page_says_of_every_claim_whether_it_was_met() -> None:
    done = run("check")
    page = (ROOT / "docs" / "results" / "theory.md").read_text()
    lines = done.stdout.splitlines()
    assert len(lines) > 20
    for line in lines:
        verdict, part, text, seen = line.split("\t")
        said = "met" if verdict == "met" else "**missed**"
        assert f"| {part} | {text} | {seen} | {said} |" in page
    assert (done.returncode == 0) == all(line.startswith("met\t") for line in lines)
