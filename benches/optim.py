"""Time a step of AdamW: bfloat16 weights rounded at random (`LowPrecision`), beside torch's fused AdamW in float32.

``python benches/optim.py`` (lowbit and torch importable) prints a table; contenders take turns, medians with quartiles.
With ``--record`` it also writes ``benches/records/<processor>/<day>-optim.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
#: Lengths of the tensors that one step updates.
SIZES: dict[str, list[int]] = {
    "2^10": [1 << 10],
    "2^14": [1 << 14],
    "2^16": [1 << 16],
    "2^18": [1 << 18],
    "2^20": [1 << 20],
    "2^22": [1 << 22],
    "2^24": [1 << 24],
    "100 x 2^10": [1 << 10] * 100,
    "100 x 2^14": [1 << 14] * 100,
    # Two blocks of width 512: projections, a feed-forward pair, biases and norms.
    "transformer": ([512 * 512] * 4 + [512 * 2048] * 2 + [512] * 9 + [2048]) * 2,
}
COLUMNS = ("utc", "cpu", "level", "threads", "tensors", "contender", "ms", "q1", "q3", "of_torch", "load", "versions")


def contenders() -> dict[str, Any]:
    """Give functions that make each optimizer of a list of lengths."""
    import torch

    from lowbit.torch.optim import LowPrecision

    def parameters(lengths: list[int], dtype: torch.dtype) -> list[torch.nn.Parameter]:
        made = [torch.nn.Parameter(torch.randn(n).to(dtype)) for n in lengths]
        for p in made:
            p.grad = torch.randn(p.shape).to(dtype) * 0.01
        return made

    def torchs(dtype: torch.dtype) -> Any:
        return lambda lengths: torch.optim.AdamW(parameters(lengths, dtype), lr=1e-3, fused=True)

    def ours(**options: Any) -> Any:
        def make(lengths: list[int]) -> Any:
            inner = torch.optim.AdamW(parameters(lengths, torch.bfloat16), lr=1e-3)
            return LowPrecision(inner, weight="bfloat16", key=1, **options)

        return make

    return {
        "torch fused, float32": torchs(torch.float32),
        "torch fused, bfloat16": torchs(torch.bfloat16),
        "LowPrecision": ours(),
        "LowPrecision, bfloat16 states": ours(momentum="bfloat16"),
    }


def measure(threads: int, repeats: int, wanted: list[str]) -> None:
    """Print the times of every size as JSON lines; everyone takes turns."""
    import torch
    from measure import processor

    import lowbit as lb
    from lowbit import _core

    torch.set_num_threads(threads)
    lb.set_num_threads(threads)
    versions = {"python": platform.python_version(), "lowbit": lb.__version__, "torch": version("torch")}
    print(json.dumps({"cpu": processor(), "level": _core.cpu_level(), "versions": versions}), flush=True)
    clock = time.process_time if threads == 1 else time.perf_counter
    for name in wanted:
        lengths = SIZES[name]
        steps = {who: make(lengths).step for who, make in contenders().items()}
        # Short steps are repeated within one measurement, which the clock then resolves.
        inner = max(1, min(200, (1 << 20) // sum(lengths)))
        times: dict[str, list[float]] = {who: [] for who in steps}
        for turn in range(repeats + 2):
            for who, step in steps.items():
                start = clock()
                for _ in range(inner):
                    step()
                if turn >= 2:
                    times[who].append(1e3 * (clock() - start) / inner)
        for who, found in times.items():
            q1, ms, q3 = np.quantile(found, [0.25, 0.5, 0.75])
            row = {"tensors": name, "contender": who, "ms": ms, "q1": q1, "q3": q3, "load": os.getloadavg()[0]}
            print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tensors", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(options.child, options.repeats, options.tensors)
        return
    now, rows = datetime.now(UTC), []
    for threads in options.threads:
        command = [sys.executable, __file__, "--child", str(threads), "--repeats", str(options.repeats)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        run = subprocess.Popen(
            [*command, "--tensors", *options.tensors], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert run.stdout is not None
        machine = json.loads(run.stdout.readline())
        print(f"{machine['cpu']} ({machine['level']}), {threads} thread(s)")
        reference = 1.0
        for line in run.stdout:
            row = json.loads(line)
            reference = row["ms"] if row["contender"] == "torch fused, float32" else reference
            times = f"{row['ms']:9.4f} ms ({row['q1']:.4f} to {row['q3']:.4f})"
            print(f"  {row['tensors']:12} {row['contender']:30} {times}  {row['ms'] / reference:5.2f}", flush=True)
            extra = {"utc": f"{now:%Y-%m-%dT%H:%MZ}", "threads": threads, "of_torch": row["ms"] / reference}
            rows.append({**machine, **row, **extra, "versions": json.dumps(machine["versions"])})
        assert run.wait() == 0
    if options.record:
        folder = HERE / "records" / re.sub(r"[^a-z0-9]+", "-", rows[0]["cpu"].lower()).strip("-")
        folder.mkdir(exist_ok=True)
        with (folder / f"{now:%Y-%m-%d}-optim.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
