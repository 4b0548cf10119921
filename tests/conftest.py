"""Fixtures over formats and CPU levels, and the report of what a run covered."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lowbit as lb
import support
from lowbit import _core


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let a test that asks for `name` run for every format of the registry."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", lb.formats())


@pytest.fixture(params=_core.cpu_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test at every CPU level of this machine."""
    before = _core.cpu_level()
    _core.set_cpu_level(request.param)
    support.levels_tested.add(request.param)
    yield request.param
    _core.set_cpu_level(before)


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
