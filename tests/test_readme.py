"""The examples of the README and of the pages run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/convex.md",
        "docs/formats.md",
        "docs/matmul.md",
        "docs/messages.md",
        "docs/shared-key.md",
        "docs/when-it-pays.md",
    ],
)
def test_examples(page: str) -> None:
    result = doctest.testfile(str(ROOT / page), module_relative=False)
    assert result.attempted > 5
    assert not result.failed
