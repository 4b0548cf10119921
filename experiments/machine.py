"""How busy others kept the machine while something was timed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def watched(call: Callable[[], T]) -> tuple[T, str]:
    """Call, and say how many cores other processes used meanwhile."""
    before, own, start = _busy(), time.process_time(), time.perf_counter()
    result = call()
    elapsed, ours, after = time.perf_counter() - start, time.process_time() - own, _busy()
    if before is None or after is None:
        return result, "What else the machine did meanwhile is not known."
    others = max(0.0, after - before - ours) / elapsed
    return result, f"Meanwhile other processes used {others:.2f} of {os.cpu_count()} cores."


def _busy() -> float | None:
    """Seconds that all cores together have worked, if the system tells."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
