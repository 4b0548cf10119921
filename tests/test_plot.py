"""Pictures: the numbers behind the marks and lines, and that nothing but the axes is touched."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import lowbit as lb
from support import normal

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

X = normal(5000)
DRAWINGS: dict[str, Any] = {
    "number_line": lambda **ax: lb.plot.number_line(["int4", "radix4"], **ax),
    "logarithmic": lambda **ax: lb.plot.logarithmic(["int4", "radix4"], **ax),
    "error": lambda **ax: lb.plot.error(["int4", "radix4"], **ax),
    "codes": lambda **ax: lb.plot.codes(X, "int4", **ax),
    "compare": lambda **ax: lb.plot.compare(lb.compare(X, ["int4", "radix4"]), **ax),
}


@pytest.fixture(autouse=True)
def no_figures_left() -> Iterator[None]:
    """Close what a test opened."""
    yield
    pyplot.close("all")


def marks(ax: Any) -> list[np.ndarray]:
    """Where the vertical marks of each row are."""
    lines = [c for c in ax.collections if isinstance(c, LineCollection)]
    segments = [np.array([s[:, 0] for s in c.get_segments()]) for c in lines]
    return [s[:, 0] for s in segments if np.all(s[:, 0] == s[:, 1])]


def has_values(name: str) -> bool:
    """Whether a format's grid can be listed."""
    return lb.get_format(name).coded


def test_every_value_has_its_mark(name: str) -> None:
    if not has_values(name):
        for draw in (lb.plot.number_line, lb.plot.logarithmic):
            with pytest.raises(lb.Error, match=re.escape(name)):
                draw(name)
        return
    values = lb.get_format(name).values.astype(np.float64)
    places, magnitudes = values / np.abs(values).max(), np.unique(np.abs(values[values != 0]))
    line, *_ = marks(lb.plot.number_line(name))
    reach, *_ = marks(lb.plot.logarithmic([name]))
    if len(values) <= 512:
        np.testing.assert_array_equal(line, places)
        np.testing.assert_array_equal(reach, magnitudes)
        return
    # One of many thousand stands for its neighbours.
    assert len(line) < 4100
    assert len(reach) < 4100
    assert set(line) <= set(places)
    assert set(reach) <= set(magnitudes)
    assert np.diff(line).max() <= np.diff(places).max() + 2 / 4000
    octaves = np.log2(magnitudes)
    assert np.diff(np.log2(reach)).max() <= np.diff(octaves).max() + (octaves[-1] - octaves[0]) / 4000


def test_radix_4_reaches_512_times_as_far_as_int4() -> None:
    """The article's picture: 2^12 against 8."""
    ax = lb.plot.logarithmic(["int4", "radix4", "uint4"])
    assert [text.get_text() for text in ax.texts] == ["8x", "2^12", "15x"]
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["int4", "radix4", "uint4"]
    ranges = [row.max() / row.min() for row in marks(ax)]
    assert ranges == [8, 2**12, 15]
    low, high = ax.get_ylim()
    assert low > high, "the first row is on top"


def test_labels_are_values_and_do_not_meet() -> None:
    ax = lb.plot.number_line(["int4", "radix4"])
    rows: dict[float, list[tuple[float, str]]] = {}
    for text in ax.texts:
        x, y = text.get_position()
        rows.setdefault(y, []).append((x, text.get_text()))
    first, second = rows.values()
    assert [float(label) for _, label in first] == list(range(-8, 8))
    assert [label for _, label in second] == ["-64", "-16", "-4", "0", "4", "16", "64"]
    ax.figure.canvas.draw()
    for texts in (ax.texts[:16], ax.texts[16:]):
        boxes = [text.get_window_extent() for text in texts]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_error_is_relative_to_the_magnitude() -> None:
    ax = lb.plot.error(["int4", "radix4"], octaves=14)
    int4, radix4 = ax.get_lines()
    assert [line.get_label() for line in (int4, radix4)] == ["int4", "radix4"]
    x, y = radix4.get_data()
    assert (x[0], x[-1]) == (2.0**-14, 2.0)
    # E[(q / x - 1)^2] over whole periods, u = x / q evenly in log(u) from 1 / 1.6 to 1 / 0.4:
    # E[1 / u^2] = (1.6^2 - 0.4^2) / (2 ln 4), E[1 / u] = (1.6 - 0.4) / ln 4, both 1.2 / ln 4.
    inside = (x >= 2.0**-11) & (x < 2.0**-1)
    assert np.mean(y[inside] ** 2) == pytest.approx(1 - 1.2 / np.log(4), rel=1e-3)
    assert np.all(y[x < 0.6 / np.sqrt(2) * 2.0**-12] == 1), "what underflows is lost"
    x, y = int4.get_data()
    assert np.all(y[x < 0.49 / np.sqrt(2) / 7] == 1)
    above = (1 - 1 / np.exp2(np.arange(0.5, 1.5, 1 / 1024))) ** 2
    assert y[-1] == pytest.approx(np.sqrt(above.mean()), rel=1e-2), "beyond the largest all becomes the largest"


def test_codes_are_shares_of_numbers(name: str) -> None:
    if not has_values(name):
        return
    ax = lb.plot.codes(X, name)
    fmt, q = lb.get_format(name), lb.quantize(X, name)
    want = np.array([np.count_nonzero(fmt.decode_table[q.codes] == value) / X.size for value in fmt.values[:512]])
    if len(fmt.values) <= 32:
        np.testing.assert_allclose([bar.get_height() for bar in ax.patches], want, atol=1e-12)
    elif len(fmt.values) <= 512:
        np.testing.assert_allclose(ax.patches[0].get_data().values, want, atol=1e-12)
    else:
        heights, edges, _ = ax.patches[0].get_data()
        assert len(heights) <= 256
        assert heights.sum() == pytest.approx(1)
        ranks = np.searchsorted(fmt.values, fmt.decode_table[q.codes])
        np.testing.assert_allclose(heights, np.histogram(ranks, edges)[0] / X.size, atol=1e-12)
        assert ax.get_xlim() == (ranks.min() - 0.5, ranks.max() + 0.5)
    row = lb.compare(X, name)[0]
    assert ax.get_title() == f"{name}: {row.used_codes} of {len(fmt.values)} values used"
    assert len(ax.get_xticks()) <= 18
    for place, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True):
        numerator, _, denominator = label.get_text().partition("/")
        assert float(numerator) / float(denominator or 1) == pytest.approx(fmt.values[int(place)], rel=0.005)


def test_options_of_quantize_reach_codes() -> None:
    q = lb.quantize(X, "int4", block_size=16, rounding="stochastic", key=5)
    ax = lb.plot.codes(X, "int4", block_size=16, rounding="stochastic", key=5)
    assert ax.patches[8].get_height() == np.mean(q.codes == 0)


def test_compare_has_a_dot_for_every_row() -> None:
    table = lb.compare(X, ["int4", ("int4", {"block_size": 32}), "radix4"])
    ax = lb.plot.compare(table)
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.get_lines()]
    assert dots == [(row.error, i) for i, row in enumerate(table)]
    assert [label.get_text() for label in ax.get_yticklabels()] == [row.label for row in table]
    assert [text.get_text() for text in ax.texts] == ["4.01 bits", "5 bits", "4.01 bits"]
    exact = lb.plot.compare(lb.compare(np.zeros(3), ["int4"]))
    assert not exact.get_lines()


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_nothing_but_the_axes_is_touched(drawing: str) -> None:
    own = Figure().add_subplot()
    settings, figures = matplotlib.rcParams.copy(), pyplot.get_fignums()
    assert DRAWINGS[drawing](ax=own) is own
    assert pyplot.get_fignums() == figures == []
    assert matplotlib.rcParams == settings
    made = DRAWINGS[drawing]()
    assert made.figure is pyplot.figure(pyplot.get_fignums()[0])
    assert len(pyplot.get_fignums()) == 1
    assert matplotlib.rcParams == settings
    made.figure.canvas.draw()


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_without_matplotlib_the_error_says_what_to_install(drawing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install lowbit\[plot\]"):
        DRAWINGS[drawing]()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: lb.plot.number_line([]), lb.Error, "formats: there is none"),
        (lambda: lb.plot.number_line(4), TypeError, "formats: expected names or formats, got int"),
        (lambda: lb.plot.logarithmic(["int4", "nf5"]), lb.Error, "nf5"),
        (lambda: lb.plot.error("int4", octaves=0), lb.Error, "octaves: 0 is out of range"),
        (lambda: lb.plot.error("int4", ax=pyplot), TypeError, "ax: expected matplotlib axes, got module"),
        (lambda: lb.plot.error("table(-3,-2)"), lb.Error, "no largest positive value"),
        (lambda: lb.plot.codes([], "int4"), lb.Error, "x: there are no numbers"),
        (lambda: lb.plot.codes([np.nan], "int4"), lb.Error, "NaN|nan|finite"),
        (lambda: lb.plot.codes([1.0], "int4", blocks=3), TypeError, "blocks"),
        (lambda: lb.plot.compare([1.0]), TypeError, "comparison: expected what lowbit.compare gives, got list"),
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
