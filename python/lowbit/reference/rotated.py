"""The codecs that rotate a vector before they round it (``docs/wire.md``); Eden has a file of its own."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from lowbit.reference import tables
from lowbit.reference.hadamard import rotate
from lowbit.reference.payload import Reader, dither, floats, is_finite, nans
from lowbit.reference.quantizers import pack
from lowbit.reference.rotation import (
    Block,
    Words,
    blocks,
    exponent,
    joined,
    levelled_back,
    limited,
    power,
    root,
    total,
    turns,
    within,
)
from lowbit.reference.stream import fold, random_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

F = np.float32
REACH = 3.0972691  # a standard normal number is beyond it with probability 2^-9


class Rotated(NamedTuple):
    """A block after its rotation."""

    e: int
    """The block was divided by 2^e first."""
    square: float
    """The sum of the squares of the block divided by 2^e."""
    y: NDArray[np.float32]
    """The rotated block; too long by `root`."""
    u: NDArray[np.float32]
    """The same, scaled to about N(0, 1)."""


def observe(part: NDArray[np.float32], block: Block, words: Words, rounds: int, norm: F | None = None) -> Rotated:
    """Rotate a block that is finite and not zero."""
    x = np.zeros(block.size, F)
    x[: block.used] = part
    e = exponent(np.abs(x).max())
    x = x * power(-e)
    square = total(x.astype(np.float64) ** 2)
    rounds = turns(rounds, block.size)
    y, long = rotate(x, words, block.start, rounds=rounds), root(block.size, rounds)
    if norm is None:
        factor = math.sqrt(block.size / square) / long
    else:
        factor = (math.sqrt(block.size) / long) * (2.0**e / float(norm))
    return Rotated(e, square, y, y * F(factor))


class Rotating:
    """A codec of blocks."""

    shared: ClassVar[bool] = False
    needs_key = True
    rounds: int

    def blocks(self, n: int) -> list[Block]:
        """Cut `n` numbers."""
        return blocks(n)

    def sends(self, x: NDArray[np.float32]) -> bool:
        """Whether all numbers are finite."""
        return is_finite(x)

    def rotation(self, words: Words, sender: int) -> Words:
        """Give the key of the rotation: the sender's own, or everyone's."""
        words = fold(words, "rotation")
        return words if self.shared else fold(words, sender)

    def pieces(self, x: NDArray[np.float32]) -> list[tuple[Block, NDArray[np.float32]]]:
        """Give every block with its numbers."""
        return [(block, x.ravel()[block.start :][: block.used]) for block in self.blocks(x.size)]

    def finish(self, z: NDArray[np.float32], n: int, words: Words) -> NDArray[np.float32]:
        """Rotate back what all senders rotated alike."""
        if not self.shared:
            return z
        key = self.rotation(words, 0)
        parts = [levelled_back(z[b.start :][: b.size], key, b.start, self.rounds)[: b.used] for b in self.blocks(n)]
        return joined(parts, F)


@dataclass(frozen=True)
class DrivePlus(Rotating):
    """One bit per number and two values per block, found by three steps of 2-means: arXiv:2105.08339."""

    rounds: int = 2
    id: ClassVar[int] = 9

    def parameters(self) -> bytes:
        """Give rounds."""
        return struct.pack("<B", self.rounds)

    @staticmethod
    def _sides(u: NDArray[np.float32], turn: np.float32) -> list[tuple[int, float]]:
        """Count and mean of the numbers below `turn`, and of the others."""
        wide, found = u.astype(np.float64), []
        for side in (u < turn, u >= turn):
            n = int(side.sum())
            found.append((n, total(np.where(side, wide, 0.0)) / n if n else float(turn)))
        return found

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Write two scales for each block, then bits."""
        key, scales, runs = self.rotation(words, sender), [], []
        for block, part in self.pieces(x):
            pair, bits = [F(np.nan if not is_finite(part) else 0)] * 2, np.zeros(block.size, bool)
            if is_finite(part) and part.any():
                made = observe(part, block, key, self.rounds)
                u = made.u
                turn = F(total(u) / block.size)
                for _ in range(3):
                    (_, c0), (_, c1) = self._sides(u, turn)
                    turn = F((c0 + c1) / 2)
                (n0, c0), (n1, c1) = self._sides(u, turn)
                length = n0 * (c0 * c0) + n1 * (c1 * c1)
                size = 2.0**made.e * math.sqrt(made.square) * math.sqrt(block.size)
                pair = [limited(size * c / length) for c in (c0, c1)]
                bits = u >= turn
            if pair[0] == pair[1] == 0:
                bits = np.zeros(block.size, bool)
            scales += pair
            runs.append(np.packbits(bits, bitorder="little").tobytes())
        return floats(scales) + b"".join(runs)

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:
        """Rotate the values back."""
        key, cut = self.rotation(words, sender), self.blocks(math.prod(shape))
        scales, parts = data.array("<f4", 2 * len(cut)).reshape(-1, 2), []
        for block, pair in zip(cut, scales, strict=True):
            q = pair[data.codes(1, block.size)]
            part = levelled_back(q, key, block.start, self.rounds)[: block.used]
            parts.append(nans(block.used) if np.isnan(pair).any() else part)
        return joined(parts, F)


@dataclass(frozen=True)
class QuicFl(Rotating):
    """Unbiased tables under one shared rotation: Ben Basat et al., ICML 2024 (arXiv:2205.13341)."""

    bits: int
    rounds: int = 2
    id: ClassVar[int] = 10
    shared: ClassVar[bool] = True

    def parameters(self) -> bytes:
        """Give bits and rounds."""
        return struct.pack("<BB", self.bits, self.rounds)

    def _shared_words(self, words: Words, sender: int, block: Block) -> NDArray[np.int64]:
        word = random_bits(fold(words, "dither", sender), block.size, block.start)
        return np.asarray(word >> np.uint32(32 - tables.QUICFL_SHARED_BITS[self.bits]), np.int64)

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Write scales, counts of outliers, codes, positions and values of outliers."""
        key = self.rotation(words, sender)
        knots, widths = tables.QUICFL_KNOTS[self.bits], tables.QUICFL_WIDTHS[self.bits]
        scales, counts, runs, outliers = [], [], [], []
        for block, part in self.pieces(x):
            scale, codes, beyond = F(0 if is_finite(part) else np.nan), np.zeros(block.size, np.int64), b""
            count = 0
            if is_finite(part) and part.any():
                made = observe(part, block, key, self.rounds)
                scale = F(2.0**made.e * math.sqrt(made.square / block.size))
                if scale != 0:
                    h, u = self._shared_words(words, sender, block), made.u
                    word = random_bits(fold(words, "coin", sender), block.size, block.start)
                    coin = np.asarray((2 * (word >> np.uint32(9)).astype(np.float64) + 1) * 2.0**-24, F)
                    thresholds = knots[h] + coin[:, np.newaxis] * widths[h]
                    far = np.abs(u) > F(REACH)
                    codes = np.where(far, 0, (u[:, np.newaxis] >= thresholds).sum(axis=1))
                    positions = np.flatnonzero(far)
                    count = positions.size
                    beyond = positions.astype("<u2").tobytes() + u[far].astype("<f4").tobytes()
            scales.append(scale)
            counts.append(count)
            runs.append(pack(codes, self.bits).tobytes())
            outliers.append(beyond)
        return floats(scales) + struct.pack(f"<{len(counts)}I", *counts) + b"".join(runs + outliers)

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:
        """Look the values up, still rotated."""
        cut, values = self.blocks(math.prod(shape)), tables.QUICFL_VALUES[self.bits]
        scales, counts = data.array("<f4", len(cut)), data.unpack(f"{len(cut)}I")
        codes = [data.codes(self.bits, block.size).astype(np.int64) for block in cut]
        parts = []
        for block, scale, count, code in zip(cut, scales, counts, codes, strict=True):
            positions, far = data.array("<u2", count), data.array("<f4", count)
            if (np.diff(positions.astype(np.int64)) <= 0).any() or (count and positions[-1] >= block.size):
                raise ValueError("positions of outliers do not ascend, or lie outside their block")
            q = values[self._shared_words(words, sender, block), code]
            q[positions] = far
            parts.append(nans(block.size) if np.isnan(scale) else q * scale)
        return joined(parts, F)


@dataclass(frozen=True)
class Summable(Rotating):
    """Integers that add, under one rotation and one scale, by subtractive dither: the plan of THC (arXiv:2302.08545).

    ``norms`` are what all senders agreed on; None: each block's own.
    """

    bits: int
    rounds: int = 2
    norms: tuple[float, ...] | None = None
    id: ClassVar[int] = 11
    shared: ClassVar[bool] = True

    @property
    def delta(self) -> np.float32:
        """The step of the grid."""
        return F(2 * REACH / (2**self.bits - 1))

    def parameters(self) -> bytes:
        """Give bits and rounds."""
        return struct.pack("<BB", self.bits, self.rounds)

    @staticmethod
    def _norm(part: NDArray[np.float32]) -> np.float32:
        """Norm of a block: NaN if a number is not finite, or the norm is more than float32 holds."""
        if not is_finite(part):
            return F(np.nan)
        e = exponent(np.abs(part).max())
        return within(2.0**e * math.sqrt(total((part * power(-e)).astype(np.float64) ** 2)))

    def sends(self, x: NDArray[np.float32]) -> bool:
        """Whether all numbers are finite, and all norms are float32."""
        return not any(np.isnan(self._norm(part)) for _, part in self.pieces(x))

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Write norms, then codes."""
        key, norms, runs = self.rotation(words, sender), [], []
        for i, (block, part) in enumerate(self.pieces(x)):
            norm, codes = self._norm(part), np.zeros(block.size, np.uint8)
            if self.norms is not None and not np.isnan(norm):
                norm = F(self.norms[i])
            if norm > 0:
                u = observe(part, block, key, self.rounds, norm).u
                t = (u + F(REACH)) * (F(1) / self.delta)
                v = np.rint(t + dither(words, sender, block.size, block.start))
                codes = np.clip(v, F(0), F(2**self.bits - 1)).astype(np.uint8)
            norms.append(norm)
            runs.append(pack(codes, self.bits).tobytes())
        return floats(norms) + b"".join(runs)

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:
        """Take the dither off, still rotated."""
        cut, parts = self.blocks(math.prod(shape)), []
        for block, norm in zip(cut, data.array("<f4", len(cut)), strict=True):
            v = data.codes(self.bits, block.size).astype(F)
            u = (v - dither(words, sender, block.size, block.start)) * self.delta - F(REACH)
            q = u * F(float(norm) / math.sqrt(block.size))
            parts.append(nans(block.size) if np.isnan(norm) else np.zeros(block.size, F) if norm == 0 else q)
        return joined(parts, F)
