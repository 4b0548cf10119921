"""Time products of packed codes (`lowbit.matmul`) beside torch's float32, bfloat16 and int8.

``python benches/matmul.py`` (lowbit and torch importable) prints tables; contenders take turns, medians with quartiles.
With ``--record`` it also writes ``benches/records/<processor>/<day>-matmul.csv``. The clock is the CPU time of the
process on one thread, and the time on the wall on more.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from measure import processor

import lowbit as lb
from lowbit import _core

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
#: Formats of a and b; the second is stored with the axis that is summed last, as layers keep their weights.
PAIRS = [("int4", "int4"), ("radix4", "int4"), ("int8", "int4"), ("ternary", "int8"), ("int8", "int8")]
COLUMNS = (
    "utc",
    "cpu",
    "kernel",
    "threads",
    "rows",
    "n",
    "k",
    "contender",
    "ms",
    "q1",
    "q3",
    "of_float32",
    "load",
    "versions",
)


def contenders(m: int, n: int, k: int) -> dict[str, Callable[[], Any]]:
    """Give a call for everyone, of matrices (m, k) and (n, k); a's scales are of rows, b's of columns."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
    tx, tw = torch.from_numpy(x), torch.from_numpy(w)
    half = tx.bfloat16(), tw.bfloat16()
    result, half_result = torch.empty(m, n), torch.empty(m, n, dtype=torch.bfloat16)
    calls: dict[str, Callable[[], Any]] = {"torch float32": lambda: torch.mm(tx, tw.t(), out=result)}
    if m <= 1024:
        # Without instructions for them these take ten and thirty times as long as float32.
        calls["torch bfloat16"] = lambda: torch.mm(half[0], half[1].t(), out=half_result)
    if 16 < m <= 1024:
        bytes_ = tx.mul(30).to(torch.int8), tw.mul(30).to(torch.int8)
        calls["torch int8 (_int_mm)"] = lambda: torch._int_mm(bytes_[0], bytes_[1].t())
    out = np.empty((m, n), np.float32)

    def product(a: Any, b: lb.Quantized) -> Callable[[], Any]:
        return lambda: lb.matmul(a, b, transpose_b=True, out=out)

    if m > 16:
        for names in PAIRS:
            a, b = lb.quantize(x, names[0], axis=0), lb.quantize(w, names[1], axis=0)
            calls[" x ".join(names)] = product(a, b)
        a = lb.quantize(x, "int4", block_size=128)
        calls["int4 x int4, blocks of 128"] = product(a, lb.quantize(w, "int4", block_size=128))
    calls["float32 x int4"] = product(x, lb.quantize(w, "int4", axis=0))
    calls["float32 x int4, blocks of 128"] = product(x, lb.quantize(w, "int4", block_size=128))
    return calls


def measure(calls: dict[str, Callable[[], Any]], seconds: float, threads: int) -> dict[str, list[float]]:
    """Time everyone in turns: A B C A B C ..."""
    clock = time.process_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    began = time.perf_counter()
    while len(times["torch float32"]) < 5 or (
        time.perf_counter() - began < seconds and len(times["torch float32"]) < 200
    ):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="rows of a, times 8192 x 8192 weights")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each size")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    rows, versions = [], f"lowbit {lb.__version__} torch {torch.__version__}"
    shapes = [(n, n, n) for n in options.sizes] + [(m, 8192, 8192) for m in options.rows]
    for threads in options.threads:
        torch.set_num_threads(threads)
        lb.set_num_threads(threads)
        for m, n, k in shapes:
            times = measure(contenders(m, n, k), options.seconds, threads)
            kernel, load = _core.matmul_kernel(), f"{os.getloadavg()[0]:.1f}"
            print(f"\n{threads} threads, ({m}, {k}) x ({k}, {n}), {kernel}; load {load}")
            for name, seconds in times.items():
                q1, median, q3 = np.percentile(seconds, [25, 50, 75])
                # Paired: each turn's ratio.
                ratio = float(np.median(np.array(times["torch float32"]) / np.array(seconds)))
                speed = 2 * m * n * k / median / 1e9
                figures = [f"{1e3 * value:.4g}" for value in (median, q1, q3)]
                print(
                    f"  {name:30} {figures[0]:>9} ms [{figures[1]} to {figures[2]}] {speed:6.0f} GOP/s "
                    f"{ratio:6.2f} x float32"
                )
                when = datetime.now(UTC).isoformat("T", "minutes")
                rows.append(
                    (when, processor(), kernel, threads, m, n, k, name, *figures, f"{ratio:.3g}", load, versions)
                )
    if options.record:
        place = HERE / "records" / re.sub(r"\W+", "-", processor().lower()).strip("-")
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{datetime.now(UTC).date()}-matmul.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
        print(f"\n{path}")


if __name__ == "__main__":
    main()
