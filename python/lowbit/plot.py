"""Pictures of formats: their grids, their errors, the codes that numbers take.

Every function draws into `ax` or, without one, into a figure of its own, and returns the axes. matplotlib is imported
when something is drawn: ``pip install lowbit[plot]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _arguments, _core
from lowbit._compare import Comparison
from lowbit._quant import fake_quantize, quantize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    from lowbit._formats import FormatLike

__all__ = ["codes", "compare", "error", "logarithmic", "number_line"]

_GREY = "0.45"
#: A label under every value up to so many values.
_FEW = 32
#: More values than this share bars and marks.
_MANY = 512
#: Numbers of an octave whose errors are averaged.
_STEPS = 256


def number_line(formats: FormatLike | Iterable[FormatLike], *, ax: Axes | None = None) -> Axes:
    """Draw the values of formats on a number line, each in units of its largest magnitude.

    So the rule ``"amax"`` would lay them over the same numbers. Values are written under their marks where there is
    room.

    Parameters
    ----------
    formats : str, Format or iterable of them
        What to draw, first on top.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    lowbit.Error
        There is no such format, or it has no table of values.

    Examples
    --------
    >>> import lowbit as lb
    >>> ax = lb.plot.number_line(["int4", "radix4"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['int4', 'radix4']
    """
    drawn = _formats(formats)
    ax = _axes(ax, height=0.9 + 0.55 * len(drawn))
    for row, fmt in enumerate(drawn):
        places = fmt.values.astype(np.float64) / np.abs(fmt.values).max()
        _marks(ax, row, places, (places + 1) / 2)
        if len(places) <= _FEW:
            for place, label in _spaced(places, [_short(value) for value in fmt.values]):
                ax.text(place, row + 0.26, label, ha="center", va="top", fontsize=7, color=_GREY)
    _rows(ax, [fmt.name for fmt in drawn])
    ax.set_xlabel("number, in units of the largest magnitude")
    ax.set_xlim(-1.05, 1.05)
    return ax


def logarithmic(formats: FormatLike | Iterable[FormatLike], *, ax: Axes | None = None) -> Axes:
    """Draw the positive values of formats on a logarithmic scale, and how far they reach.

    The number at the right is the largest magnitude over the smallest: 8 for INT4, 2^12 for radix-4 FP4.

    Parameters
    ----------
    formats, ax
        As in `number_line`. Magnitudes are drawn, for a format with more negative than positive values too.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    lowbit.Error
        There is no such format, or it has no table of values.

    Examples
    --------
    >>> import lowbit as lb
    >>> ax = lb.plot.logarithmic(["int4", "radix4"])
    >>> [text.get_text() for text in ax.texts]
    ['8x', '2^12']
    """
    drawn = _formats(formats)
    rows = [_magnitudes(fmt) for fmt in drawn]
    ax = _axes(ax, height=0.9 + 0.45 * len(drawn))
    low, high = min(row[0] for row in rows), max(row[-1] for row in rows)
    octaves = max(math.log2(high / low), 1.0)
    for row, places in enumerate(rows):
        _marks(ax, row, places, np.log2(places / low) / octaves)
        ax.annotate(
            _reach(places), (places[-1], row), (6, 0), textcoords="offset points", va="center", fontsize=8, color=_GREY
        )
    _rows(ax, [fmt.name for fmt in drawn])
    # Room at the right for how far the last one reaches.
    _octaves(ax, math.log2(low) - 0.04 * octaves, math.log2(high) + 0.13 * octaves)
    ax.set_xlabel("magnitude, in units of the scale")
    return ax


def error(formats: FormatLike | Iterable[FormatLike], *, octaves: int = 16, ax: Axes | None = None) -> Axes:
    """Draw the relative error of rounding to nearest against the magnitude of a number, both on logarithmic scales.

    Parameters
    ----------
    formats, ax
        As in `number_line`.
    octaves : int
        How many octaves below the largest value to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    lowbit.Error
        There is no such format, or it has no largest value.

    Notes
    -----
    Magnitudes are in units of the format's largest. A line at 1 means that everything becomes 0. What is drawn is the
    root of the mean squared relative error of numbers spread evenly (on this scale) over an octave around a magnitude.

    Examples
    --------
    >>> import lowbit as lb
    >>> ax = lb.plot.error(["int4", "radix4"], octaves=8)
    >>> ax.get_xscale(), ax.get_yscale()
    ('log', 'log')
    """
    drawn = _formats(formats)
    octaves = _arguments.within(octaves, "octaves", 1, 300)
    lines = [_relative_error(fmt, octaves) for fmt in drawn]
    ax = _axes(ax, height=4.2)
    for i, (fmt, (magnitudes, errors)) in enumerate(zip(drawn, lines, strict=True)):
        ax.plot(magnitudes, errors, lw=1.5, color=f"C{i % 10}", label=fmt.name)
    ax.set_yscale("log")
    _octaves(ax, -octaves, 1)
    ax.set_xlabel("magnitude of the number, in units of the format's largest")
    ax.set_ylabel("relative error, rms over an octave")
    # Above the axes, where no line is.
    ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(drawn), 6))
    _plain(ax)
    return ax


def codes(x: ArrayLike, format: FormatLike, *, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw how many of the numbers take each of a format's values.

    Parameters
    ----------
    x : array_like
        Finite floats.
    format : str or Format
        What to quantize to.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.
    **options
        Those of `lowbit.quantize`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    TypeError, lowbit.Error
        As in `lowbit.quantize`, and for an array without numbers.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> ax = lb.plot.codes(np.random.default_rng(0).standard_normal(1000), "int4", block_size=32)
    >>> len(ax.patches)
    16
    """
    fmt = _core.get_format(format)
    shares = _shares(x, fmt, options)
    ax = _axes(ax, height=3.4)
    first, last, each = 0, len(shares) - 1, 1
    if len(shares) > _MANY:
        # What is used, in bars of several values each: one of 65,536 would be too thin to see.
        used = np.flatnonzero(shares)
        first, last = int(used[0]), int(used[-1])
        each = -(-(last - first + 1) // (_MANY // 2))
    places = np.arange(first, last + 1, each)
    heights = np.add.reduceat(shares[first : last + 1], places - first)
    if len(heights) <= _FEW and each == 1:
        ax.bar(places, heights, width=0.85, color="C0")
    else:
        ax.stairs(heights, np.append(places, places[-1] + each) - 0.5, fill=True, color="C0")
    step = -(-(last - first + 1) // 17)
    # Counted from zero, so that it is among the labels.
    zero = int(np.searchsorted(fmt.values, 0))
    marked = range(first + (zero - first) % step, last + 1, step)
    labels = [_short(fmt.values[i]) for i in marked]
    ax.set_xticks(marked, labels)
    if max(map(len, labels)) > 4:
        ax.tick_params(axis="x", labelrotation=60)
    ax.set_xlim(first - 0.5, last + 0.5)
    ax.set_xlabel("value, in units of the scale; " + ("a bar for each" if each == 1 else f"a bar for every {each}"))
    ax.set_ylabel("share of numbers")
    ax.set_title(f"{fmt.name}: {np.count_nonzero(shares)} of {len(shares)} values used", fontsize=10)
    _plain(ax)
    return ax


def compare(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Draw the errors of a comparison's rows, with the bits that each number takes.

    Parameters
    ----------
    comparison : Comparison
        What `lowbit.compare` gave; rows keep their order, first on top.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is not installed.
    TypeError
        `comparison` is something else.

    Notes
    -----
    An error of 0 has no place on a logarithmic scale: such a row has a label and no dot.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.random.default_rng(0).standard_normal(1000)
    >>> ax = lb.plot.compare(lb.compare(x, ["int4", ("int4", {"block_size": 32})]))
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['int4, amax', 'int4, amax, 32']
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(f"comparison: expected what lowbit.compare gives, got {type(comparison).__name__}")
    ax = _axes(ax, height=1.1 + 0.24 * len(comparison))
    for row, each in enumerate(comparison):
        if 0 < each.error < math.inf:
            ax.plot(each.error, row, "o", ms=5, color="C0")
            bits = f"{each.bits_per_number:.3g}"
            note = bits + (" bit" if bits == "1" else " bits")
            ax.annotate(note, (each.error, row), (7, 0), textcoords="offset points", va="center", fontsize=7.5)
    _rows(ax, [each.label for each in comparison])
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.set_xlim(low, high * (high / low) ** 0.12)  # room for the last number's bits
    ax.set_xlabel("relative squared error")
    ax.grid(axis="both", color="0.92", lw=0.7)
    ax.set_axisbelow(True)
    return ax


def _axes(ax: Axes | None, *, height: float) -> Axes:
    """Give the caller's axes, or those of a new figure."""
    try:
        import matplotlib.axes  # noqa: PLC0415
    except ImportError:
        raise ImportError("lowbit.plot draws with matplotlib: pip install lowbit[plot]") from None
    if ax is None:
        # pyplot is what shows a figure in a notebook; whoever gives axes of their own does without it.
        from matplotlib import pyplot  # noqa: PLC0415

        return pyplot.subplots(figsize=(8, height), layout="constrained")[1]
    if not isinstance(ax, matplotlib.axes.Axes):
        raise TypeError(f"ax: expected matplotlib axes, got {type(ax).__name__}")
    return ax


def _formats(formats: Any) -> list[_core.Format]:
    """Every format that was named."""
    if isinstance(formats, (str, _core.Format)):
        formats = [formats]
    if not isinstance(formats, Iterable):
        raise TypeError(f"formats: expected names or formats, got {type(formats).__name__}")
    found = [_core.get_format(each) for each in formats]
    if not found:
        raise _core.Error("formats: there is none to draw")
    return found


def _magnitudes(fmt: _core.Format) -> NDArray[np.float64]:
    """Give what is not zero, ascending."""
    magnitudes: NDArray[np.float64] = np.unique(np.abs(fmt.values.astype(np.float64)))
    return magnitudes[magnitudes > 0]


def _relative_error(fmt: _core.Format, octaves: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give magnitudes over the largest, and the largest relative error around each of them."""
    if not 0 < fmt.max < math.inf:
        raise _core.Error(f"formats: {fmt.name} has no largest positive value to draw errors up to")
    # Half an octave more on either side, for the means; float32's normal numbers only.
    low = max(-octaves - 0.5, -126 - math.log2(fmt.max))
    high = min(1.5, math.log2(np.finfo(np.float32).max) - math.log2(fmt.max))
    exponents = np.arange(math.ceil(low * _STEPS), math.floor(high * _STEPS) + 1) / _STEPS
    x = (fmt.max * np.exp2(exponents)).astype(np.float32)
    y = fake_quantize(x, fmt, scale=1.0)
    squares = np.square((y.astype(np.float64) - x) / x)
    means = np.lib.stride_tricks.sliding_window_view(squares, _STEPS + 1).mean(axis=-1)
    return np.exp2(exponents[_STEPS // 2 : -(_STEPS // 2)]), np.sqrt(means)


def _shares(x: ArrayLike, fmt: _core.Format, options: dict[str, Any]) -> NDArray[np.float64]:
    """Give the share of numbers that takes each of the values, ascending."""
    q = quantize(x, fmt, **options)
    if not q.size:
        raise _core.Error("x: there are no numbers to draw")
    counts = np.bincount(q.codes.reshape(-1), minlength=1 << fmt.bits)
    used = np.flatnonzero(counts)
    shares = np.zeros(len(fmt.values))
    # Two codes may have one value: 0 and -0.
    np.add.at(shares, np.searchsorted(fmt.values, fmt.decode_table[used]), counts[used] / q.size)
    return shares


def _marks(ax: Axes, row: int, places: NDArray[np.float64], along: NDArray[np.float64]) -> None:
    """Draw a row of marks, which lie from 0 to 1 `along` the axis: thin ones where they are many."""
    ax.hlines(row, places[0], places[-1], color="0.85", lw=0.8, zorder=1)
    width = min(max(150 * (along[-1] - along[0]) / len(places), 0.5), 1.6)
    if len(places) > _MANY:
        # One mark stands for all that no picture could tell apart.
        places = places[np.unique(np.round(along * 4000), return_index=True)[1]]
    ax.vlines(places, row - 0.2, row + 0.2, color=f"C{row % 10}", lw=width, zorder=2)


def _spaced(places: NDArray[np.float64], labels: list[str]) -> list[tuple[float, str]]:
    """Choose labels that do not meet: the ends first, then zero, then what fits between, from the left."""
    last = len(places) - 1
    order = sorted(range(len(places)), key=lambda i: (i not in {0, last}, places[i] != 0, i))
    chosen: list[int] = []
    for i in order:
        # Half a character of 7 points is about 0.009 of the axis from -1 to 1.
        if all(abs(places[i] - places[j]) > 0.009 * (len(labels[i]) + len(labels[j])) + 0.01 for j in chosen):
            chosen.append(i)
    return [(float(places[i]), labels[i]) for i in sorted(chosen)]


def _short(value: float) -> str:
    """Write a value in few characters: a power of two below one, but not far below, as a fraction."""
    size = abs(float(value))
    if 2.0**-12 < size < 1 and math.frexp(size)[0] == 0.5:
        return f"{'-' if value < 0 else ''}1/{1 / size:.4g}"
    value = float(value) + 0.0  # -0 is written as 0
    return f"{value:.0f}" if 1000 <= size < 1e6 else f"{value:.3g}"


def _reach(magnitudes: NDArray[np.float64]) -> str:
    """Write the largest over the smallest magnitude."""
    ratio = float(magnitudes[-1] / magnitudes[0])
    return f"{ratio:.3g}x" if ratio < 1000 else f"2^{math.log2(ratio):.4g}"


def _octaves(ax: Axes, low: float, high: float) -> None:
    """Make the x axis logarithmic from 2^low to 2^high, with at most 12 powers of two written."""
    step = 1
    while (high - low) / step > 12:
        step *= 2
    exponents = range(math.ceil(low / step) * step, math.floor(high) + 1, step)
    ax.set_xscale("log", base=2)
    ax.set_xticks([2.0**e for e in exponents], [f"$2^{{{e}}}$" for e in exponents])
    ax.minorticks_off()
    ax.set_xlim(2.0**low, 2.0**high)


def _rows(ax: Axes, names: Sequence[str]) -> None:
    """Label rows that are counted from the top."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    _plain(ax)


def _plain(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)
