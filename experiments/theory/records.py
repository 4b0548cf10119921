"""A line of JSON for each cell that is finished; none is ever run twice."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

QUICK = 50


@dataclass(frozen=True)
class Cell:
    """What is measured once: its name in its part, and a function that is told by what steps are divided."""

    name: str
    run: Callable[[int], dict[str, Any]]


class Records:
    """The cells that are finished, by part and name."""

    def __init__(self, path: Path, *, quick: bool) -> None:
        self.path, self.quick = path, quick
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                row = json.loads(line)
                if row["quick"] == quick:
                    self.rows[row["part"], row["name"]] = row

    def add(self, part: str, name: str, found: dict[str, Any], seconds: float) -> None:
        """Write a cell down."""
        row = {"part": part, "name": name, "quick": self.quick, "seconds": round(seconds, 2), **_plain(found)}
        self.rows[part, name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, part: str) -> dict[str, dict[str, Any]]:
        """Give the cells of a part, by name."""
        return {name: row for (where, name), row in self.rows.items() if where == part}


def _plain(value: Any) -> Any:
    """Make data JSON: five digits, and None for what is not finite."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def run_all(part: str, cells: Sequence[Cell], records: Records) -> None:
    """Run what is not there yet."""
    left = [cell for cell in cells if (part, cell.name) not in records.rows]
    for cell in tqdm(left, desc=part, unit=" cells"):
        start = time.process_time()
        found = cell.run(QUICK if records.quick else 1)
        records.add(part, cell.name, found, time.process_time() - start)
