"""Fixtures over formats and CPU levels, and the report of what a run covered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

import lowbit as lb
import support
from lowbit import _core

# A loaded machine is slow, not wrong.
settings.register_profile("lowbit", deadline=None)
settings.load_profile("lowbit")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let a test that asks for `name` run for every format, one that asks for `coded` for every one with codes."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", support.FORMATS)
    if "coded" in metafunc.fixturenames:
        metafunc.parametrize("coded", support.CODED)


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Leave the CPU level and the number of threads as they were."""
    before = _core.cpu_level(), lb.get_num_threads()
    yield
    _core.set_cpu_level(before[0])
    lb.set_num_threads(before[1])


@pytest.fixture(params=_core.cpu_levels())
def level(request: pytest.FixtureRequest, put_back: None) -> str:
    """Run the test at every CPU level of this machine."""
    _core.set_cpu_level(request.param)
    support.levels_tested.add(request.param)
    return str(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which CPU levels were tested and what this machine could not test."""
    here = _core.cpu_levels()
    tested = [level for level in here if level in support.levels_tested]
    idle = [level for level in here if level not in support.levels_tested]
    missing = [level for level in support.LEVELS if level not in here]
    line = f"CPU levels tested: {' '.join(tested) or 'none'}"
    if idle:
        line += f"; not asked for: {' '.join(idle)}"
    if missing:
        line += f"; not on this machine: {' '.join(missing)}"
    terminalreporter.write_line(line)
    for what, why in support.not_tested.items():
        terminalreporter.write_line(f"not tested: {what} ({why})")
