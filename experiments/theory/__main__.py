"""Low-precision SGD beside its theory: docs/results/theory.md.

A part is run by ``python experiments/theory PART``; finished cells are kept and never run again, so that a part can be
stopped and continued: "dimension" (E1: does the gap grow with the dimension?), "grids" (E2: steps that grow with the
number), "slope" (E3: the gap against the grid's step), "exponents" (E4: how many bits for the exponent), "centering"
(E5: HALP beside SGD, SVRG and their rounded forms), "averages" (E6: SWALP); "all" for everything (minutes), "report" to
write the page of what there is, "check" to print what the plan asked for and whether it was met.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PARTS = ("dimension", "grids", "slope", "exponents", "centering", "averages")
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports


def main() -> int:
    """Run a part and write the page."""
    options = read_options()
    os.environ["OMP_NUM_THREADS"] = "1"
    import averages
    import centering
    import plan
    import report
    import streams
    from records import Records, run_all

    import lowbit as lb

    lb.set_num_threads(1)
    records = Records(options.out / "theory" / "records.jsonl", quick=options.quick)
    if options.part == "check":
        claims = plan.claims(records)
        for claim in claims:
            print(f"{'met' if claim.met else 'MISSED'}\t{claim.part}\t{claim.text}\t{claim.seen}")
        return 0 if all(claim.met for claim in claims) else 1
    wanted = {"all": PARTS, "report": ()}.get(options.part, (options.part,))
    for module in (streams, centering, averages):
        for part, cells in module.PARTS.items():
            if part in wanted:
                run_all(part, list(cells()), records)
    print(report.write(options.out, records))
    return 0


def read_options() -> argparse.Namespace:
    """Read the command line; a bad option ends the program before any work is done."""
    parser = argparse.ArgumentParser(prog="theory", description=__doc__)
    parser.add_argument("part", choices=(*PARTS, "all", "report", "check"))
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the steps: a look, no result")
    parser.add_argument("--out", type=Path, help="the folder to write to [docs/results; with --quick build/quick]")
    options = parser.parse_args()
    if options.out is None:
        options.out = RESULTS.parents[1] / "build" / "quick" if options.quick else RESULTS
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. Finished cells are kept.", file=sys.stderr)
        sys.exit(INTERRUPTED)
