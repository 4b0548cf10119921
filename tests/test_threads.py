"""Thread counts, many callers at once, fork, and a caller's float state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import lowbit as lb
from lowbit import _core
from support import KEY, assert_same, bits, normal, on_flushing_thread, roundings


def test_set_and_get() -> None:
    for n in (1, 2, 7, 1):
        lb.set_num_threads(n)
        assert lb.get_num_threads() == n


def test_eight_callers_at_once_agree(name: str) -> None:
    lb.set_num_threads(2)
    x = normal(100003)
    cases = [{**rounding, **more} for rounding in roundings(name) for more in ({}, {"block_size": 32}, {"scale": 0.3})]
    want = [lb.quantize(x, name, **case) for case in cases]

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(len(cases)):
            assert lb.quantize(x, name, **cases[i]) == want[i]
            key = {"key": KEY} if cases[i].get("rounding") == "dither" else {}
            assert_same(lb.dequantize(want[i], **key), lb.fake_quantize(x, name, **cases[i]))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result()


def test_threads_may_change_the_number_meanwhile() -> None:
    x = normal(200_000)
    want = lb.fake_quantize(x, "int4")
    stop = threading.Event()

    def change() -> None:
        n = 1
        while not stop.is_set():
            lb.set_num_threads(n := n % 4 + 1)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            assert_same(lb.fake_quantize(x, "int4"), want)
    finally:
        stop.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    lb.set_num_threads(2)
    x = normal(1_000_000)
    want = lb.quantize(x, "int4", block_size=32)
    child = os.fork()
    if child == 0:  # no pytest machinery here: nothing but an exit code may leave this process
        code = 1
        try:
            lb.set_num_threads(2)
            code = 0 if lb.quantize(x, "int4", block_size=32) == want else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 60
    while (result := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs: it waits for its parent's threads")
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(result[1]) == 0
    assert lb.quantize(x, "int4", block_size=32) == want, "the parent goes on"


def test_the_interpreter_lock_is_released() -> None:
    """While a long call runs another Python thread goes on counting."""
    x = normal(1 << 23)
    out = np.empty_like(x)
    lb.set_num_threads(1)
    _core.set_cpu_level("portable")
    counts = [0]
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counts[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        during = 0
        for _ in range(10):
            before = counts[0]
            lb.fake_quantize(x, "radix4", scale=1.0, rounding="stochastic", key=1, out=out)
            during += counts[0] - before
    finally:
        stop.set()
        thread.join()
    assert during > 50


def test_the_callers_float_state_is_left_as_it_was() -> None:
    def call() -> bool:
        lb.fake_quantize(normal(100), "int4")
        return bool((np.array([1e-40], np.float32) * np.float32(1) == 0).all())

    still_flushing = on_flushing_thread(call)
    if still_flushing is None:
        pytest.skip("this platform offers no way to flush subnormals")
    assert still_flushing
    assert bits(np.array([1e-40], np.float32) * np.float32(1))[0] == 71362


@pytest.mark.parametrize("level", [*_core.cpu_levels(), ""])
def test_the_environment_chooses_level_and_threads(level: str) -> None:
    program = "import lowbit as lb; from lowbit import _core; print(_core.cpu_level(), lb.get_num_threads())"
    environment = {**os.environ, "LOWBIT_CPU": level, "LOWBIT_NUM_THREADS": "3"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [level or _core.cpu_levels()[-1], "3"]


def test_an_unknown_level_in_the_environment_is_refused() -> None:
    environment = {**os.environ, "LOWBIT_CPU": "v9"}
    run = subprocess.run(
        [sys.executable, "-c", "import lowbit"], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert "LOWBIT_CPU" in run.stderr
    assert "portable" in run.stderr
