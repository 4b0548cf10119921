"""What the measurements mean: the goals, the tables and the record."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from operations import OPERATIONS
from problems import Operation

GOAL_SIZE, CACHED_SIZE = 2**24, 2**17
SLOWER = {"v4": 1.0, "v3": 2.5}  # by the level in force: what the goals, set for AVX-512, are multiplied by
OVERHEAD_GOAL = 5.0  # microseconds of Python for each call
LIBRARY_GOAL = 8.0  # times the speed of the array libraries, or within FLOOR times the least the memory allows
SIMULATOR_GOAL = 10.0  # the same beside the libraries that simulate number formats
FLOOR = 1.5
COMPILED = ("numba", "torch_compile", "ffht", "fht_cpu")
SIMULATORS = ("ml_dtypes", "qtorch", "torchao_eager", "microxcaling")
BY_NAME = {operation.name: operation for operation in OPERATIONS}
COLUMNS = (
    *("utc", "cpu", "level", "threads", "operation", "n", "contender", "ns_per_element", "q1", "q3"),
    *("gb_per_s", "times_memcpy", "times_lowbit", "goal", "met", "load", "versions"),
)


@dataclass(frozen=True)
class Row:
    """One operation at one size: medians and quartiles of everyone, in ns for each element."""

    operation: Operation
    n: int
    level: str
    threads: int
    load: float
    ns: dict[str, list[float]]

    @property
    def memcpy(self) -> float:
        """The faster of the two copies, on one thread whatever the others have."""
        return min(self.ns["copyto"][0], self.ns["memmove"][0])

    @property
    def lowbit(self) -> float:
        """The median."""
        return self.ns["lowbit"][0]

    @property
    def floor(self) -> float:
        """The least the memory allows: the time in which memcpy moves as many bytes."""
        return self.operation.bytes_moved / 8 * self.memcpy

    def goal(self, contender: str) -> tuple[str, bool] | None:
        """Tell the goal beside this contender (lowbit: its own) and whether it is met; None where none is set."""
        slower = SLOWER.get(self.level)
        if slower is None or contender in ("copyto", "memmove", "torchao"):
            return None
        if contender == "lowbit":
            return self._own_goal(slower) if self.threads == 1 else None
        if self.n != GOAL_SIZE:
            return None
        ratio = self.ns[contender][0] / self.lowbit
        if contender in COMPILED:
            return f">= {self.operation.fused_goal:g}", ratio >= self.operation.fused_goal
        limit, least = FLOOR * self.floor, SIMULATOR_GOAL if contender in SIMULATORS else LIBRARY_GOAL
        return f">= {least:g} or {limit:.3f} ns", ratio >= least or self.lowbit <= limit

    def _own_goal(self, slower: float) -> tuple[str, bool] | None:
        if self.n == GOAL_SIZE and self.operation.goal:
            limit = self.operation.goal * slower
            return f"<= {limit:g} memcpy", self.lowbit <= limit * self.memcpy
        if self.n == CACHED_SIZE and self.operation.cached_goal:
            limit = self.operation.cached_goal * slower
            return f"<= {limit:g} ns", self.lowbit <= limit
        return None


def table(rows: list[Row], peers: list[str]) -> str:
    """Lay out one size on one thread count; a peer's ratio ends in ``!`` where its goal is missed."""
    first, last = rows[0], rows[-1]
    peers = [peer for peer in peers if any(peer in row.ns for row in rows)]
    memcpy = sorted(row.memcpy for row in rows)[len(rows) // 2]
    lines = [
        f"\n{first.n} elements, {first.threads} thread{'s' * (first.threads > 1)}, level {first.level}, "
        f"load average {first.load:.1f} to {last.load:.1f}, "
        f"one-thread memcpy {memcpy:.3f} ns/element ({8 / memcpy:.1f} GB/s)",
        f"{'':36}{'ns/element (quartiles)':>24}{'GB/s':>8}{'x memcpy':>10}  {'goal':22}"
        + "".join(f"{peer:>15}" for peer in peers),
    ]
    for row in rows:
        middle, low, high = row.ns["lowbit"]
        goal = row.goal("lowbit")
        verdict = f"{goal[0]} {'met' if goal[1] else 'MISSED'}" if goal else ""
        line = f"{row.operation.name:36}{f'{middle:.3f} ({low:.3f}-{high:.3f})':>24}"
        line += f"{row.operation.bytes_moved / middle:8.1f}{middle / row.memcpy:10.2f}  {verdict:22}"
        for peer in peers:
            if peer in row.ns:
                goal = row.goal(peer)
                line += f"{row.ns[peer][0] / middle:13.1f}x{'!' if goal and not goal[1] else ' '}"
            else:
                line += f"{'-':>14} "
        lines.append(line.rstrip())
    return "\n".join(lines)


def simulators(rows: list[Row]) -> str:
    """Tell how much faster than the libraries that simulate number formats, and how far from what the memory allows."""
    rows = [row for row in rows if row.threads == 1 and any(name in row.ns for name in SIMULATORS)]
    rows = [row for row in rows if row.n == max(row.n for row in rows)]
    if not rows:
        return "\nno library that simulates number formats was measured"
    lines = [
        f"\nbeside the libraries that simulate number formats, {rows[0].n} elements, 1 thread "
        f"(goal at {GOAL_SIZE}: {SIMULATOR_GOAL:g} times as fast, or within {FLOOR:g} of the memory's floor)",
        f"{'':36}{'ns/element':>12}{'floor':>9}{'x floor':>9}"
        + "".join(f"{name:>15}" for name in SIMULATORS)
        + "  met by",
    ]
    for row in rows:
        line = f"{row.operation.name:36}{row.lowbit:12.3f}{row.floor:9.3f}{row.lowbit / row.floor:9.2f}"
        ratios = {name: row.ns[name][0] / row.lowbit for name in SIMULATORS if name in row.ns}
        line += "".join(f"{ratios[name]:14.1f}x" if name in ratios else f"{'-':>15}" for name in SIMULATORS)
        if row.n == GOAL_SIZE:
            fast, near = min(ratios.values()) >= SIMULATOR_GOAL, row.lowbit <= FLOOR * row.floor
            line += "  " + (" and ".join(["speed"] * fast + ["floor"] * near) or "MISSED")
        lines.append(line)
    return "\n".join(lines)


def speedups(rows: list[Row]) -> str:
    """Tell how much faster two threads are than one, each in units of the memcpy beside it."""
    relative = {(row.operation.name, row.n, row.threads): row.lowbit / row.memcpy for row in rows}
    lines = [f"\ntwo threads over one (a goal for each at {GOAL_SIZE})"]
    for (name, n, threads), one in relative.items():
        two = relative.get((name, n, 2))
        if threads == 1 and two is not None:
            missed = n == GOAL_SIZE and one / two < BY_NAME[name].speedup_goal
            lines.append(f"{name:36}{n:>10}{one / two:8.2f}{' MISSED' * missed}")
    return "\n".join(lines)


def overhead(calls: dict[str, dict[str, float]]) -> str:
    """Tell what a call costs on few numbers, beside the kernel that it calls."""
    lines = [f"\nmicroseconds for a call on 1000 numbers (goal: at most {OVERHEAD_GOAL:g} over the kernel)"]
    for name, us in calls.items():
        above = us["call"] - us["kernel"]
        verdict = "met" if above <= OVERHEAD_GOAL else "MISSED"
        lines.append(f"{name:36}{us['call']:8.2f}, kernel{us['kernel']:8.2f}, Python{above:8.2f}  {verdict}")
    return "\n".join(lines)


def record(folder: Path, about: dict[str, Any], rows: list[Row]) -> Path:
    """Append every figure to ``<cpu>/<date>.csv``; the columns are described in README.md."""
    now = datetime.now(UTC)
    path = folder / re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower()).strip("-") / f"{now:%Y-%m-%d}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    versions = " ".join(f"{name}={version}" for name, version in about["versions"].items())
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(COLUMNS)
        for row in rows:
            for contender, (middle, low, high) in row.ns.items():
                goal, met = row.goal(contender) or ("", "")
                figures = [f"{value:.4f}" for value in (middle, low, high)]
                rates = [f"{(8 if contender in ('copyto', 'memmove') else row.operation.bytes_moved) / middle:.2f}"]
                rates += [f"{middle / row.memcpy:.3f}", f"{middle / row.lowbit:.3f}"]
                place = [f"{now:%H:%M:%S}", about["cpu"], row.level, row.threads, row.operation.name, row.n, contender]
                verdict = {True: "yes", False: "no"}.get(met, "")
                writer.writerow([*place, *figures, *rates, goal, verdict, f"{row.load:.2f}", versions])
    return path
