"""What local steps have sent, and what averaging in every step would have."""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.torch.ddp._stats import Stats


@dataclass(frozen=True, slots=True)
class LocalStats(Stats):
    """What rounds have sent: as `lowbit.torch.ddp.Stats`, of which `steps` are the rounds, beside the local steps.

    Attributes
    ----------
    local_steps : int
        How many steps the inner optimizer was asked for.
    """

    local_steps: int = 0

    @property
    def ratio_each_step(self) -> float:
        """How many times more a ring all_reduce of float32 gradients in every step would have received."""
        return self.ratio_float32 * self.local_steps / self.steps if self.steps else float("nan")

    def __str__(self) -> str:
        text = Stats.__str__(self).replace(f"{self.steps} steps", f"{self.local_steps} steps in {self.steps} rounds", 1)
        if self.received:
            text += f"\nagainst a float32 ring all_reduce in every step: {self.ratio_each_step:.0f}x less"
        return text
