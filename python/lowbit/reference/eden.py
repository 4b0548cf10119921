"""EDEN and DRIVE: nearest values of a codebook after a rotation of the sender's own (``docs/wire.md``)."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowbit.reference import rans, tables
from lowbit.reference.hadamard import rotate
from lowbit.reference.payload import Reader, floats, is_finite, nans
from lowbit.reference.quantizers import pack
from lowbit.reference.rotated import Rotated, Rotating, observe
from lowbit.reference.rotation import Block, Words, blocks, joined, limited, root, total, turns

if TYPE_CHECKING:
    from numpy.typing import NDArray

F = np.float32
SCALES = ("unbiased", "min_error", "norm")


@dataclass(frozen=True)
class Eden(Rotating):
    """Nearest values of a codebook for N(0, 1), and one scale: Vargaftik et al., ICML 2022 (arXiv:2108.08842).

    ``entropy_coded``: nearest multiples of `step`, entropy-coded. ``step=None`` is the one whose entropy is `bits`.
    """

    bits: float
    scale: str = "unbiased"
    rounds: int = 2
    entropy_coded: bool = False
    step: float | None = None
    id: ClassVar[int] = 8

    @property
    def grid(self) -> np.float32:
        """The step as it travels."""
        return F((tables.entropy_step(self.bits) if self.step is None else self.step) if self.entropy_coded else 0.0)

    def parameters(self) -> bytes:
        """Give bits, scale, rounds, entropy coding and step."""
        return struct.pack(
            "<dBBBf", self.bits, SCALES.index(self.scale), self.rounds, self.entropy_coded, float(self.grid)
        )

    def blocks(self, n: int) -> list[Block]:
        """Cut so that 128 numbers of every block are sent."""
        wanted = math.ceil(128 / self.bits) if self.bits < 1 else 128
        return blocks(n, min(1 << (wanted - 1).bit_length(), 1 << 16))

    def _cut(self, size: int) -> tuple[int, int]:
        """Give the bits of most numbers, and how many from the first on get one more."""
        low = math.floor(self.bits)
        return low, round((self.bits - low) * size)  # Python's round takes ties to even

    @staticmethod
    def _nearest(bits: int, u: NDArray[np.float32]) -> NDArray[np.int64]:
        magnitude = np.searchsorted(tables.BOUNDARIES[bits], np.abs(u), side="right")
        return np.asarray((~np.signbit(u + F(0))).astype(np.int64) << (bits - 1) | magnitude)

    @staticmethod
    def _values(bits: int, codes: NDArray[np.int64]) -> NDArray[np.float32]:
        magnitude = tables.CENTROIDS[bits][codes & ((1 << (bits - 1)) - 1)]
        return np.asarray(np.where(codes >> (bits - 1) == 1, magnitude, -magnitude))

    def _order(self, size: int) -> NDArray[np.int64]:
        """Tell which rotated number each code of a block is of."""
        k = np.arange(size, dtype=np.int64)
        if self.entropy_coded or self._cut(size)[1] in (0, size):
            return k
        return k * 0x9E3779B1 % size

    def _runs(self, codes: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
        """Cut the codes of a block into runs, each with its bits."""
        low, high = self._cut(codes.size)
        return [(bits, run) for bits, run in ((low + 1, codes[:high]), (low, codes[high:])) if bits and run.size]

    def _quantized(self, u: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Codes or symbols, and what they stand for."""
        if self.entropy_coded:
            symbols = np.clip(np.rint(u * (F(1) / self.grid)), F(-32767), F(32767))
            return symbols.astype(np.int64), symbols * self.grid
        low, high = self._cut(u.size)
        codes, q = np.zeros(u.size, np.int64), np.zeros(u.size, F)
        for bits, run in ((low + 1, slice(0, high)), (low, slice(high, u.size))):
            if bits and codes[run].size:
                codes[run] = self._nearest(bits, u[run])
                q[run] = self._values(bits, codes[run])
        return codes, q

    def _scaled(self, made: Rotated, q: NDArray[np.float32]) -> np.float32:
        wide, long = q.astype(np.float64), root(q.size, turns(self.rounds, q.size))
        product, square = total(made.y.astype(np.float64) * wide), total(wide * wide)
        if product == 0:
            return F(0)
        scale = {
            "unbiased": made.square * long / product,
            "min_error": product / long / square if square else 0.0,
            "norm": math.sqrt(made.square / square),
        }[self.scale]
        return limited(2.0**made.e * scale)

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Write scales, lengths and frequencies if entropy-coded, codes."""
        key, scales = self.rotation(words, sender), []
        coded: list[NDArray[np.int64] | None] = []
        for block, part in self.pieces(x):
            scale, codes = F(0 if is_finite(part) else np.nan), np.zeros(block.size, np.int64)
            if is_finite(part) and part.any():
                made = observe(part, block, key, self.rounds)
                order = self._order(block.size)
                made = made._replace(y=made.y[order], u=made.u[order])
                codes, q = self._quantized(made.u)
                scale = self._scaled(made, q)
            scales.append(scale)
            coded.append(codes if scale > 0 else None)
        if self.entropy_coded:
            return floats(scales) + self._entropy_coded(coded)
        payload = floats(scales)
        for block, sent in zip(self.blocks(x.size), coded, strict=True):
            for bits, run in self._runs(np.zeros(block.size, np.int64) if sent is None else sent):
                payload += pack(run, bits).tobytes()
        return payload

    @staticmethod
    def _entropy_coded(runs: list[NDArray[np.int64] | None]) -> bytes:
        symbols = joined((run for run in runs if run is not None), np.int64)
        low, frequencies = 0, []
        if symbols.size:
            low = int(symbols.min())
            frequencies = rans.normalize(np.bincount(symbols - low).tolist())
        coded = [b"" if run is None else rans.encode((run - low).tolist(), frequencies) for run in runs]
        lengths = struct.pack(f"<{len(coded)}I", *(len(each) for each in coded))
        table = struct.pack(f"<hH{len(frequencies)}H", low, len(frequencies), *frequencies)
        return lengths + table + b"".join(coded)

    def _read_entropy_coded(self, data: Reader, sizes: list[int]) -> list[NDArray[np.float32]]:
        lengths = data.unpack(f"{len(sizes)}I")
        low, count = data.unpack("hH")
        frequencies = data.unpack(f"{count}H")
        if sum(frequencies) != (rans.TOTAL if count else 0) or (count and not (frequencies[0] and frequencies[-1])):
            raise ValueError("frequencies do not sum to 16384, or begin or end with zero")
        made = []
        for length, size in zip(lengths, sizes, strict=True):
            coded = data.take(length)
            symbols = rans.decode(coded, frequencies, size) if length else None
            q = np.zeros(size, F) if symbols is None else (np.array(symbols) + low).astype(F) * self.grid
            made.append(q)
        return made

    def _read(self, data: Reader, size: int) -> NDArray[np.float32]:
        runs = [(bits, run.size) for bits, run in self._runs(np.zeros(size, np.int64))]
        q = joined((self._values(bits, data.codes(bits, n).astype(np.int64)) for bits, n in runs), F)
        return np.concatenate([q, np.zeros(size - q.size, F)])

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:
        """Rotate the values back and scale them."""
        key, cut = self.rotation(words, sender), self.blocks(math.prod(shape))
        scales, parts = data.array("<f4", len(cut)), []
        sizes = [block.size for block in cut]
        coded = self._read_entropy_coded(data, sizes) if self.entropy_coded else [self._read(data, n) for n in sizes]
        for block, scale, q in zip(cut, scales, coded, strict=True):
            if scale == 0 or np.isnan(scale):
                part = np.zeros(block.used, F) if scale == 0 else nans(block.used)
            else:
                rotated = np.empty_like(q)
                rotated[self._order(block.size)] = q
                rounds = turns(self.rounds, block.size)
                w = rotate(rotated, key, block.start, rounds=rounds, inverse=True)
                part = (w * F(1.0 / root(block.size, rounds)) * scale)[: block.used]
            parts.append(part)
        return joined(parts, F)


def drive() -> Eden:
    """One bit per number: Vargaftik et al., NeurIPS 2021 (arXiv:2105.08339)."""
    return Eden(1)
