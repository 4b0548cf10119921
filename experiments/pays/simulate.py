"""Rounds of many senders with real messages: encoded by ``lb.encode``, read by ``lb.Mean``, one accumulator a node."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

import lowbit as lb

Vector = NDArray[np.float64]


def direction(rng: np.random.Generator, d: int) -> Vector:
    """Draw a vector of length 1."""
    x = rng.standard_normal(d)
    return x / np.linalg.norm(x)


def spike(d: int) -> Vector:
    """Give a vector of three numbers and zeros, on which one round of rotation would stay biased: docs/messages.md."""
    x = np.zeros(d)
    x[:3] = 3, 1, 1
    return x / np.linalg.norm(x)


def off(estimate: NDArray[np.floating], exact: Vector) -> float:
    """Give the squared error; senders' vectors have length 1."""
    return float(np.sum((estimate - exact) ** 2))


class Senders:
    """Vectors of length about 1, two of which have the inner product `rho`; each is drawn when it is asked for."""

    def __init__(self, rng: np.random.Generator, d: int, rho: float) -> None:
        self.rng, self.rho, self.common = rng, rho, direction(rng, d)

    def draw(self) -> Vector:
        """Give the next sender's."""
        if self.rho == 1:
            return self.common
        own = self.rng.standard_normal(len(self.common)) / math.sqrt(len(self.common))
        return math.sqrt(self.rho) * self.common + math.sqrt(1 - self.rho) * own


def flat(x: Vector, codec: lb.Codec, counts: Sequence[int], key: lb.Key) -> list[float]:
    """Average alike vectors of more and more senders; the error at each of `counts`."""
    mean, errors = lb.Mean(key), []
    for n in counts:
        for sender in range(mean.count, n):
            mean.add(lb.encode(x, codec, key=key, sender=sender))
        errors.append(off(mean.result(), x))
    return errors


class Tree:
    """A tree of aggregators. Every level has a key of its own, and numbers its senders through."""

    def __init__(self, senders: Senders, codecs: Sequence[lb.Codec], fans: Sequence[int], key: lb.Key) -> None:
        self.senders, self.codecs, self.fans = senders, codecs, fans
        self.keys = [key.fold("level", level) for level in range(len(fans))]
        self.sum = np.zeros_like(senders.common)

    def message(self, level: int, index: int) -> bytes:
        """Give what node `index` of a level sends to the one above; level 0 are the senders."""
        if level == 0:
            x: NDArray[np.floating] = self.senders.draw()
            self.sum += x
        else:
            x = self.mean(level, index)
        return lb.encode(x, self.codecs[level], key=self.keys[level], sender=index)

    def mean(self, level: int, index: int) -> NDArray[np.float32]:
        """Average what a node is sent."""
        fan, below = self.fans[level - 1], lb.Mean(self.keys[level - 1])
        for child in range(fan * index, fan * (index + 1)):
            below.add(self.message(level - 1, child))
        return below.result()

    def error(self) -> float:
        """Run a round; the error at the root."""
        root = self.mean(len(self.fans), 0)
        return off(root, self.sum / math.prod(self.fans))


def numbered_alike(x: Vector, codec: lb.Codec, trees: int, fan: int, key: lb.Key, *, folded: bool) -> float:
    """Average in subtrees that all number their senders from 0, with one key or with one for each subtree."""
    total = np.zeros_like(x)
    for tree in range(trees):
        own = key.fold("tree", tree) if folded else key
        total += lb.decode_mean([lb.encode(x, codec, key=own, sender=s) for s in range(fan)], key=own)
    return off(total / trees, x)


def two_phase(senders: Senders, n: int, up: lb.Codec, down: lb.Codec, key: lb.Key) -> float:
    """Average parts, one by each rank, which sends the mean of its own to everyone."""
    vectors = [senders.draw() for _ in range(n)]
    means = []
    for part, pieces in enumerate(zip(*(np.split(x, n) for x in vectors), strict=True)):
        own = key.fold("up", part)
        mean = lb.decode_mean([lb.encode(x, up, key=own, sender=s) for s, x in enumerate(pieces)], key=own)
        back = key.fold("down")
        means.append(lb.decode(lb.encode(mean, down, key=back, sender=part), key=back))
    return off(np.concatenate(means), np.mean(vectors, axis=0))


def dropped(senders: Senders, n: int, lost: float, codec: lb.Codec, key: lb.Key) -> dict[str, float]:
    """Lose senders at random; the error for each number that the sum may be divided by."""
    mean, exact = lb.Mean(key), np.zeros_like(senders.common)
    for sender, gone in enumerate(senders.rng.random(n) < lost):
        x = senders.draw()
        exact += x / n
        if not gone:
            mean.add(lb.encode(x, codec, key=key, sender=sender))
    by = {"known": 1.0, "expected": mean.count / (n * (1 - lost)), "ignored": mean.count / n}
    return {how: off(factor * mean.result(), exact) for how, factor in by.items()}


def leaning(
    rng: np.random.Generator, d: int, n: int, lost: Sequence[float], codec: lb.Codec, key: lb.Key
) -> dict[str, float]:
    """Lose more of one half, whose vectors are orthogonal to the other's; plain mean, and weighted by the chances."""
    halves = direction(rng, d), direction(rng, d)
    plain, weighted = lb.Mean(key), lb.Mean(key)
    for sender, chance in enumerate(rng.random(n)):
        half = sender % 2
        if chance >= lost[half]:
            message = lb.encode(halves[half], codec, key=key, sender=sender)
            plain.add(message)
            weighted.add(message, 1 / (1 - lost[half]))
    exact = (halves[0] + halves[1]) / 2
    return {"plain": off(plain.result(), exact), "weighted": off(weighted.result(), exact)}


def late(
    rng: np.random.Generator, d: int, n: int, share: float, drift: float, codec: lb.Codec, key: lb.Key
) -> dict[str, float]:
    """Hear of some a round later: their messages have the old round's key, so an accumulator of its own reads them."""
    before = direction(rng, d)
    step = direction(rng, d)
    step -= (step @ before) * before
    now = before + math.sqrt(drift) * step / np.linalg.norm(step)
    old, new, behind = lb.Mean(key.fold("round", 0)), lb.Mean(key.fold("round", 1)), round(share * n)
    for sender in range(n):
        if sender < behind:
            old.add(lb.encode(before, codec, key=key.fold("round", 0), sender=sender))
        else:
            new.add(lb.encode(now, codec, key=key.fold("round", 1), sender=sender))
    both = (old.count * old.result() + new.count * new.result()) / n
    return {"left out": off(new.result(), now), "taken": off(both, now)}


def refused_late(d: int, codec: lb.Codec, key: lb.Key) -> str:
    """Give what an accumulator says of the last round's message; afterwards it is what it was."""
    x = direction(np.random.default_rng(0), d)
    mean = lb.Mean(key.fold("round", 1))
    mean.add(lb.encode(x, codec, key=key.fold("round", 1), sender=0))
    before = mean.result()
    try:
        mean.add(lb.encode(x, codec, key=key.fold("round", 0), sender=1))
    except lb.DecodeError as error:
        same = mean.count == 1 and np.array_equal(mean.result(), before)
        return str(error) if same else "the accumulator has changed"
    return "accepted"


def one_liar(
    rng: np.random.Generator, d: int, n: int, size: float, most: float, codec: lb.Codec, key: lb.Key
) -> dict[str, float]:
    """Let one sender's vector be `size` times too long. The receiver takes all, or refuses what is too long.

    A decoded vector's squared length is 1 + v times the sender's; refused is what has `most` times the usual length.
    """
    x, liar = direction(rng, d), size * direction(rng, d)
    limit = most * math.sqrt(1 + codec.expected_error(d))
    all_, checked = lb.Mean(key), lb.Mean(key)
    for sender in range(n):
        message = lb.encode(liar if sender == n // 2 else x, codec, key=key, sender=sender)
        all_.add(message)
        if np.linalg.norm(lb.decode(message, key=key)) <= limit:
            checked.add(message)
    return {"taken": off(all_.result(), x), "refused": off(checked.result(), x)}


def bounded_liars(x: Vector, n: int, share: float, size: float, codec: lb.Codec, key: lb.Key) -> float:
    """Let a share send the opposite, `size` times as long, which a check of norms allows."""
    mean = lb.Mean(key)
    for sender in range(n):
        mean.add(lb.encode(-size * x if sender < share * n else x, codec, key=key, sender=sender))
    return off(mean.result(), x)


def lying_aggregator(x: Vector, nodes: int, fan: int, codec: lb.Codec, key: lb.Key) -> dict[str, float]:
    """Let one aggregator send the opposite. Whoever has its senders' messages makes its message again and compares.

    An honest aggregator's message is a function of those it read, so that it must be the same bytes; 1 where the
    comparison said the truth of every aggregator.
    """
    leaves, above = key.fold("level", 0), key.fold("level", 1)
    root, right = lb.Mean(above), True
    for node in range(nodes):
        messages = [lb.encode(x, codec, key=leaves, sender=node * fan + s) for s in range(fan)]
        mean = lb.decode_mean(messages, key=leaves)
        sent = lb.encode(-mean if node == 0 else mean, lb.Float32(), key=above, sender=node)
        root.add(sent)
        # The auditor has them in another order.
        again = lb.encode(lb.decode_mean(messages[::-1], key=leaves), lb.Float32(), key=above, sender=node)
        right &= (again == sent) == (node != 0)
    return {"error": off(root.result(), x), "audit": float(right)}
