"""Tensors and NumPy arrays over the same memory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


class bfloat(np.void):  # type: ignore[misc]  # noqa: N801 - its name is the point
    """Two bytes that NumPy spells "bfloat16": a void dtype is called after its class and its bits.

    `lowbit._core` knows the dtype by that name, whoever has made it; so ml_dtypes need not be installed.
    """


BFLOAT16 = np.dtype((bfloat, 2))

#: What can be rounded, and the NumPy dtype that says so to the core.
FLOATS: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.bfloat16: BFLOAT16,
    torch.float16: np.dtype(np.float16),
    torch.float64: np.dtype(np.float64),
}


def array(t: Tensor) -> NDArray[Any]:
    """View a CPU tensor of any layout as an array, without a copy; bfloat16 as `BFLOAT16`.

    Only a tensor whose negation or conjugation is still pending (a lazy view of torch's) is copied.
    """
    if t.requires_grad:
        t = t.detach()
    if t.is_neg() or t.is_conj():
        t = t.resolve_conj().resolve_neg()
    return _numpy(t.view(torch.int16)).view(BFLOAT16) if t.dtype is torch.bfloat16 else _numpy(t)


def _numpy(t: Tensor) -> NDArray[Any]:
    """View a tensor so that FSDP, if it is there, can go on: it frees parameters by resizing their storage.

    ``Tensor.numpy`` forbids that for ever; DLPack does not, but takes some microseconds more.
    """
    if "torch.distributed.fsdp" in sys.modules and torch.distributed.is_initialized():
        view = np.from_dlpack(t)
        if view.flags.writeable:  # not of old versions of either
            return view
    return t.numpy()


def tensor(a: NDArray[Any]) -> Tensor:
    """View a writable array of a dtype that torch has as a CPU tensor, without a copy; any "bfloat16" as bfloat16."""
    if a.dtype.kind == "V":
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)
