"""How much memory a call takes beside its input and output: under 1 MiB a thread, strided inputs included."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
import lowbit as lb

lb.set_num_threads(2)
x = np.ones((2048, 4096), np.{dtype})
x[:, ::3] = 0.3
x = {view}
out = np.zeros(x.shape, x.dtype)
packed = np.zeros(x.size // 2, np.uint8)
options = {options}
small = np.ones((512, 512), x.dtype)  # lets pools and tables come into being
lb.fake_quantize(small, "int4", **options)
lb.quantize(small, "int4", **options)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lb.fake_quantize(x, "int4", out=out, **options)
q = lb.quantize(x, "int4", out=packed, **options)
lb.dequantize(q, dtype=x.dtype, out=out)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024) - q.scale.nbytes)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the peak is read from getrusage")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("view", ["x", "x.T", "x[::-1, ::2]", "x[:, 1:]"])
@pytest.mark.parametrize("options", ['{"scale": 0.5}', "{}", '{"axis": 0}', '{"block_size": 32, "axis": 0}'])
def test_memory_beside_input_and_output(dtype: str, view: str, options: str) -> None:
    program = PROGRAM.format(dtype=dtype, view=view, options=options)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 2 * 2**20 + 2**19, "more than 1 MiB for each of two threads (and half for the allocator)"
