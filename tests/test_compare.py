"""`compare`: its numbers are those of their definitions, and its table says them."""

from __future__ import annotations

import copy
import math
import pickle
import re
import tracemalloc
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import lowbit as lb
from support import BFLOAT16, KEY, normal


def by_definition(x: np.ndarray, name: str, **options: Any) -> dict[str, Any]:
    """What a row must say, in plain NumPy over the whole array."""
    q = lb.quantize(x, name, **options)
    y = lb.dequantize(q).astype(np.float64).ravel()
    wide = x.astype(np.float64).ravel()
    return {
        "error": np.sum((y - wide) ** 2) / np.sum(wide**2),
        "used_codes": len({float(v) for v in q.format.decode_table[q.codes.ravel()]}),
        "codes": len(q.format.values),
        "underflowed": np.mean((wide != 0) & (y == 0)),
        "nbytes": q.nbytes,
        "bits_per_number": 8 * q.nbytes / x.size,
    }


def stored(name: str) -> bool:
    """Whether a format has codes to compare by."""
    return lb.get_format(name).coded


def test_rows_are_what_their_definitions_say(name: str) -> None:
    if not stored(name):
        with pytest.raises(lb.Error):
            lb.compare(normal(10), name)
        return
    x = normal(300_006).reshape(7, -1)
    x[0, :100] = 0
    for options in ({}, {"rounding": "stochastic", "key": KEY}):
        row = lb.compare(x, name, **options)[0]
        for field, want in by_definition(x, name, **options).items():
            assert getattr(row, field) == pytest.approx(want, rel=1e-12), field
        assert row.format == name
        assert row.snr_db == pytest.approx(-10 * math.log10(row.error))


def test_numbers_beyond_the_grids_ends_are_clipped() -> None:
    x = np.float32([-100, -8.5, -8, -7.5, 0, 7, 7.25, 100])
    assert lb.compare(x, "int4", scale=1.0)[0].clipped == 4 / 8
    assert lb.compare(x, "int4_symmetric", scale=1.0)[0].clipped == 6 / 8
    assert lb.compare(x, "uint4", scale=1.0)[0].clipped == 5 / 8
    assert lb.compare(x, "radix4", scale=1.0)[0].clipped == 2 / 8
    assert lb.compare(x, "radix4", scale=0.125)[0].clipped == 3 / 8  # to 8
    assert lb.compare(x, "int4", scale=1.0, offset=-8.0)[0].clipped == 4 / 8
    assert lb.compare(x, "int4", scale=0.5, offset=0.0)[0].clipped == 5 / 8  # from 0 to 7.5
    assert lb.compare(x, "int4", scale="minmax")[0].clipped == 0


def test_a_scale_from_the_largest_magnitude_clips_nothing(name: str) -> None:
    """However scale and reciprocal were rounded."""
    fmt = lb.get_format(name)
    if (
        not stored(name)
        or "amax" not in fmt.scale_rules
        or fmt.scale_format
        or fmt.reference > fmt.max
        or not fmt.signed
    ):
        return
    for seed in range(20):
        x = normal(1000, seed) * np.float32(1.7**seed)
        assert lb.compare(x, name, scale="amax")[0].clipped == 0


def test_every_block_has_ends_of_its_own() -> None:
    rng = np.random.default_rng(5)
    x = normal(7 * 50 * 3).reshape(7, 50, 3)
    for axis, size in ((0, 3), (1, 16), (2, 2), (-1, 64), (1, 50), (1, 1)):
        blocks = list(x.shape)
        blocks[axis] = -(-blocks[axis] // size)
        scale = rng.uniform(0.02, 0.3, blocks).astype(np.float32)
        wide = np.repeat(scale, size, axis)[tuple(map(slice, x.shape))].astype(np.float64)
        want = np.mean((x > 7 * wide) | (x < -8 * wide))
        assert want > 0.01
        assert lb.compare(x, "int4", scale=scale, axis=axis, block_size=size)[0].clipped == want
    scale = rng.uniform(0.02, 0.3, 50)
    t = x / scale.astype(np.float32)[:, None].astype(np.float64)
    row = lb.compare(x, "int4", scale=scale, axis=1)[0]
    assert row.clipped == np.mean((t > 7) | (t < -8))
    assert (row.axis, row.block_size, row.scale, row.block) == (1, None, "given", "axis 1")


def test_a_mapping_counts_the_numbers_of_all_arrays() -> None:
    arrays = {"weight": normal(1000).reshape(10, 100), "bias": 50 * normal(10, 1), "none": np.zeros((0, 3), np.float32)}
    table = lb.compare(arrays, ["int4", "radix4_odd"], block_size=16)
    assert repr(table).startswith("3 arrays, 1010 numbers, rounding nearest\n")
    for row in table:
        alone = [lb.compare(arrays[name], row.format, block_size=16)[0] for name in ("weight", "bias")]
        assert row.nbytes == alone[0].nbytes + alone[1].nbytes
        assert row.clipped == pytest.approx((1000 * alone[0].clipped + 10 * alone[1].clipped) / 1010)
        energy = [np.square(arrays[name], dtype=np.float64).sum() for name in ("weight", "bias")]
        assert row.error == pytest.approx(np.dot(energy, [a.error for a in alone]) / sum(energy))


def test_options_of_a_pair_hold_for_it_alone() -> None:
    x = normal(64)
    pairs: list[Any] = ["int4", ("int4", {"scale": "sawb", "block_size": 16}), (lb.get_format("int4"), {"axis": 0})]
    table = lb.compare(x, pairs, scale="minmax")
    assert [(row.scale, row.block) for row in table] == [("minmax", "array"), ("sawb", "16"), ("minmax", "axis 0")]
    assert [row.label for row in table] == ["int4, minmax", "int4, sawb, 16", "int4, minmax, axis 0"]
    mixed = lb.compare(x, ["int4", ("int4", {"rounding": "nearest"})], rounding="stochastic", key=3)
    assert [row.rounding for row in mixed] == ["stochastic", "nearest"]
    assert mixed[1] == lb.compare(x, "int4")[0]
    assert "rounding" in repr(mixed).splitlines()[1]
    dithered = lb.compare(x, "int4", rounding="dither", key=3)[0]
    want = lb.fake_quantize(x, "int4", rounding="dither", key=3).astype(np.float64)
    assert dithered.error == pytest.approx(np.sum((want - x) ** 2) / np.sum(np.square(x, dtype=np.float64)))


def test_by_default_all_formats_that_suit_the_sign() -> None:
    signed = [name for name in lb.formats() if lb.get_format(name).signed]
    assert [row.format for row in lb.compare(normal(100))] == signed
    assert [row.format for row in lb.compare(np.abs(normal(100)))] == lb.formats()
    assert len(signed) < len(lb.formats())


def test_rows_are_sorted_as_asked() -> None:
    x, names = normal(1000), ["radix4", "int4", "radix4_odd", "int4_symmetric"]
    assert [row.format for row in lb.compare(x, names)] == names
    for order in ("error", "clipped", "underflowed", "nbytes", "bits_per_number"):
        found = [getattr(row, order) for row in lb.compare(x, names, sort=order)]
        assert found == sorted(found)


def test_a_table_is_a_frozen_sequence() -> None:
    table = lb.compare(normal(100), ["int4", "radix4", ("int4", {"block_size": 10})])
    assert len(table) == 3
    assert list(table) == list(table.rows) == [table[0], table[1], table[2]]
    assert table[-1].block_size == 10
    assert table[1:] == table.rows[1:]
    assert table["radix4"] is table[1]
    for name, rows in (("int4", 2), ("nf5", 0)):
        with pytest.raises(KeyError, match=f"{rows} rows; formats are: int4, radix4"):
            table[name]
    with pytest.raises(AttributeError):
        table.rows = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        table[0].error = 0.0
    assert pickle.loads(pickle.dumps(table)) == copy.deepcopy(table) == table
    columns = table.to_dict()
    assert columns["format"] == ["int4", "radix4", "int4"]
    for name, column in columns.items():
        assert column == [getattr(row, name) for row in table], name


class Cells(HTMLParser):
    """The text of cells, row by row, and every tag."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        """Note the tag; a row or a cell begins."""
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        """Add to the last cell."""
        if self.rows and self.rows[-1] and data.strip():
            self.rows[-1][-1] += data


def test_text_and_html_say_the_same() -> None:
    x = normal(10_000)
    x[0] = 40
    table = lb.compare(x, ["int4", ("int4", {"block_size": 32}), "radix4_odd"])
    caption, head, *body = repr(table).splitlines()
    assert caption == "float32 (10000,), 10000 numbers, rounding nearest"
    parsed = Cells()
    parsed.feed(table._repr_html_())
    assert parsed.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert [re.split(r"  +", line) for line in (head, *body)] == parsed.rows
    # Columns are aligned: numbers end where their heading ends.
    for heading in ("error", "clipped", "to zero", "bytes", "bits"):
        end = head.index(heading) + len(heading)
        assert all(len(line) >= end and line[end - 1] != " " and line[end : end + 1] in {" ", ""} for line in body)
    assert f"{100 * table[0].underflowed:.3g}%" in body[0]


def test_html_is_escaped() -> None:
    row = lb.compare(normal(10), "int4")[0]
    table = lb.Comparison((row,), "<script>alert(1)</script> & more")
    assert "<script" not in table._repr_html_()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in table._repr_html_()


def test_any_float_of_any_layout() -> None:
    x = normal(600).reshape(20, 30)
    want = lb.compare(x, "int4", block_size=8)[0]
    assert lb.compare(x.astype(np.float64), "int4", block_size=8)[0] == want
    assert lb.compare(np.asfortranarray(x), "int4", block_size=8)[0] == want
    assert lb.compare(x[::-1][::-1], "int4", block_size=8)[0] == want
    assert lb.compare(x.astype(">f4"), "int4", block_size=8)[0] == want
    assert lb.compare(x.tolist(), "int4", block_size=8)[0] == want
    for dtype in (np.float16, BFLOAT16):
        half = x.astype(dtype)
        assert lb.compare(half, "int4")[0] == lb.compare(half.astype(np.float32), "int4")[0]
        assert repr(lb.compare(half, "int4")).startswith(f"{np.dtype(dtype)} (20, 30)")
    assert lb.compare(np.float32(3), "int4")[0].bits_per_number == 40


def test_zeros_lose_nothing() -> None:
    row = lb.compare(np.zeros(8), "int4")[0]
    assert (row.error, row.snr_db, row.underflowed, row.used_codes) == (0, math.inf, 0, 1)
    assert "inf" in repr(lb.compare(np.zeros(8), "int4"))


def test_ten_million_numbers_need_few_temporaries() -> None:
    """The result, a code and an end for each number, and no float64 array."""
    n = 1 << 22
    x = normal(n)
    tracemalloc.start()
    try:
        lb.compare(x, ["int4", ("int4", {"block_size": 32})])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 13 * n, f"{peak / n:.1f} bytes per number"


@pytest.mark.parametrize(
    ("x", "formats", "options", "error", "match"),
    [
        (np.arange(3), None, {}, TypeError, "x: expected float16, bfloat16, float32 or float64, got int64"),
        (np.ones(3, complex), None, {}, TypeError, "x: expected float16"),
        (np.ma.array([1.0, 2.0], mask=[0, 1]), None, {}, TypeError, "x: a masked array"),
        ({"w": np.arange(3)}, None, {}, TypeError, r"x\['w'\]: expected float16"),
        (np.zeros((3, 0)), None, {}, lb.Error, "x: there are no numbers"),
        ({}, None, {}, lb.Error, "x: there are no numbers"),
        (np.float32([[1, 2], [np.nan, 4]]), None, {}, lb.Error, "x: element 2 is nan; every number must be finite"),
        (np.append(np.zeros(200_000), -np.inf), None, {}, lb.Error, "x: element 200000 is -inf;"),
        ([0.0, 1e39], None, {}, lb.Error, "x: element 1 is inf in float32"),
        ({"w": np.float32([np.inf])}, None, {}, lb.Error, r"x\['w'\]: element 0 is inf;"),
        (np.ones(3), [], {}, lb.Error, "formats: there is none"),
        (np.ones(3), 4, {}, TypeError, "formats: expected formats or pairs"),
        (np.ones(3), ["int4", "nf5"], {}, lb.Error, "nf5"),
        (np.ones(3), ["int4", ("int4",)], {}, TypeError, r"formats\[1\]: expected a format or a pair"),
        (
            np.ones(3),
            [("int4", {"block": 3})],
            {},
            TypeError,
            r"formats\[0\]: unknown option 'block'; options are scale",
        ),
        (np.ones(3), ["int4"], {"sort": "name"}, lb.Error, "sort: 'name' is not known; known are: error"),
        (np.ones(3), ["radix4"], {"scale": "sawb"}, lb.Error, "scale:"),
        (np.ones(3), ["int4"], {"rounding": "stochastic"}, lb.Error, "key"),
        (np.ones(3), ["int4"], {"key": 3}, lb.Error, "key"),
        (np.ones(3), ["int4"], {"axis": 1}, lb.Error, "axis"),
    ],
)
def test_bad_arguments_are_named(x: Any, formats: Any, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        lb.compare(x, formats, **options)


def in_octave(e: int) -> float:
    """Give the share of normal numbers with magnitudes from 2^e to 2^(e + 1)."""
    return math.erf(2.0 ** (e + 0.5)) - math.erf(2.0 ** (e - 0.5))


@pytest.mark.parametrize(
    ("format", "options", "error"),
    [
        # 32 numbers a block; the largest magnitude on 7 (facts: 9.40e-3, 1.32e-2 and 9.0e-3 by simulation).
        ("int4_symmetric", {"block_size": 32}, 9.40e-3),
        ("mxfp4", {}, 1.32e-2),
        ("nvfp4", {}, 9.04e-3),
        # Closed forms: 1 - 2 / pi; and with d = 0.7 sqrt(2 / pi), phi and Q the normal density and tail,
        # 1 - 2 phi(d)^2 / Q(d).
        ("sign", {}, 1 - 2 / math.pi),
        ("ternary", {"scale": "twn"}, 0.19162),
        # A twelfth of the squared step of each octave, times the share of numbers in it.
        ("bfloat16", {}, sum(in_octave(e) * 4.0 ** (e - 7) / 12 for e in range(-30, 4))),
        ("float16", {}, sum(in_octave(e) * 4.0 ** (e - 10) / 12 for e in range(-14, 4))),
    ],
)
def test_errors_of_gaussian_numbers_are_known(format: str, options: dict[str, Any], error: float) -> None:
    assert lb.compare(normal(1 << 20), format, **options)[0].error == pytest.approx(error, rel=0.01)


def test_long_names_are_shortened_where_people_read() -> None:
    table = lb.table_format(np.linspace(-1, 1, 200))
    q = lb.quantize(normal(100), table)
    assert len(repr(q)) < 120
    assert max(map(len, repr(lb.compare(normal(100), [table])).splitlines())) < 160
    assert lb.compare(normal(100), [table])[0].format == table.name
    assert lb.Quantized.from_bytes(q.to_bytes()) == q
