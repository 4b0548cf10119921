"""The examples of the pages on PyTorch run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("page", sorted(path.name for path in [*DOCS.glob("torch*.md"), DOCS / "qtorch.md"]))
def test_examples(page: str) -> None:
    state = torch.get_rng_state()
    result = doctest.testfile(str(DOCS / page), module_relative=False)
    torch.set_rng_state(state)
    assert result.attempted > 5
    assert not result.failed
