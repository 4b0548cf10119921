"""Federated learning in Flower with few bits both ways: docs/results/federated.md.

Ten clients train in Flower's own simulation engine, and every byte of their messages is counted. Seeds that were run
are kept in docs/results/federated.json and not run again. plan.py says what is compared, task.py what is learned.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run what is missing and write the page."""
    options = read_options()
    # One core a client; nothing is reported to anyone.
    os.environ.update(
        OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0"
    )
    import engine
    import plan
    import report

    logging.getLogger("flwr").setLevel(logging.ERROR)
    ways = plan.WAYS
    path = options.out / "federated.json"
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {"data": options.data, "rounds": options.rounds, "runs": {}}
    if path.exists():
        kept = json.loads(path.read_text())
    if (kept["data"], kept["rounds"]) != (options.data, options.rounds):
        print(f"{path}: holds {kept['data']} in {kept['rounds']} rounds; give another --out", file=sys.stderr)
        return 2
    for seed in range(options.seeds):
        done = kept["runs"].setdefault(str(seed), {})
        missing = [way for way in ways if way.name not in done]
        if missing:
            start = time.perf_counter()
            done.update(engine.run(missing, options.data, seed, options.rounds, options.jobs))
            print(f"seed {seed}: {len(missing)} ways in {time.perf_counter() - start:.0f} s", flush=True)
            path.write_text(json.dumps(kept, separators=(",", ":")) + "\n")
    print(report.write(options.out, kept))
    return 0


def read_options() -> argparse.Namespace:
    """Read the command line; a bad option ends the program before any work is done."""
    parser = argparse.ArgumentParser(prog="federated", description=__doc__)
    parser.add_argument("--data", choices=("mnist5k", "digits"), default="mnist5k", help="[mnist5k]")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="paired runs of everything [5]")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="[30]")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="clients that train at a time [2]")
    parser.add_argument("--quick", action="store_true", help="digits, 2 seeds, 6 rounds: a look, no result")
    parser.add_argument("--out", type=Path, help="the folder to write to [docs/results; with --quick build/quick]")
    options = parser.parse_args()
    if options.quick:
        options.data, options.seeds, options.rounds = "digits", 2, 6
    if options.seeds < 2:
        parser.error("--seeds: an interval needs at least 2")
    if options.rounds < 6:
        parser.error("--rounds: expected at least 6")
    if options.out is None:
        options.out = ROOT / "build" / "quick" if options.quick else ROOT / "docs" / "results"
    return options


if __name__ == "__main__":
    sys.exit(main())
