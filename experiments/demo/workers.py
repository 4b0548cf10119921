"""Workers who share one network and send their gradients in one bit a number.

Each round every worker differentiates its share of the batch and sends, for each array, the largest magnitude as one
float32 and every number as one bit on the range from minus to plus that. Sender and receiver fold the same key by
step and array, so they share the coins without sending them; `sender` keeps one worker's coins from being another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from network import Array, Network, Recipe, gradients
from numpy.typing import NDArray

import lowbit as lb

WORKERS = 8
VOTE_BYTES = 1


@dataclass(frozen=True)
class Channel:
    """How gradients travel: `scheme` is one of ``lowbit.onebit``, or None for float32."""

    name: str
    scheme: str | None


CHANNELS = (
    Channel("float32, 32 bits a number", None),
    Channel("1 bit, randomized rounding", "randomized"),
    Channel("1 bit, shared dither", "dither"),
    Channel("1 bit, optimal unbiased", "optimal_unbiased"),
)


@dataclass(frozen=True)
class Message:
    """One array on its way: its bits, eight numbers a byte, and the range they stand for."""

    payload: NDArray[np.uint8] | Array
    largest: np.float32 | None = None

    @property
    def nbytes(self) -> int:
        """What the message weighs."""
        return self.payload.nbytes + (0 if self.largest is None else self.largest.nbytes)


def send(array: Array, channel: Channel, key: lb.Key, sender: int) -> Message:
    """Encode one gradient."""
    if channel.scheme is None:
        return Message(array)
    largest = np.abs(array).max()
    if not 0 < largest < np.inf:  # all zero, or broken: the largest says it all
        return Message(np.empty(0, np.uint8), largest)
    bits = lb.onebit.encode(array, scheme=channel.scheme, key=key, sender=sender, low=-largest, high=largest)
    return Message(bits, largest)


def receive(message: Message, shape: tuple[int, ...], channel: Channel, key: lb.Key, sender: int) -> Array:
    """Decode one gradient."""
    if channel.scheme is None:
        return message.payload
    if not message.payload.size:
        return np.full(shape, 0 if message.largest == 0 else np.nan, np.float32)
    low, high = -message.largest, message.largest
    return lb.onebit.decode(message.payload, shape, scheme=channel.scheme, key=key, sender=sender, low=low, high=high)


@dataclass(frozen=True)
class Round:
    """What one round of all workers gives.

    Attributes
    ----------
    grads : list of numpy.ndarray
        The mean of the gradients as the receiver decoded them.
    votes : list of int
        For each layer, the sum of the workers' votes on its gradient scale.
    sent : int
        Bytes that one worker sent: messages, ranges and votes.
    error : float
        The mean squared error of a number sent, where the range it was sent on has length 1; NaN if any was.
    """

    grads: list[Array]
    votes: list[int]
    sent: int
    error: float


def work_together(
    network: Network, x: Array, labels: NDArray[np.int64], recipe: Recipe, *, channel: Channel, key: lb.Key
) -> Round:
    """Split a batch among the workers and average what they send.

    Parameters
    ----------
    network, x, labels, recipe
        As in `network.gradients`.
    channel : Channel
        How gradients travel.
    key : lowbit.Key
        This round's key, the same for all; every array folds its number into it.
    """
    local = [gradients(network, x[w::WORKERS], labels[w::WORKERS], recipe) for w in range(WORKERS)]
    votes = [sum(column) for column in zip(*(votes for _, votes in local), strict=True)]
    sent, error, grads = VOTE_BYTES * len(votes) * WORKERS, 0.0, []
    for i, arrays in enumerate(zip(*(grads for grads, _ in local), strict=True)):
        coins = key.fold(i)
        messages = [send(array, channel, coins, worker) for worker, array in enumerate(arrays)]
        received = [receive(m, arrays[0].shape, channel, coins, worker) for worker, m in enumerate(messages)]
        sent += sum(message.nbytes for message in messages)
        error += sum(squared_error(a, r, m.largest) for a, r, m in zip(arrays, received, messages, strict=True))
        grads.append(sum(received) / np.float32(WORKERS))
    numbers = WORKERS * sum(grad.size for grad in grads)
    return Round(grads, votes, sent // WORKERS, error / numbers)


def squared_error(array: Array, received: Array, largest: np.float32 | None) -> float:
    """Sum the squared errors of the numbers of one message, as shares of the range it was sent on."""
    if largest is None or largest == 0:
        return 0.0
    error = (received - array).ravel() / (2 * largest)
    return float(error @ error)
