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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

lb.set_num_threads(2)
x = np.ones((2048, 4096), np.{dtype})
x[:, ::3] = 0.3
x = {view}
out, packed = np.zeros(x.shape, x.dtype), np.zeros(x.size // 2, np.uint8)
for options in ({{"scale": 0.5}}, {{}}, {{"scale": "minmax", "axis": 0}}, {{"scale": "sawb"}}):
    small = np.ones((512, 512), x.dtype)  # lets pools and tables come into being
    lb.fake_quantize(small, "int4", **options)
    lb.dequantize(lb.quantize(small, "int4", **options), dtype=x.dtype)
    before = peak()
    lb.fake_quantize(x, "int4", out=out, **options)
    lb.dequantize(lb.quantize(x, "int4", out=packed, **options), dtype=x.dtype, out=out)
    print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the peak is read from getrusage")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("view", ["x", "x.T", "x[::-1, ::2]", "x[:, 1:]"])
def test_memory_beside_input_and_output(dtype: str, view: str) -> None:
    program = PROGRAM.format(dtype=dtype, view=view)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    taken = [int(line) / 2**20 for line in run.stdout.split()]
    assert max(taken) < 2.5, f"more than 1 MiB for each of two threads, and half for the allocator: {taken}"
