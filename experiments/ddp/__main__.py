"""Evidence for gradients in few bits on real ranks: docs/results/distributed.md.

Gloo processes on this machine train by every way of plan.py, which says what is compared and what counts as good. A
part is run by ``python experiments/ddp PART``, "all" of them by ``make experiments-ddp``; finished runs are kept in
docs/results/distributed.jsonl and never run again, so that a part can be stopped and continued. "wire" counts the bytes
of a ResNet-50's gradients, "report" writes the page of what there is.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parents[1] / "docs" / "results"
sys.path[:0] = [str(HERE.parent / "train4bit"), str(HERE.parent)]
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports


def main() -> int:
    """Run parts and write the page."""
    os.environ["OMP_NUM_THREADS"] = "1"  # one core a rank
    import datasets
    from ddp import page, plan, wire
    from ddp.crew import Crew, Records, missing
    from ddp.training import train
    from tqdm import tqdm

    options = read_options(tuple(plan.PARTS))
    records = Records(options.out / "distributed.jsonl")
    parts = tuple(plan.PARTS) if options.part == "all" else (options.part,)
    wanted = [run for part in parts if part in plan.PARTS for run in plan.runs(part, options.seeds)]
    if not datasets.FASHION.exists():
        print(f"Fashion-MNIST is not in {datasets.FASHION}, and is left out", file=sys.stderr)
        wanted = [run for run in wanted if run.task != "fashion"]
    left = missing(wanted, records)
    crew, bar = None, tqdm(left)
    try:
        for run in bar:
            bar.set_postfix_str(f"{run.task}, {run.way}, {run.size} ranks, seed {run.seed}")
            if crew is None or len(crew.pipes) != run.size:
                if crew is not None:
                    crew.close()
                crew = Crew(run.size)
            records.add(run, crew.run(train, run, options.steps))
    finally:
        if crew is not None:
            crew.close()
    if options.part in ("all", "wire"):
        wire.keep(options.out / "distributed-wire.json")
    print(page.write(options.out, records))
    return 0


def read_options(parts: tuple[str, ...]) -> argparse.Namespace:
    """Read the command line; a bad option ends the program before any work is done."""
    parser = argparse.ArgumentParser(prog="ddp", description=__doc__)
    parser.add_argument("part", choices=(*parts, "wire", "report", "all"))
    parser.add_argument("--seeds", type=int, metavar="N", help="paired runs of everything [each part's own]")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 16 steps: a look, no result")
    parser.add_argument("--out", type=Path, help="the folder to write to [docs/results; with --quick build/quick]")
    options = parser.parse_args()
    options.steps = 16 if options.quick else None
    if options.quick and options.seeds is None:
        options.seeds = 2
    if options.seeds is not None and options.seeds < 2:
        parser.error("--seeds: an interval needs at least 2")
    if options.out is None:
        options.out = RESULTS.parents[1] / "build" / "quick" if options.quick else RESULTS
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. Finished runs are kept.", file=sys.stderr)
        sys.exit(INTERRUPTED)
