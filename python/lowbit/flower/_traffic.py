"""What rounds cost, in bytes that Flower carried."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import ArrayRecord, RecordDict


@dataclass
class Traffic:
    """The bytes of one round, training and evaluation together.

    What is counted are the contents of Flower's messages: arrays with their names and headers, configurations and
    metrics as they are serialized. Flower adds an envelope to each, a few hundred bytes, and its transport its own.

    Attributes
    ----------
    round : int
        Counted from 1 over the wrapper's life.
    asked, accepted, refused : int
        Clients that were asked to train; answers that were used; answers that were not, and errors.
    down, up : int
        To clients, and from them.
    plain_down, plain_up : int
        What the same messages would have taken with arrays as they are.
    """

    round: int
    asked: int = 0
    accepted: int = 0
    refused: int = 0
    down: int = 0
    up: int = 0
    plain_down: int = 0
    plain_up: int = 0

    @property
    def ratio(self) -> float:
        """How many times smaller the round was than it would have been."""
        return (self.plain_down + self.plain_up) / max(1, self.down + self.up)


def bytes_of(content: RecordDict) -> int:
    """Count the bytes of a message's content."""
    return sum(len(name) + _record(record) for name, record in content.items())


def _record(record: object) -> int:
    if isinstance(record, ArrayRecord):
        return record.count_bytes()
    # Flower's own count of configurations fails for an empty string.
    return len(record.deflate())  # type: ignore[attr-defined]
