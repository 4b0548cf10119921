"""States and accumulators between steps: as they are, in bfloat16, or as codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import lowbit as lb
from lowbit.torch.optim._slots import Momentum, Slot, is_packed

if TYPE_CHECKING:
    from collections.abc import Iterable

#: The entry of a state that holds the numbers behind a rounded weight.
ACCUMULATOR = "lowbit_accumulator"


@dataclass(frozen=True)
class Footprint:
    """Bytes that an optimizer and its weights take between steps.

    Attributes
    ----------
    weights, accumulators, states : int
        As they are stored.
    float32 : int
        What weights and states would take in float32 (which needs no accumulators).
    """

    weights: int
    accumulators: int
    states: int
    float32: int

    @property
    def total(self) -> int:
        """All that is stored."""
        return self.weights + self.accumulators + self.states

    def __str__(self) -> str:
        return f"{self.total} bytes instead of {self.float32} ({self.total / max(self.float32, 1):.0%})"


@dataclass(frozen=True)
class Store:
    """How numbers that are kept by a slot are stored."""

    packed: bool
    momentum: Momentum
    accumulator: Slot | None

    def put(self, x: Tensor, slot: Slot, key: lb.Key) -> Tensor | dict[str, Any]:
        """Round float32 numbers (in place, unless they are packed) and give what is kept of them."""
        if slot.is_bfloat16:
            slot.round_(x, key)
            return x.to(torch.bfloat16)
        if self.packed:
            return slot.pack(x, key)
        slot.round_(x, key)
        return x

    def take(self, name: str, entry: Any, shape: torch.Size, dtype: torch.dtype) -> Any:
        """Give the numbers that were kept, in the dtype of the step; other entries of a state stay as they are.

        Raises
        ------
        lowbit.Error
            They were packed by another slot.
        """
        if is_packed(entry):
            slot = self.slot(name)
            if slot is None or slot.text != entry["slot"]:
                raise lb.Error(
                    f"{'accumulator' if name == ACCUMULATOR else 'momentum'}: {name} was packed as {entry['slot']}; "
                    "give the optimizer the formats it was saved with"
                )
            return slot.unpack(entry, shape).to(dtype)
        if name != "step" and isinstance(entry, Tensor) and entry.is_floating_point() and entry.shape == shape:
            return entry.to(dtype)
        return entry

    def slot(self, name: str) -> Slot | None:
        """Give the slot of an entry of a state."""
        return self.accumulator if name == ACCUMULATOR else self.momentum.of(name)

    def lend(self, state: dict[str, Any], like: Tensor) -> None:
        """Make plain tensors of a parameter's states, for the step."""
        for name, entry in state.items():
            state[name] = self.take(name, entry, like.shape, like.dtype)

    def keep(self, state: dict[str, Any], shape: torch.Size, key: lb.Key) -> None:
        """Round and store a parameter's states: float tensors of its shape."""
        for name, entry in state.items():
            slot = self.slot(name)
            if name == ACCUMULATOR or slot is None or not isinstance(entry, Tensor):
                continue
            if entry.is_floating_point() and entry.shape == shape and entry.layout is torch.strided:
                state[name] = self.put(entry, slot, key.fold(name))


def footprint(parameters: Iterable[Tensor], states: Any) -> Footprint:
    """Count what parameters and their states take."""
    weights = accumulators = stored = plain = 0
    for p in parameters:
        weights += p.nbytes
        plain += 4 * p.numel()
        for name, entry in states[p].items() if p in states else ():
            taken, whole = _bytes(entry, p)
            if name == ACCUMULATOR:
                accumulators += taken
            else:
                stored, plain = stored + taken, plain + whole
    return Footprint(weights, accumulators, stored, plain)


def _bytes(entry: Any, p: Tensor) -> tuple[int, int]:
    """Bytes of an entry of a state, and what it would take in float32."""
    if is_packed(entry):
        return sum(part.nbytes for part in entry.values() if isinstance(part, Tensor)), 4 * p.numel()
    if not isinstance(entry, Tensor):
        return 0, 0
    return entry.nbytes, 4 * p.numel() if entry.is_floating_point() and entry.shape == p.shape else entry.nbytes
