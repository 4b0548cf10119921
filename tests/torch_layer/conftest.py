"""Every test begins with the same seed of torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from torch_layer import ranks


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def ended() -> Iterator[None]:
    """No rank outlives the tests."""
    yield
    ranks.end_all()
