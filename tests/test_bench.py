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
    *(
        f"fake_quantize_{grid}{rounding}"
        for grid in ("fp8_e4m3fn", "fp4_e2m1", "fixed_8_4", "luq4", "ternary", "nf4", "log_4", "bfp8")
        for rounding in ("", "_stochastic")
    ),
    "quantize_bfloat16_stochastic",
    "fake_quantize_mxfp4",
    "fake_quantize_nvfp4",
    "quantize_mxfp4",
    "quantize_nvfp4",
    "dequantize_nf4",
    "dequantize_fp8_e4m3fn",
    "dequantize_mxfp4",
    "dequantize_nvfp4",
}


def test_a_short_run_of_convex_steps_prints_every_contender():
    options = "--rows 20 --columns 33 --steps 40 --repeats 1 --no-record"
    command = [sys.executable, BENCH.with_name("convex.py"), *options.split()]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    shown = [line.split("  ")[0].strip() for line in run.stdout.splitlines() if line][1:]
    assert shown == ["HALP int8", "HALP int16", "SVRG float32", "HALP float64, 8 bits", "SVRG float32, NumPy"]


def test_a_short_run_prints_every_operation():
    options = "--sizes 1024 --threads 1 --repeats 1 --no-record --peers numpy ml_dtypes"
    command = [sys.executable, BENCH, *options.split()]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    first_words = {line.split()[0] for line in run.stdout.splitlines() if line}
    assert first_words >= OPERATIONS
    assert "beside the libraries that simulate number formats, 1024 elements" in run.stdout
