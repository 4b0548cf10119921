"""Time lowbit beside a memcpy and the libraries that do the same work. ``README.md`` tells how and why so."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operations import OPERATIONS
from report import BY_NAME, Row, overhead, record, simulators, speedups, table

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
PEERS = {
    **{"numpy": "numpy", "numba": "numba", "torch": "torch", "torch_compile": "torch", "torchao": "torchao"},
    **{"ffht": "ffht", "fht_cpu": "fht_cpu"},
    # Of number formats only; microxcaling stands for what it computes.
    **{"ml_dtypes": "ml_dtypes", "qtorch": "qtorch.quant", "torchao_eager": "torchao", "microxcaling": "torch"},
}
WARM_HEAP = {
    # Freed memory stays with the process, so that a peer that returns a fresh array is not timed faulting pages in.
    "MALLOC_MMAP_THRESHOLD_": str(2**31),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages, as NumPy always does
    # OpenMP threads that spin after their call would steal the second core from the next contender.
    "OMP_WAIT_POLICY": "passive",
}


def arguments() -> argparse.Namespace:
    names = [operation.name for operation in OPERATIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=names, default=names, metavar="OP", help=", ".join(names))
    sizes = [2**17, 2**20, 2**24]
    parser.add_argument("--sizes", nargs="+", type=size, default=sizes, metavar="N", help="multiples of 128")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="T", help="a process for each")
    parser.add_argument(
        "--peers", nargs="*", choices=PEERS, metavar="P", help=f"of {', '.join(PEERS)}; else all there are"
    )
    parser.add_argument("--repeats", type=int, default=15, metavar="R", help="samples of each contender")
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="write benches/records")
    options = parser.parse_args()
    if options.peers is None:
        options.peers = [peer for peer, package in PEERS.items() if importable(package)]
    return options


@cache
def importable(package: str) -> bool:
    """Try in another process: a torch without its libraries is found, but cannot be imported."""
    command = [sys.executable, "-c", f"import {package}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def size(text: str) -> int:
    """Read a size: ``1024`` or ``2^17``."""
    base, _, exponent = text.partition("^")
    n = int(base) ** int(exponent or 1)
    if n < 128 or n % 128:
        raise argparse.ArgumentTypeError(f"{n} is not a multiple of 128")
    return n


def measurements(options: argparse.Namespace, threads: int) -> Iterator[dict[str, Any]]:
    """Run measure.py on so many threads and yield what it prints."""
    counts = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), str(threads)
    )
    lists = [("--ops", options.ops), ("--sizes", options.sizes), ("--peers", options.peers)]
    command = [sys.executable, str(HERE / "measure.py"), "--threads", str(threads), "--repeats", str(options.repeats)]
    command += [str(word) for flag, words in lists for word in (flag, *words)]
    with subprocess.Popen(command, env=os.environ | WARM_HEAP | counts, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(process.returncode)


def main() -> None:
    options = arguments()
    everything: list[Row] = []
    for threads in options.threads:
        lines = measurements(options, threads)
        about, rows = next(lines), []
        calls = next(lines)
        for line in lines:
            rows.append(Row(BY_NAME[line["operation"]], line["n"], about["level"], threads, line["load"], line["ns"]))
            progress = f"{threads} threads: {len(rows)} of {len(options.ops) * len(options.sizes)}"
            print(f"\r{progress}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        for n, of_formats in product(options.sizes, (False, True)):
            chosen = [row for row in rows if row.n == n and bool(row.operation.recipe) == of_formats]
            if chosen:
                print(table(chosen, options.peers), flush=True)
        everything += rows
    print(simulators(everything))
    print(speedups(everything))
    print(overhead(calls))
    print("\n!: a goal beside a peer is missed. Heaps are warm:", " ".join(f"{k}={v}" for k, v in WARM_HEAP.items()))
    print(about["cpu"], about["versions"])
    if options.record:
        print("recorded in", record(HERE / "records", about, everything))


if __name__ == "__main__":
    main()
