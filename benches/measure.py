"""Measure in this process and print one JSON object a line: what runs here, then one for each operation and size.

``bench.py`` starts it once for each thread count, with the environment that :func:`environment` gives.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from operations import OPERATIONS
from problems import Operation, Problem

import lowbit as lb
from lowbit import _core

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS = 2**21  # elements in one sample, so that small arrays are called several times between two readings of the clock


def recipe(operation: Operation, name: str, problem: Problem) -> Callable[[], Any] | None:
    """Set up one contender, if it can do this: formats of numbers are in modules of their own."""
    module = "ours" if name == "lowbit" else f"formats_{name}" if operation.recipe else f"peers_{name}"
    if importlib.util.find_spec(module) is None:
        return None
    make = getattr(importlib.import_module(module), operation.recipe or operation.name, None)
    return make and make(problem, *operation.arguments)


def contenders(operation: Operation, problem: Problem, peers: list[str]) -> dict[str, Callable[[], Any]]:
    """Set up everyone who has a recipe for the operation, and see each one's result pass the same check."""
    calls = {}
    for name in ("lowbit", *peers):
        call = recipe(operation, name, problem)
        if call is None:
            continue
        calls[name] = call
        try:
            operation.check(problem, calls[name]())
        except AssertionError as error:
            raise SystemExit(f"{operation.name}: {name} computes something else: {error}") from error
    return calls


def copies(problem: Problem) -> dict[str, Callable[[], Any]]:
    """Two ways to copy the array on one thread; the faster is the unit."""
    source, target = problem.x, problem.empty()
    to, from_, size = target.ctypes.data, source.ctypes.data, source.nbytes
    return {"copyto": lambda: np.copyto(target, source), "memmove": lambda: ctypes.memmove(to, from_, size)}


def measure(calls: dict[str, Callable[[], Any]], n: int, repeats: int, threads: int) -> dict[str, list[float]]:
    """Quartiles of the ns for each element, all taking turns: A B C A B C ..., so that noise falls on everyone."""
    # One thread is timed by the CPU time of the process: on an idle machine the time on the wall, on a busy one without
    # the turns that other processes take.
    clock = time.process_time_ns if threads == 1 else time.perf_counter_ns
    samples: dict[str, list[float]] = {name: [] for name in calls}
    count = max(1, min(64, CALLS // n))
    for _ in range(repeats):
        for name, call in calls.items():
            if count > 1:
                call()  # the neighbours have used the cache: bring the arrays back
            start = clock()
            for _ in range(count):
                call()
            samples[name].append((clock() - start) / (count * n))
    return {name: np.quantile(times, [0.5, 0.25, 0.75]).tolist() for name, times in samples.items()}


def overhead(repeats: int, threads: int) -> dict[str, dict[str, float]]:
    """Microseconds for a call on 1000 numbers through the public door, and of the compiled function it ends in."""
    x, scale, int4 = np.linspace(-1, 1, 1000, dtype=np.float32), np.float32(0.25), lb.get_format("int4")
    given, out, packed = np.asarray(scale), np.empty_like(x), np.empty(500, np.uint8)
    calls = {
        "fake_quantize": lambda: lb.fake_quantize(x, "int4", scale=scale, out=out),
        "fake_quantize kernel": lambda: _core.fake_quantize(
            x, int4, given, None, None, None, None, "nearest", None, out
        ),
        "quantize": lambda: lb.quantize(x, "int4", scale=scale, out=packed),
        "quantize kernel": lambda: _core.quantize(x, int4, given, None, None, None, None, "nearest", None, packed),
    }
    us = {name: times[0] * x.size / 1000 for name, times in measure(calls, x.size, repeats, threads).items()}
    return {name: {"call": us[name], "kernel": us[f"{name} kernel"]} for name in ("fake_quantize", "quantize")}


def processor() -> str:
    """Name the CPU; a virtual machine often hides the model, so its numbers are added."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            facts = dict(line.split(":", 1) for line in lines.read().split("\n\n")[0].splitlines())
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    if "cpu family" not in facts:
        return facts.get("model name", platform.machine())
    return f"{facts['model name']} family {facts['cpu family']} model {facts['model']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", nargs="+", required=True)
    parser.add_argument("--sizes", nargs="+", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--peers", nargs="*", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    options = parser.parse_args()
    lb.set_num_threads(options.threads)
    packages = {"numpy": "numpy", "numba": "numba", "torch": "torch", "torchao": "torchao"}
    packages |= {"ffht": "ffht-unofficial", "fht_cpu": "fht-cpu", "ml_dtypes": "ml_dtypes", "qtorch": "qtorch"}
    packages |= {"torchao_eager": "torchao"}
    versions = {"python": platform.python_version(), "lowbit": lb.__version__}
    versions |= {name: version(package) for name, package in packages.items() if name in ("numpy", *options.peers)}
    say({"cpu": processor(), "level": _core.cpu_level(), "threads": options.threads, "versions": versions})
    say(overhead(options.repeats, options.threads))
    for n in options.sizes:
        problem = Problem(n)
        for operation in (operation for operation in OPERATIONS if operation.name in options.ops):
            calls = contenders(operation, problem, options.peers) | copies(problem)
            times = measure(calls, n, options.repeats, options.threads)
            say({"operation": operation.name, "n": n, "load": os.getloadavg()[0], "ns": times})


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
