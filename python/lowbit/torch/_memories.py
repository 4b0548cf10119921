"""Error feedback of many tensors: one memory for each, by name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import lowbit as lb


class Memories:
    """What the messages of one rank left out, by stage and by piece.

    Parameters
    ----------
    codecs : dict of str to Codec
        Of each stage of a round.
    wanted : bool or None
        Whether to remember; None: where the codec is biased.
    strategy : str
        That of the round.
    rank, size : int
        Of this process, and how many there are: memories belong to one rank of so many.

    Raises
    ------
    TypeError
        `wanted` is no bool.
    lowbit.Error
        Memory is wanted where it cannot be.
    """

    def __init__(
        self, codecs: Mapping[str, lb.Codec], wanted: bool | None, strategy: str, rank: int, size: int
    ) -> None:
        if wanted is not None and not isinstance(wanted, bool):
            raise TypeError(f"error_feedback: expected True, False or None, got {type(wanted).__name__}")
        if wanted and strategy == "sum":
            raise lb.Error(
                'error_feedback: "sum" has none; Summable clips 0.03 % of the energy and is unbiased but for it'
            )
        self.stages: dict[str, lb.Codec] = {}
        for stage, codec in codecs.items():
            # Summable says that it is biased, but so little that memory would be waste.
            biased = codec.unbiased == "no" and not isinstance(codec, lb.Summable)
            if biased if wanted is None or stage == "second" else wanted:
                self.stages[stage] = codec
        if wanted is False:
            self.stages.clear()
        for codec in self.stages.values():
            _try(codec)
        self._strategy, self._rank, self._size = strategy, rank, size
        self._memories: dict[str, lb.ErrorFeedback] = {}
        self._open: list[lb.ErrorFeedback] = []

    def of(self, stage: str, piece: str, numel: int) -> lb.ErrorFeedback:
        """Give the memory of a piece, whose round is then open; one of another size is dropped with a warning."""
        name = f"{stage} {piece}"
        memory = self._memories.setdefault(name, lb.ErrorFeedback())
        if memory.error is not None and memory.error.size != numel:
            reason = f"it has {memory.error.size} numbers, the gradient {numel}"
            warnings.warn(f"error feedback of {name!r} is dropped: {reason}", UserWarning, stacklevel=2)
            self._memories[name] = memory = lb.ErrorFeedback()
        self._open.append(memory)
        return memory

    def close(self, *, commit: bool) -> None:
        """End the round of all that are open."""
        for memory in self._open:
            if commit:
                memory.commit()
            else:
                memory.discard()
        self._open.clear()

    def rescale(self, factor: float) -> None:
        """Multiply all memories."""
        for memory in self._memories.values():
            memory.rescale(factor)

    def state_dict(self) -> dict[str, Any]:
        """Give all memories as tensors, and whose they are."""
        held = {name: memory.state_dict()["error"] for name, memory in self._memories.items()}
        errors = {name: torch.from_numpy(error) for name, error in held.items() if error is not None}
        return {"strategy": self._strategy, "rank": self._rank, "size": self._size, "errors": errors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take memories over if they are this rank's, else drop them with a warning."""
        self._memories.clear()
        if not state["errors"]:
            return
        was = f"rank {state['rank']} of {state['size']} by {state['strategy']!r}"
        now = (
            f"rank {self._rank} of {self._size} by {self._strategy!r}"
            if self.stages
            else "a codec that has no use for it"
        )
        if was != now:
            warnings.warn(f"error feedback is dropped: it was for {was}, this is {now}", UserWarning, stacklevel=3)
            return
        for name, error in state["errors"].items():
            self._memories[name] = memory = lb.ErrorFeedback()
            memory.load_state_dict({"error": error.cpu().numpy().copy()})


def _try(codec: lb.Codec) -> None:
    """Let error feedback say now what it has against a codec."""
    try:
        lb.ErrorFeedback().encode(np.zeros(4096, np.float32), codec, key=0)
    except lb.Error as error:
        raise lb.Error(f"{error}; or go without memory: error_feedback=False") from None
