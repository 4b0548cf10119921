"""Time contenders in turn, and find what a step's time is spent on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import contenders
import numpy as np
from plan import Case

from lowbit import _core

#: Joules of package 0, in millionths, where the system lets one read them.
_RAPL = Path("/sys/class/powercap/intel-rapl:0/energy_uj")


def alternate(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Call everyone in turn until the time is over, at least five times; milliseconds.

    Whose first call takes ten times as long as the quickest's, and a second, is not called again.
    """
    times = {name: [_clocked(call)] for name, call in calls.items()}
    quickest = min(ms[0] for ms in times.values())
    rest = {name: call for name, call in calls.items() if times[name][0] < max(1000, 10 * quickest)}
    for name in rest:
        times[name] = []  # a first call also warms up
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        for name, call in rest.items():
            times[name].append(_clocked(call))
        rounds += 1
    return times


def _clocked(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def energy(call: Callable[[], Any], seconds: float) -> float | None:
    """Millijoules a call, or nothing where the machine does not tell."""
    try:
        before = int(_RAPL.read_text())
    except OSError:
        return None
    end, calls = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        call()
        calls += 1
    return (int(_RAPL.read_text()) - before) / 1e3 / calls


def shares(case: Case, repeats: int) -> dict[str, float]:
    """Split the milliseconds of a step on integers: quantizing, packing, multiplying, and all else.

    A product's own time is P + Q + M: packing a's and b's panels, and multiplying. Half of a's rows take P / 2, Q and
    M / 2, half of b's columns P, Q / 2 and M / 2, so that three timings tell the parts.
    """
    call = contenders.step(case, "integer")
    call()
    spent: dict[str, list[float]] = {"quantize": [], "product": [], "step": []}
    products: list[tuple[Any, ...]] = []
    for _ in range(repeats):
        with _watched() as (clock, seen):
            start = time.perf_counter()
            call()
            spent["step"].append(1e3 * (time.perf_counter() - start))
        for name in ("quantize", "product"):
            spent[name].append(clock[name])
        products = seen
    middle = {name: float(np.median(times)) for name, times in spent.items()}
    packing = sum(_packing(arguments, repeats) for arguments in products)
    packing = min(packing, middle["product"])
    return {
        "quantizing": middle["quantize"],
        "packing": packing,
        "multiplying": middle["product"] - packing,
        "all else": middle["step"] - middle["quantize"] - middle["product"],
    }


@contextmanager
def _watched() -> Iterator[tuple[dict[str, float], list[tuple[Any, ...]]]]:
    """Clock the core's functions."""
    clock, seen = {"quantize": 0.0, "product": 0.0}, []
    plain = {name: getattr(_core, name) for name in dir(_core) if callable(getattr(_core, name))}
    plain = {name: one for name, one in plain.items() if type(one).__name__ == "builtin_function_or_method"}

    def clocked(name: str, one: Callable[..., Any]) -> Callable[..., Any]:
        part = "product" if name == "code_product" else "quantize"

        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = one(*arguments)
            clock[part] += 1e3 * (time.perf_counter() - start)
            if part == "product":
                seen.append(arguments)
            return result

        return call

    for name, one in plain.items():
        setattr(_core, name, clocked(name, one))
    try:
        yield clock, seen
    finally:
        for name, one in plain.items():
            setattr(_core, name, one)


def _packing(arguments: tuple[Any, ...], repeats: int) -> float:
    """Milliseconds of a product's packing, by halving its rows and its columns."""
    a, a_format, a_rows, a_columns, a_turned, b, b_format, b_rows, b_columns, b_turned, y = arguments
    m, n = y.shape

    def product(rows: int, columns: int) -> Callable[[], None]:
        # Half of the numbers, in the same layout: what they are does not matter to the time.
        one = (a_rows, rows) if a_turned else (rows, a_columns)
        two = (columns, b_columns) if b_turned else (b_rows, columns)
        parts = [
            codes[: -(-(shape[0] * shape[1] * len(codes)) // (stored[0] * stored[1]))]
            for codes, shape, stored in ((a, one, (a_rows, a_columns)), (b, two, (b_rows, b_columns)))
        ]
        out = np.empty((rows, columns), np.float32)
        return lambda: _core.code_product(parts[0], a_format, *one, a_turned, parts[1], b_format, *two, b_turned, out)

    ways = {"all": product(m, n), "rows": product(m // 2, n), "columns": product(m, n // 2)}
    times = {name: float(np.median(ms)) for name, ms in alternate(ways, 0.02 * repeats).items()}
    return max(0.0, 2 * times["rows"] - times["all"]) + max(0.0, 2 * times["columns"] - times["all"])
