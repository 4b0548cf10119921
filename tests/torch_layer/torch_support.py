"""What the tests of the PyTorch layer share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

import support
from lowbit.torch import _bridge, ops

INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(t: torch.Tensor) -> torch.Tensor:
    """The integers that a tensor's numbers are made of, so that -0.0 and NaN compare too."""
    return t.detach().contiguous().view(INTS[t.element_size()])


def assert_same(got: torch.Tensor, want: torch.Tensor, what: object = "") -> None:
    """Same dtype, same shape, same bits."""
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, wanted {want.dtype}"
    assert got.shape == want.shape, f"{what}: {got.shape}, wanted {want.shape}"
    wrong = (bits(got) != bits(want)).flatten().nonzero()
    if len(wrong):
        i = int(wrong[0])
        first = f"first at {i}: {got.flatten()[i]}, wanted {want.flatten()[i]}"
        raise AssertionError(f"{what}: {len(wrong)} of {got.numel()} differ, {first}")


def to_numpy(t: torch.Tensor) -> np.ndarray:
    """A copy in C order, bfloat16 as ml_dtypes has it: what NumPy's API is given."""
    a = np.ascontiguousarray(_bridge.array(t)).reshape(t.shape)
    return a.view(support.BFLOAT16) if a.dtype == _bridge.BFLOAT16 else a


@contextmanager
def plain() -> Iterator[None]:
    """Compute in torch operations."""
    ops.use_plain(True)
    try:
        yield
    finally:
        ops.use_plain(False)


def numbers(shape: tuple[int, ...], seed: int = 0, *, requires_grad: bool = False) -> torch.Tensor:
    """Normal numbers."""
    return torch.from_numpy(support.normal(int(np.prod(shape)), seed).reshape(shape)).requires_grad_(requires_grad)
