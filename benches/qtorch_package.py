"""Time `lowbit.torch.qtorch` beside QPyTorch itself, on one thread: nanoseconds for an element.

``benches/README.md`` tells how it is measured. lowbit, torch and qtorch must be importable, and ``ninja`` on the path.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from bench import WARM_HEAP
from measure import processor

#: lowbit's own goal where numbers are random: 40 times QPyTorch's speed, which takes 41 ns where nothing disturbs it.
GOAL, GOALS = 1.03, ("float_quantize(4, 3) stochastic", "fixed_point_quantize(8, 4) stochastic")
COLUMNS = (
    *("utc", "cpu", "level", "call", "n", "contender", "ns_per_element", "least", "q1", "q3"),
    *("times_lowbit", "goal", "met", "load", "versions"),
)


def calls(package: Any) -> dict[str, Callable[[Any], Any]]:
    """Give what is timed, by name: from a matrix to whatever comes of it."""
    quant, number = package.quant, package.BlockFloatingPoint(8, 0)
    round_ = quant.quantizer(number, number)

    def there_and_back(x: Any) -> Any:
        x = x.detach().requires_grad_()
        round_(x).backward(x.detach())
        return x.grad

    found: dict[str, Callable[[Any], Any]] = {}
    for rounding in ("stochastic", "nearest"):
        how = {"rounding": rounding}
        found[f"float_quantize(4, 3) {rounding}"] = lambda x, how=how: quant.float_quantize(x, 4, 3, **how)
        found[f"fixed_point_quantize(8, 4) {rounding}"] = lambda x, how=how: quant.fixed_point_quantize(x, 8, 4, **how)
        found[f"block_quantize(8) {rounding}"] = lambda x, how=how: quant.block_quantize(x, 8, **how)
        found[f"block_quantize(8, dim=0) {rounding}"] = lambda x, how=how: quant.block_quantize(x, 8, 0, **how)
    return found | {"quantizer there and back, block 8, dim=0": there_and_back}


def measure(sizes: list[int], repeats: int) -> list[list[Any]]:
    """Let both take turns; print a table, give the lines of the record."""
    import qtorch
    import qtorch.quant
    import torch

    import lowbit as lb
    from lowbit import _core
    from lowbit.torch import qtorch as ours

    torch.set_num_threads(1)
    lb.set_num_threads(1)
    versions = {"python": platform.python_version(), "lowbit": lb.__version__, "torch": torch.__version__}
    versions["qtorch"] = version("qtorch")
    cpu, lines = processor(), []
    print(f"{cpu}, level {_core.cpu_level()}, one thread, {versions}")
    for n in sizes:
        x = torch.randn(256, n // 256, generator=torch.Generator().manual_seed(0))
        copied = torch.empty_like(x)
        both = zip(calls(ours).items(), calls(qtorch).values(), strict=True)
        rows = {name: {"lowbit": mine, "qtorch": theirs} for (name, mine), theirs in both}
        for name, contenders in {"copy": {"torch": copied.copy_}, **rows}.items():
            if name.endswith("nearest"):
                assert torch.equal(*(call(x) for call in contenders.values())), name
            times: dict[str, list[float]] = {contender: [] for contender in contenders}
            for turn in range(repeats + 1):
                for contender, call in contenders.items():
                    # Our calls are short: several make a sample.
                    count = max(1, (1 << 20) // n) if contender != "qtorch" else 1
                    start = time.process_time()
                    for _ in range(count):
                        call(x)
                    if turn:
                        times[contender].append((time.process_time() - start) / count / n * 1e9)
            quantiles = {contender: np.quantile(t, [0, 0.25, 0.5, 0.75]) for contender, t in times.items()}
            load, now = f"{os.getloadavg()[0]:.2f}", f"{datetime.now(UTC):%H:%M:%S}"
            for contender, (least, low, middle, high) in quantiles.items():
                ratio = middle / quantiles["lowbit"][2] if "lowbit" in quantiles else float("nan")
                goal = f"<= {GOAL} ns" if contender == "lowbit" and name in GOALS else ""
                met = "" if not goal else "yes" if middle <= GOAL else "no"
                figures = [f"{value:.3f}" for value in (middle, least, low, high)]
                about = [name, n, contender, *figures, f"{ratio:.1f}", goal, met, load]
                spread = f"(least {least:.3f}, quartiles {low:.3f}-{high:.3f})"
                print(f"{name:44}{n:>10}{contender:>8}{middle:9.3f} ns {spread:40}{ratio:8.1f} {goal} {met}")
                text = " ".join(f"{key}={value}" for key, value in versions.items())
                lines.append([now, cpu, _core.cpu_level(), *about, text])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1 << 16, 1 << 20, 1 << 24], metavar="N")
    parser.add_argument("--repeats", type=int, default=7, metavar="R", help="samples of each contender")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="write benches/records")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.measure:
        environment = os.environ | WARM_HEAP | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        subprocess.run([sys.executable, *sys.argv, "--measure"], env=environment, check=True)
        return
    lines = measure(options.sizes, options.repeats)
    if options.record:
        folder = Path(__file__).parent / "records" / re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{datetime.now(UTC):%Y-%m-%d}-qtorch.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines] if fresh else lines)
        print("recorded in", path)


if __name__ == "__main__":
    main()
