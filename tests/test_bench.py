"""The benchmark runs and names every operation; nothing here depends on how long anything takes."""

import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "benches" / "bench.py"
OPERATIONS = {
    "fake_quantize_int4",
    "fake_quantize_radix4",
    "fake_quantize_int4_stochastic",
    "fake_quantize_radix4_stochastic",
    "quantize_int4",
    "quantize_int4_amax",
    "quantize_int4_block32",
    "quantize_int4_block128",
    "dequantize_int4",
    "dequantize_int4_block128",
    "onebit_encode",
    "onebit_decode",
    "random_bits",
    "hadamard",
    "hadamard_1024",
    "randomized_hadamard",
}


def test_a_short_run_prints_every_operation():
    options = "--sizes 1024 --threads 1 --repeats 1 --no-record --peers numpy"
    command = [sys.executable, BENCH, *options.split()]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    first_words = {line.split()[0] for line in run.stdout.splitlines() if line}
    assert first_words >= OPERATIONS
