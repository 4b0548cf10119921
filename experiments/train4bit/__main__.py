"""Evidence for training in 4 bits: docs/results/train4bit.md.

A part is run by ``python experiments/train4bit PART``; finished runs are kept and never run again, so that a part can
be stopped and continued, and lent to others: "gradients" (A: gradients rounded, nothing trained in low precision),
"rates" (learning rates, float32), "compare" (B: recipes on five tasks), "longer" (B: Fashion-MNIST for
four times as long), "switches" (B: sun2020's switches), "curve" (C: fixed gradient scales), "bases" (D: grids of
gradients), "depth" (E: deeper networks); "all" for everything, and "report" to write the page of what there is. plan.py
says what is compared and what counts as good.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
TRAINED = ("rates", "compare", "longer", "switches", "curve", "bases", "depth")
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports


def main() -> int:
    """Run a part and write the page."""
    options = read_options()
    os.environ["OMP_NUM_THREADS"] = "1"  # one core a process
    import datasets
    import gradients
    import plan
    import rates
    import report
    import through
    from runs import Records, run_all

    folder = options.out / "train4bit"
    parts = ("gradients", *TRAINED) if options.part == "all" else (options.part,)
    records = Records(folder / "records.jsonl", quick=options.quick)
    for part in parts:
        if part == "gradients":
            report.keep(folder / "gradients.csv", lambda: gradients.collect(quick=options.quick))
            report.keep(folder / "through.csv", lambda: through.collect(1 if options.quick else through.SEEDS))
        elif part in TRAINED:
            wanted = list(rates.runs() if part == "rates" else plan.runs(part, options.seeds))
            if not datasets.FASHION.exists():
                print(f"{part}: Fashion-MNIST is not in {datasets.FASHION}, and is left out", file=sys.stderr)
                wanted = [run for run in wanted if run.task not in ("fashion", plan.LONGER)]
            run_all(wanted, records, options.jobs, part)
    print(report.write(options.out, records))
    return 0


def read_options() -> argparse.Namespace:
    """Read the command line; a bad option ends the program before any work is done."""
    parser = argparse.ArgumentParser(prog="train4bit", description=__doc__)
    parser.add_argument("part", choices=("gradients", *TRAINED, "report", "all"))
    parser.add_argument("--seeds", type=int, metavar="N", help="paired runs of everything [each part's own]")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="trainings at a time, one core each [2]")
    parser.add_argument("--quick", action="store_true", help="2 seeds, a tenth of the steps: a look, no result")
    parser.add_argument("--out", type=Path, help="the folder to write to [docs/results; with --quick build/quick]")
    options = parser.parse_args()
    if options.quick and options.seeds is None:
        options.seeds = 2
    if options.seeds is not None and options.seeds < 2:
        parser.error("--seeds: an interval needs at least 2")
    if options.jobs < 1:
        parser.error("--jobs: expected a positive number")
    if options.out is None:
        options.out = RESULTS.parents[1] / "build" / "quick" if options.quick else RESULTS
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. Finished runs are kept.", file=sys.stderr)
        sys.exit(INTERRUPTED)
