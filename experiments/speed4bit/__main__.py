"""Is 4-bit training faster on an ordinary CPU? docs/results/speed4bit.md.

Times whole training steps and inference of three kinds of networks, on one thread and on two; what was timed is kept in
docs/results/speed4bit.jsonl, by CPU, and is not timed again unless that line is deleted. plan.py says what was hoped
for. ``--quick`` times two small cases: a look, no result.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "benches"), str(ROOT / "experiments")]


def main() -> int:
    """Time what is missing and write the page."""
    options = read_options()
    os.environ["OMP_NUM_THREADS"] = str(max(options.threads))
    import report
    from measure import processor

    path = options.out / "speed4bit.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    about = {"cpu": processor(), "quick": options.quick}
    if not options.report:
        for key, row in cases(options):
            if any(key == {name: old.get(name) for name in key} and old["cpu"] == about["cpu"] for old in rows):
                continue
            rows.append(key | about | row())
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(report.line(rows[-1]), flush=True)
    print(report.write(options.out, rows))
    return 0


def cases(options: argparse.Namespace) -> Any:
    """Give every measurement's name, and what makes it."""
    import clocks
    import contenders
    import plan
    import torch
    from machine import watched

    import lowbit as lb
    from lowbit import _core

    def timed(make: Any, names: tuple[str, ...], case: plan.Case, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        lb.set_num_threads(threads)
        # A minute a step where the CPU has no instructions for bfloat16.
        left_out = {"bfloat16"} if _core.matmul_kernel() in ("portable", "avx2") and case.width > 512 else set()
        if case.network != "mlp":
            # torch's dynamic quantization has no convolutions, and fails on encoder layers.
            left_out.add("int8")
        calls = {name: make(case, name) for name in names if name not in left_out}
        times, note = watched(lambda: clocks.alternate(calls, options.seconds))
        row = {"kernel": _core.matmul_kernel(), "ms": times, "note": note}
        joules = {name: clocks.energy(call, options.seconds / 4) for name, call in calls.items()}
        return row | ({"mj": joules} if None not in joules.values() else {})

    training, inference = plan.TRAINING, plan.INFERENCE
    if options.quick:
        training = inference = [plan.Case("mlp", 256, 64), plan.Case("cnn", 16, 4)]
    for threads in options.threads:
        for what, some, make, names in (
            ("training", training, contenders.step, contenders.TRAINING),
            ("inference", inference, contenders.forward, contenders.INFERENCE),
        ):
            for case in some:
                key = {"what": what, "case": case.name, "threads": threads}
                yield key, lambda case=case, make=make, names=names, threads=threads: timed(make, names, case, threads)
    for case in training[:1] if options.quick else plan.SHARES:
        key = {"what": "shares", "case": case.name, "threads": 1}

        def shares(case: plan.Case = case) -> dict[str, Any]:
            torch.set_num_threads(1)
            lb.set_num_threads(1)
            return {"kernel": _core.matmul_kernel(), "parts": clocks.shares(case, 10)}

        yield key, shares


def read_options() -> argparse.Namespace:
    """Read the command line; a bad option ends the program before any work is done."""
    parser = argparse.ArgumentParser(prog="speed4bit", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="[1 2]")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="for each case [8]")
    parser.add_argument("--quick", action="store_true", help="two small cases, into build/quick")
    parser.add_argument("--report", action="store_true", help="time nothing, write the page")
    parser.add_argument("--out", type=Path, help="the folder to write to [docs/results]")
    options = parser.parse_args()
    if min(options.threads) < 1:
        parser.error("--threads: expected numbers from 1")
    if options.quick:
        options.seconds = 0.5
    if options.out is None:
        options.out = ROOT / "build" / "quick" if options.quick else ROOT / "docs" / "results"
    return options


if __name__ == "__main__":
    sys.exit(main())
