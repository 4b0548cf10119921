"""Numbers that the bounds take."""

from __future__ import annotations

import math
from typing import Any

from lowbit import _arguments, _core


def positive(**numbers: Any) -> tuple[float, ...]:
    """Check that all are finite and above 0."""
    return tuple(_checked(name, value, above=True) for name, value in numbers.items())


def nonnegative(**numbers: Any) -> tuple[float, ...]:
    """Check that all are finite and at least 0."""
    return tuple(_checked(name, value, above=False) for name, value in numbers.items())


def _checked(name: str, value: Any, *, above: bool) -> float:
    number = _arguments.real(value, name)
    if not math.isfinite(number) or number < 0 or (above and number == 0):
        raise _core.Error(
            f"{name}: {number} is out of range; give a finite number {'above' if above else 'of at least'} 0"
        )
    return number
