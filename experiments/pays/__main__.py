"""Rounds of 10 to 10^6 senders with real messages: docs/results/pays.md, for docs/when-it-pays.md.

Cells that were run are kept in docs/results/pays.json and not run again, so that a run can be stopped and continued.
plan.py says what is simulated and what counts as met, forms.py what is promised, costs.py has the model of links.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = 130  # 128 + SIGINT, what a shell reports


def main() -> int:
    """Run what is missing and write the page."""
    options = read_options()
    os.environ["OMP_NUM_THREADS"] = "1"
    import costs
    import numpy as np
    import plan
    import report

    import lowbit as lb

    lb.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "pays.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep() -> None:
        path.write_text(json.dumps(kept, separators=(",", ":")) + "\n")

    if "costs" not in kept:
        kept["costs"] = costs.measure()
        kept["late"] = plan.refused_late(lb.Key(2026).fold("late"))
        keep()
    cells = [cell for cell in plan.cells() if cell.runs >= 5 or not options.quick]
    for number, cell in enumerate(cells):
        part = kept.setdefault("cells", {})
        if cell.title in part:
            continue
        start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rows = []
        for run in range(2 if options.quick else cell.runs):
            rng = np.random.default_rng([2026, number, run])
            key = lb.Key(2026).fold("pays", cell.part, cell.name, run)
            rows.append({name: float(f"{value:.5g}") for name, value in cell.run(rng, key).items()})
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        seconds = round(time.process_time() - start, 1)
        part[cell.title] = {"seconds": seconds, "grown_kb": grown, "runs": rows}
        keep()
        print(f"{seconds:6.1f} s  {cell.title}", flush=True)
    print(report.write(options.out, kept))
    return 0


def read_options() -> argparse.Namespace:
    """Read the command line; a bad option ends the program before any work is done."""
    parser = argparse.ArgumentParser(prog="pays", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 runs of what is short: a look, no result")
    parser.add_argument("--out", type=Path, help="the folder to write to [docs/results; with --quick build/quick]")
    options = parser.parse_args()
    if options.out is None:
        options.out = ROOT / "build" / "quick" if options.quick else ROOT / "docs" / "results"
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. Finished cells are kept.", file=sys.stderr)
        sys.exit(INTERRUPTED)
