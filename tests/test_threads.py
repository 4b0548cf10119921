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
from support import KEY, assert_same, bits, fit, normal, on_flushing_thread, roundings


def test_set_and_get() -> None:
    for n in (1, 2, 7, 1):
        lb.set_num_threads(n)
        assert lb.get_num_threads() == n


@pytest.mark.parametrize("n", [0, -1, 1025, 2**70, -(2**70)])
def test_numbers_of_threads_out_of_range(n: int) -> None:
    with pytest.raises(lb.Error, match=f"^n: {n} is out of range; give 1 to 1024"):
        lb.set_num_threads(n)


@pytest.mark.parametrize("n", [True, np.True_, 1.0, "2", None])
def test_numbers_of_threads_that_are_none(n: object) -> None:
    with pytest.raises(TypeError, match=r"^n: expected an int"):
        lb.set_num_threads(n)


def helpers_of(program: str) -> int:
    """Run a program in a new process and count the helpers it has made in the end."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this platform does not list a process's threads")
    count = (
        "print(sum(open(f'/proc/self/task/{t}/comm').read()[:7] == 'lowbit-' for t in os.listdir('/proc/self/task')))"
    )
    program = f"import os, threading, lowbit as lb\n{program}\n{count}"
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def test_going_through_all_numbers_makes_few_pools() -> None:
    program = "for n in range(2, 40): lb.set_num_threads(n); lb.random_bits(1, 1 << 20)"
    assert helpers_of(program) == 1 + 3 + 7 + 15 + 31 + 63


def test_racing_callers_share_one_pool() -> None:
    program = """
def call():
    start.wait()
    lb.random_bits(1, 1 << 20)
lb.set_num_threads(16)
start = threading.Barrier(8)
callers = [threading.Thread(target=call) for _ in range(8)]
for caller in callers: caller.start()
for caller in callers: caller.join()
"""
    assert helpers_of(program) == 15


def test_eight_callers_at_once_agree(coded: str) -> None:
    lb.set_num_threads(2)
    x, name = normal(100003), coded
    ways = ({}, {"block_size": 32}, {"scale": 0.3})
    cases = [fit(name, **rounding, **more) for rounding in roundings(name) for more in ways]
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


def test_a_child_with_its_parents_number_computes_with_threads_of_its_own() -> None:
    """Process 1 of a PID namespace forks process 1 of another."""
    program = """
import ctypes, os, signal, sys, time
import lowbit as lb

def fork_into_a_namespace():
    new_user, new_pid = 0x10000000, 0x20000000
    libc = ctypes.CDLL(None)
    if libc.unshare(new_pid) and libc.unshare(new_user | new_pid):
        os._exit(77)
    return os.fork()

def wait(child):
    deadline = time.monotonic() + 60
    while (result := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    os._exit(abs(os.waitstatus_to_exitcode(result[1])))

lb.set_num_threads(2)
if child := fork_into_a_namespace():
    wait(child)
want = lb.random_bits(1, 1 << 20)
if child := fork_into_a_namespace():
    wait(child)
os._exit(0 if os.getpid() == 1 and (lb.random_bits(1, 1 << 20) == want).all() else 3)
"""
    if sys.platform != "linux":
        pytest.skip("PID namespaces are Linux's")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, check=False, timeout=120)
    if run.returncode == 77:
        pytest.skip("this process may not make PID namespaces")
    assert run.returncode == 0


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


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        *[("LOWBIT_CPU", value, "portable") for value in ("v9", "\udcff")],
        *[("LOWBIT_NUM_THREADS", value, "1 to 1024") for value in ("0", "abc", "-3", "5000", "2.0", " ", "\udcff")],
    ],
)
def test_a_bad_environment_is_refused(variable: str, value: str, advice: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", "import lowbit"],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"lowbit.Error: {variable}: ")
    assert advice in last


def test_an_empty_environment_is_none() -> None:
    program = "import lowbit as lb; print(lb.get_num_threads())"
    environment = {**os.environ, "LOWBIT_NUM_THREADS": "", "LOWBIT_CPU": ""}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert 1 <= int(run.stdout) <= 1024
