"""Time a quantized layer's forward and backward pass beyond its products, beside QPyTorch and plain torch.

``benches/README.md`` tells what is measured; lowbit, torch and (if it is to take part) qtorch must be importable.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import json
import os
import platform
import pstats
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bench import WARM_HEAP, importable

HERE = Path(__file__).parent
GOAL, PEERS_GOAL = 0.25, 5.0  # overhead over a float32 step; the peers' overhead over ours
COLUMNS = (
    *("utc", "cpu", "level", "threads", "layer", "contender", "ms", "q1", "q3"),
    *("overhead_ms", "overhead_of_float32", "times_lowbit", "goal", "met", "load", "versions"),
)


def measure(threads: int, repeats: int, names: list[str]) -> None:
    """Print the times of every layer as JSON lines; everyone takes turns."""
    import torch
    from layer_peers import CONTENDERS, problems
    from measure import processor

    import lowbit as lb
    from lowbit import _core

    torch.set_num_threads(threads)
    lb.set_num_threads(threads)
    versions = {"python": platform.python_version(), "lowbit": lb.__version__}
    versions |= {name: version(name) for name in ("torch", "qtorch") if name == "torch" or name in names}
    print(json.dumps({"cpu": processor(), "level": _core.cpu_level(), "versions": versions}), flush=True)
    clock = time.process_time if threads == 1 else time.perf_counter
    for problem in problems():
        calls = {name: CONTENDERS[name](problem) for name in names}
        exact = calls["float32"]()
        for name, call in calls.items():
            agree(name, exact, call(), problem.x > 0)
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(repeats):
            for name, call in calls.items():
                start = clock()
                call()
                times[name].append(1e3 * (clock() - start))
        print(json.dumps({"layer": problem.name, "load": os.getloadavg()[0], "ms": times}), flush=True)


def agree(name: str, exact: Any, found: Any, inside: Any) -> None:
    """Four bits leave y, dL/dx and dL/dW recognizable; at zeros of x some pass the gradient and some do not."""
    for what, a, b in zip(("y", "dL/dx", "dL/dW"), exact, found, strict=False):
        if what == "dL/dx":
            a, b = a[inside], b[inside]  # noqa: PLW2901
        a, b = a.flatten().double(), b.flatten().double()  # noqa: PLW2901
        cosine = float(a @ b / (a.norm() * b.norm()))
        assert cosine > 0.7, f"{name} computes another {what}: cosine {cosine:.3f}"


def profile(threads: int) -> None:
    """Tell where the time of lowbit's layers goes, by function; matmul and convolutions are what all must pay."""
    import torch
    from layer_peers import lowbit, problems

    import lowbit as lb

    torch.set_num_threads(threads)
    lb.set_num_threads(threads)
    for problem in problems():
        call = lowbit(problem)
        call()
        profiler = cProfile.Profile(time.process_time)
        with torch.autograd.set_multithreading_enabled(False):  # the backward pass in this thread, where it is seen
            profiler.enable()
            for _ in range(20):
                call()
            profiler.disable()
        stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # (file, line, name): calls and times
        own = {f"{Path(file).name}:{line} {name}": times[2] / 20 * 1e3 for (file, line, name), times in stats.items()}
        total = sum(own.values())
        print(f"\n{problem.name}: {total:.2f} ms a step, profiled")
        for name, ms in sorted(own.items(), key=lambda item: -item[1])[:14]:
            print(f"  {ms:8.2f} ms {ms / total:6.1%}  {name}")


def report(about: dict[str, Any], threads: int, rows: list[dict[str, Any]]) -> list[list[Any]]:
    """Print a table of each layer, and give its lines for the record."""
    now, lines = datetime.now(UTC), []
    versions = " ".join(f"{name}={number}" for name, number in about["versions"].items())
    for row in rows:
        times = {name: np.array(ms) for name, ms in row["ms"].items()}
        step = float(np.median(times["float32"]))
        # Differences of the same round, so that a slow spell falls on both.
        overhead = {name: float(np.median(ms - times["gemms"])) for name, ms in times.items()}
        print(f"\n{row['layer']}, {threads} thread{'s' * (threads > 1)}, load average {row['load']:.1f}")
        print(f"{'':14}{'ms (quartiles)':>28}{'over the products':>20}{'of a float32 step':>20}{'times lowbit':>14}")
        for name, ms in times.items():
            low, middle, high = np.quantile(ms, [0.25, 0.5, 0.75])
            share = overhead[name] / step
            times_ours = overhead[name] / overhead["lowbit"] if "lowbit" in overhead else float("nan")
            goal, met = "", ""
            if name == "lowbit":
                goal, met = f"<= {GOAL:g} of float32", "yes" if share <= GOAL else "no"
            elif name not in ("gemms", "float32"):
                goal, met = f">= {PEERS_GOAL:g} times lowbit", "yes" if times_ours >= PEERS_GOAL else "no"
            verdict = f"  {goal}: {met}" if goal else ""
            print(
                f"{name:14}{f'{middle:.2f} ({low:.2f}-{high:.2f})':>28}{overhead[name]:17.2f} ms{share:19.1%}"
                f"{times_ours:14.1f}{verdict}"
            )
            figures = [f"{value:.4f}" for value in (middle, low, high, overhead[name], share, times_ours)]
            place = [f"{now:%H:%M:%S}", about["cpu"], about["level"], threads, row["layer"], name]
            lines.append([*place, *figures, goal, met, f"{row['load']:.2f}", versions])
    return lines


def record(about: dict[str, Any], lines: list[list[Any]]) -> Path:
    """Append to ``records/<cpu>/<date>-torch-layer.csv``."""
    folder = HERE / "records" / re.sub(r"[^a-z0-9]+", "-", about["cpu"].lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now(UTC):%Y-%m-%d}-torch-layer.csv"
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines] if fresh else lines)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T", help="a process for each")
    parser.add_argument("--repeats", type=int, default=25, metavar="R", help="samples of each contender")
    parser.add_argument("--peers", nargs="*", choices=["qtorch", "torch_eager"], help="else all there are")
    parser.add_argument("--profile", action="store_true", help="tell where lowbit's time goes, and measure nothing")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="write benches/records")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peers is None:
        options.peers = ["qtorch"] * importable("qtorch.quant") + ["torch_eager"]
    names = ["gemms", "float32", "lowbit", *options.peers]
    if options.measure:
        if options.profile:
            profile(options.threads[0])
        else:
            measure(options.threads[0], options.repeats, names)
        return
    for threads in options.threads:
        command = [sys.executable, __file__, "--measure", "--threads", str(threads), "--repeats", str(options.repeats)]
        command += ["--peers", *options.peers] + ["--profile"] * options.profile
        counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        output = subprocess.run(
            command, env=os.environ | WARM_HEAP | counts, stdout=subprocess.PIPE, text=True, check=True
        )
        if options.profile:
            print(f"{threads} thread{'s' * (threads > 1)}", output.stdout)
            continue
        about, *rows = map(json.loads, output.stdout.splitlines())
        lines = report(about, threads, rows)
        if options.record:
            print("recorded in", record(about, lines))


if __name__ == "__main__":
    main()
