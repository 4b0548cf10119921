"""The examples of the pages about PyTorch run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", ["docs/torch-tools.md"])
def test_examples(page: str) -> None:
    state = torch.get_rng_state()
    result = doctest.testfile(str(ROOT / page), module_relative=False)
    torch.set_rng_state(state)
    assert result.attempted > 5
    assert not result.failed
