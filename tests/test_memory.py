"""How much memory a call takes beside its input and output: under 1 MiB a thread, strided inputs included."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
import lowbit as lb

def peak():
    if sys.platform == "linux":  # where getrusage remembers what the parent had before exec
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

ways = {ways}
lb.set_num_threads(2)
for options in ways:  # lets pools and tables come into being, before the arrays that make the peak
    small = np.ones((512, 512), np.{dtype})
    lb.fake_quantize(small, "int4", **options)
    lb.dequantize(lb.quantize(small, "int4", **options), dtype=small.dtype)
x = np.ones((2048, 4096), np.{dtype})
x[:, ::3] = 0.3
x = {view}
out, packed = np.full(x.shape, 7, x.dtype), np.full(x.size // 2, 7, np.uint8)  # every page is touched
for options in ways:
    before = peak()
    {call}
    print(peak() - before)
"""
CALLS = 'lb.fake_quantize(x, "int4", out=out, **options)', 'lb.quantize(x, "int4", out=packed, **options)'


WAYS: tuple[dict[str, object], ...] = ({"scale": 0.5}, {}, {"scale": "minmax", "axis": 0}, {"scale": "sawb"})


def taken(dtype: str, view: str, call: str, ways: tuple[dict[str, object], ...] = WAYS) -> float:
    """Run one call in every way in a process of its own; the most it took, in MiB."""
    program = PROGRAM.format(dtype=dtype, view=view, call=call, ways=ways)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return max(int(line) for line in run.stdout.split()) / 2**20


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the peak is read from getrusage")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("view", ["x", "x.T", "x[::-1, ::2]"])
def test_memory_beside_input_and_output(dtype: str, view: str) -> None:
    for call in (*CALLS, "lb.dequantize(lb.quantize(x, 'int4', out=packed, **options), dtype=x.dtype, out=out)"):
        most = taken(dtype, view, call)
        assert most < 2.5, f"{call}: {most} MiB, more than 1 for each of two threads and half for the allocator"


@pytest.mark.parametrize(
    ("view", "options"),
    [
        ("x", {"block_size": 1}),
        ("x", {"block_size": 3}),
        ("x", {"block_size": 2, "axis": 0}),
        ("x.reshape(2, -1)", {"axis": 1}),
        ("x.reshape(2, -1, 2)", {"axis": 1}),
        ("x.reshape(8, -1)", {"axis": 0, "block_size": 4}),
        ("x.reshape(-1)", {"axis": 0}),
    ],
)
def test_memory_for_scales_that_nobody_asked_for(view: str, options: dict[str, object]) -> None:
    ways = tuple({"scale": rule, **options} for rule in ("amax", "minmax", "sawb"))
    most = taken("float32", view, CALLS[0], ways)
    assert most < 2.5, f"{most} MiB, more than 1 for each of two threads and half for the allocator"


def test_a_copy_would_be_seen() -> None:
    assert taken("float16", "x", "x.copy()") > 10
