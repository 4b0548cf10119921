"""What a hook has sent, and what an all_reduce would have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """Bytes of one rank since the hook was registered; printed, a small table.

    Steps before `start_step` are not in it, nor what `check_every` and `measure_every` cost. Bytes are those of
    collectives that pass messages on in a ring: every rank passes on n - 1 messages of n, and an all_reduce of N bytes
    sends 2 N (n - 1) / n.

    Attributes
    ----------
    strategy : str
        ``"all_gather"``, ``"two_phase"`` or ``"sum"``.
    size : int
        How many ranks average.
    steps : int
        How many steps went by messages.
    numbers : int
        Numbers that were averaged.
    message : int
        Bytes of this rank's own messages, each counted once.
    sent_payload, received_payload : int
        Bytes of scales and codes, with their padding and checksums.
    sent_overhead, received_overhead : int
        All other bytes: headers, lengths, padding between messages.
    skipped : int
        Steps in which some number was not finite.
    error : float
        The mean's squared error relative to its squared norm, over the steps that were measured; NaN if none was.

    Examples
    --------
    >>> from lowbit.torch.ddp import Stats
    >>> stats = Stats("all_gather", 4, 10, 10_000_000, 1_260_000, 3_750_000, 30_000, 3_750_000, 30_000)
    >>> print(stats)
    all_gather over 4 ranks, 10 steps, 10000000 numbers
    messages   1.008 bits per number, 31.7x less than float32
    received   3780000 bytes (0.8 % overhead)
    sent       3780000 bytes (0.8 % overhead)
    against a ring all_reduce: 15.9x less than float32, 7.9x less than bfloat16
    """

    strategy: str
    size: int
    steps: int
    numbers: int
    message: int
    sent_payload: int
    sent_overhead: int
    received_payload: int
    received_overhead: int
    skipped: int = 0
    error: float = float("nan")

    @property
    def sent(self) -> int:
        """All bytes that were sent."""
        return self.sent_payload + self.sent_overhead

    @property
    def received(self) -> int:
        """All bytes that were received."""
        return self.received_payload + self.received_overhead

    @property
    def bits_per_number(self) -> float:
        """Of this rank's messages; NaN before the first."""
        return 8 * self.message / self.numbers if self.numbers else float("nan")

    @property
    def ratio_float32(self) -> float:
        """How many times more a ring all_reduce of float32 would have received; NaN if there was nothing to receive."""
        ring = 8 * (self.size - 1) / self.size * self.numbers
        return ring / self.received if self.received else float("nan")

    @property
    def ratio_bfloat16(self) -> float:
        """The same for bfloat16."""
        return self.ratio_float32 / 2

    def __str__(self) -> str:
        def row(what: str, payload: int, overhead: int) -> str:
            total = payload + overhead
            return f"{what:10} {total} bytes ({100 * overhead / max(total, 1):.1f} % overhead)"

        lines = [f"{self.strategy} over {self.size} ranks, {self.steps} steps, {self.numbers} numbers"]
        if bits := 8 * self.message / max(self.numbers, 1):
            lines.append(f"messages   {bits:.4g} bits per number, {32 / bits:.1f}x less than float32")
        lines.append(row("received", self.received_payload, self.received_overhead))
        lines.append(row("sent", self.sent_payload, self.sent_overhead))
        if self.received:
            lines.append(
                f"against a ring all_reduce: {self.ratio_float32:.1f}x less than float32, "
                f"{self.ratio_bfloat16:.1f}x less than bfloat16"
            )
        if self.error == self.error:
            lines.append(f"the mean is off by {self.error:.3g} of its squared norm")
        if self.skipped:
            lines.append(f"{self.skipped} steps had numbers that were not finite")
        return "\n".join(lines)
