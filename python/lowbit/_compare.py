"""``compare``: what each format would do to the user's own numbers, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeAlias

import numpy as np

from lowbit import _arguments, _core, _table
from lowbit._quant import dequantize, quantize

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit._formats import FormatLike, KeyLike, RoundingName
    from lowbit._quantized import Quantized

    Entry: TypeAlias = FormatLike | tuple[FormatLike, Mapping[str, Any]]

_OPTIONS = ("scale", "offset", "axis", "block_size", "rounding", "key")
_ORDERS = ("error", "clipped", "underflowed", "nbytes", "bits_per_number")
#: Numbers looked at in one go: their float64 temporaries stay in the cache.
_CHUNK = 1 << 17
#: What the roundings of a scale and of its reciprocal may move an end by, with room: 8 units of float32.
_SLACK = 2.0**-21


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """What one format did to the numbers.

    Attributes
    ----------
    format : str
        The format's name.
    scale : str
        The scale rule, or ``"given"``.
    axis, block_size : int or None
        How scales were shared: `axis` as it was asked for, `block_size` as the format took it.
    rounding : str
        ``"nearest"``, ``"stochastic"`` or ``"dither"``.
    error : float
        Relative squared error: sum (y - x)^2 / sum x^2, in float64.
    used_codes, codes : int
        How many of the format's different values occurred, of how many (0 and -0 are one).
    clipped : float
        Share of numbers beyond the largest or the smallest that their group could give.
    underflowed : float
        Share of numbers that were not zero and became zero.
    nbytes : int
        Bytes of codes, scales and offsets: ``Quantized.nbytes``.
    bits_per_number : float
        The same as bits for each number.
    """

    format: str
    scale: str
    axis: int | None
    block_size: int | None
    rounding: str
    error: float
    used_codes: int
    codes: int
    clipped: float
    underflowed: float
    nbytes: int
    bits_per_number: float

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in decibels, ``-10 log10(error)``: infinite where nothing was lost."""
        return -10 * math.log10(self.error) if self.error else math.inf

    @property
    def block(self) -> str:
        """How scales were shared, in a word: ``"array"``, ``"axis 0"``, ``"32"``, ``"32, axis 0"``."""
        size = [] if self.block_size is None else [str(self.block_size)]
        return ", ".join(size + ([] if self.axis is None else [f"axis {self.axis}"])) or "array"

    @property
    def label(self) -> str:
        """The format and what the caller chose beside it."""
        shared = [] if self.block == "array" else [self.block]
        return ", ".join([self.format, self.scale, *shared])


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Sequence[ComparisonRow]):
    """A table of formats, as `compare` makes it: a sequence of rows that prints well.

    ``table[0]`` is the first row, ``table["int4"]`` the only one of that format. ``repr`` is a table of text, and a
    notebook shows one of HTML.

    Attributes
    ----------
    rows : tuple of ComparisonRow
        The records, in the order asked for.
    title : str
        What was compared.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> table = lb.compare(np.float32([-1, 0.3, 1]), ["int4", "radix4"])
    >>> [row.format for row in table], table["int4"].used_codes
    (['int4', 'radix4'], 3)
    >>> table.to_dict()["nbytes"]
    [6, 6]
    """

    rows: tuple[ComparisonRow, ...]
    title: str

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ComparisonRow]:
        return iter(self.rows)

    def __getitem__(self, which: Any) -> Any:
        if not isinstance(which, str):
            return self.rows[which]
        found = [row for row in self.rows if row.format == which]
        if len(found) != 1:
            names = ", ".join(dict.fromkeys(row.format for row in self.rows))
            raise KeyError(f"{which!r} is in {len(found)} rows; formats are: {names}")
        return found[0]

    def to_dict(self) -> dict[str, list[Any]]:
        """Give the table as columns: what ``pandas.DataFrame`` takes."""
        records = [asdict(row) | {"snr_db": row.snr_db} for row in self.rows]
        names = [field.name for field in fields(ComparisonRow)]
        names.insert(names.index("error") + 1, "snr_db")
        return {name: [record[name] for record in records] for name in names}

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and rows as text; a column for the rounding only where it differs."""
        mixed = len({row.rounding for row in self.rows}) > 1
        head = ["format", "scale", "block", *["rounding"] * mixed]
        head += ["error", "SNR, dB", "codes used", "clipped", "to zero", "bytes", "bits"]
        body = [
            [
                *(_arguments.shown(row.format), row.scale, row.block),
                *[row.rounding] * mixed,
                f"{row.error:.3g}",
                f"{row.snr_db:.1f}",
                f"{row.used_codes} of {row.codes}",
                _table.share(row.clipped),
                _table.share(row.underflowed),
                f"{row.nbytes}",
                f"{row.bits_per_number:.3g}",
            ]
            for row in self.rows
        ]
        return head, body

    def _caption(self) -> str:
        roundings = dict.fromkeys(row.rounding for row in self.rows)
        return self.title + (f", rounding {next(iter(roundings))}" if len(roundings) == 1 else "")

    def __repr__(self) -> str:
        head, body = self._cells()
        return _table.text(self._caption(), head, body, left=head.index("error"))

    def _repr_html_(self) -> str:
        head, body = self._cells()
        return _table.as_html(self._caption(), head, body, left=head.index("error"))


def compare(
    x: ArrayLike | Mapping[str, ArrayLike],
    formats: FormatLike | Iterable[Entry] | None = None,
    *,
    scale: str | ArrayLike | None = None,
    offset: ArrayLike | None = None,
    axis: SupportsIndex | None = None,
    block_size: SupportsIndex | None = None,
    rounding: RoundingName = "nearest",
    key: KeyLike | None = None,
    sort: str | None = None,
) -> Comparison:
    """Tell what formats would do to these numbers: errors, codes, clipping, bytes.

    Parameters
    ----------
    x : array_like or mapping of str to array_like
        Finite floats of any shape and layout; float64 is first rounded to float32. The arrays of a mapping (a model's
        parameters) are quantized one by one, and each row counts the numbers of all.
    formats : Format, str or iterable, optional
        Names, formats, or pairs of one of these and a dict of options that hold for it alone. Default: all registered
        formats, without the unsigned ones if a number is negative.
    scale, offset, axis, block_size, rounding, key
        As in `quantize`, for every format.
    sort : {"error", "clipped", "underflowed", "nbytes", "bits_per_number"}, optional
        Smallest first; default: the order given.

    Returns
    -------
    Comparison
        A row for each entry of `formats`.

    Raises
    ------
    TypeError
        `x` is not made of floats, or an argument has the wrong type.
    lowbit.Error
        There are no numbers or one is not finite (the message names its index in C order), or a format cannot use an
        option.

    Notes
    -----
    The default list takes every format at its own rule. Small floats take a scale of 1 unless they are told otherwise,
    as they do in `quantize`: say ``("fp8_e4m3fn", {"scale": "amax"})`` to bring the largest number to the top.

    Of `x` with zeros only, the error is 0 where all stays zero and infinite elsewhere.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.random.default_rng(0).standard_normal((64, 256), np.float32)
    >>> lb.compare(x, ["int4", ("int4", {"block_size": 32}), ("int4", {"scale": "sawb"}), "radix4"])
    float32 (64, 256), 16384 numbers, rounding nearest
    format  scale  block    error  SNR, dB  codes used  clipped  to zero  bytes  bits
    int4    amax   array   0.0266     15.7    15 of 16        0    22.7%   8196     4
    int4    amax   32     0.00946     20.2    15 of 16        0    13.6%  10240     5
    int4    sawb   array   0.0117     19.3    16 of 16    1.03%    14.3%   8196     4
    radix4  amax   array    0.151      8.2    15 of 15        0  0.0977%   8196     4
    """
    if isinstance(x, Mapping):
        parts = [_finite(_arguments.array(value, f"x[{name!r}]"), f"x[{name!r}]") for name, value in x.items()]
        what = f"{len(parts)} arrays"
    else:
        values = _arguments.array(x, "x")
        parts = [_finite(values, "x")]
        what = f"{values.dtype} {values.shape}"
    size = sum(part.size for part in parts)
    if not size:
        raise _core.Error("x: there are no numbers to compare")
    common: dict[str, Any] = {"scale": scale, "offset": offset, "axis": axis, "block_size": block_size}
    common |= {"rounding": rounding, "key": key}
    if sort is not None:
        _arguments.choice(sort, "sort", _ORDERS)
    if formats is None:
        negative = any(part.size and part.min() < 0 for part in parts)
        formats = [name for name in map(_core.get_format, _core.formats()) if name.signed or not negative]
    rows = [_row(parts, size, *each) for each in _entries(formats, common)]
    if sort is not None:
        rows.sort(key=lambda row: float(getattr(row, sort)))
    return Comparison(tuple(rows), f"{what}, {size} number{'s' * (size > 1)}")


def _finite(values: NDArray[Any], argument: str) -> NDArray[np.float32]:
    """Finite numbers as C-contiguous float32."""
    if not _arguments.is_float(values.dtype):
        raise TypeError(
            f"{argument}: expected float16, bfloat16, float32 or float64, got {values.dtype}; "
            "convert it to one of them, such as by astype(np.float32)"
        )
    numbers = _arguments.float32(values, argument)
    flat = numbers.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        wrong = np.flatnonzero(~np.isfinite(flat[start : start + _CHUNK]))
        if wrong.size:
            i = start + int(wrong[0])
            beyond = " in float32" if np.isfinite(values.flat[i]) else ""
            raise _core.Error(f"{argument}: element {i} is {flat[i]}{beyond}; every number must be finite")
    return numbers


def _entries(formats: Any, common: dict[str, Any]) -> list[tuple[_core.Format, dict[str, Any]]]:
    """Every format with all its options."""
    if isinstance(formats, (str, _core.Format)):
        formats = [formats]
    if not isinstance(formats, Iterable):
        raise TypeError(f"formats: expected formats or pairs (format, options), got {type(formats).__name__}")
    entries = []
    for i, entry in enumerate(formats):
        options = dict(common)
        if isinstance(entry, (tuple, list)):
            if len(entry) != 2 or not isinstance(entry[1], Mapping):
                raise TypeError(f"formats[{i}]: expected a format or a pair (format, dict of options), got {entry!r}")
            entry, own = entry  # noqa: PLW2901
            unknown = [name for name in own if name not in _OPTIONS]
            if unknown:
                raise TypeError(f"formats[{i}]: unknown option {unknown[0]!r}; options are {', '.join(_OPTIONS)}")
            options.update(own)
            if own.get("rounding") == "nearest" and "key" not in own:
                options["key"] = None  # the key in common is for the others
        entries.append((_core.get_format(entry), options))
    if not entries:
        raise _core.Error("formats: there is none to compare")
    return entries


@dataclass(slots=True)
class _Sums:
    """What adds up over chunks and arrays."""

    seen: NDArray[np.bool_]
    signal: float = 0.0
    noise: float = 0.0
    clipped: int = 0
    underflowed: int = 0
    nbytes: int = 0


def _row(parts: list[NDArray[np.float32]], size: int, fmt: _core.Format, options: dict[str, Any]) -> ComparisonRow:
    """Quantize the arrays and count."""
    sums, block_size = _Sums(np.zeros(1 << fmt.bits, np.bool_)), None
    for x in parts:
        q = quantize(x, fmt, **options)
        block_size = block_size or q.block_size
        y = dequantize(q, key=options["key"] if q.key_id is not None else None)
        _count(sums, x, y, q)
    given = options["scale"]
    with np.errstate(over="ignore"):
        error = sums.noise / sums.signal if sums.signal else (math.inf if sums.noise else 0.0)
    return ComparisonRow(
        format=fmt.name,
        scale=fmt.default_scale if given is None else given if isinstance(given, str) else "given",
        axis=_arguments.axis(options["axis"]),
        block_size=block_size,
        rounding=options["rounding"],
        error=error,
        used_codes=len(np.unique(fmt.decode_table[sums.seen])),
        codes=len(fmt.values),
        clipped=sums.clipped / size,
        underflowed=sums.underflowed / size,
        nbytes=sums.nbytes,
        bits_per_number=8 * sums.nbytes / size,
    )


def _count(sums: _Sums, x: NDArray[np.float32], y: NDArray[np.float32], q: Quantized) -> None:
    """Add what one array gives."""
    codes, numbers, rounded = q.codes.reshape(-1), x.reshape(-1), y.reshape(-1)
    for start in range(0, x.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        a, b = numbers[chunk], rounded[chunk]
        sums.signal += float(np.square(a, dtype=np.float64).sum())
        sums.noise += float(np.square(np.subtract(b, a, dtype=np.float64)).sum())
        sums.underflowed += int(np.count_nonzero((b == 0) & (a != 0)))
        sums.seen |= np.bincount(codes[chunk], minlength=sums.seen.size) > 0
    low, high = _ends(q)
    sums.clipped += int(np.count_nonzero(x > _spread(high, q))) + int(np.count_nonzero(x < _spread(low, q)))
    sums.nbytes += q.nbytes


def _ends(q: Quantized) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the smallest and largest number of every group, moved outwards by what rounding may do to a scale."""
    scale = q.scale.astype(np.float64) * (1.0 if q.tensor_scale is None else float(q.tensor_scale))
    low, high = float(q.format.values[0]) * scale, float(q.format.values[-1]) * scale
    if q.offset is not None:
        low, high = q.offset.astype(np.float64), q.offset + (high - low)
    slack = _SLACK * np.maximum(np.abs(low), np.abs(high))
    with np.errstate(over="ignore"):
        return (low - slack).astype(np.float32), (high + slack).astype(np.float32)


def _spread(ends: NDArray[np.float32], q: Quantized) -> NDArray[np.float32]:
    """Repeat what belongs to a block for its numbers."""
    if q.block_size is None or q.axis is None:
        return ends
    length = q.shape[q.axis]
    wide = np.repeat(ends, min(q.block_size, max(length, 1)), axis=q.axis)
    return wide[(slice(None),) * q.axis + (slice(length),)]
