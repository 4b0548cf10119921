"""Quantized arrays as bytes, as pickles and in files; and everything that can be wrong with those."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import lowbit as lb
from support import BFLOAT16, CODED, KEY, assert_same, fit, normal, roundings, scalings


def assert_equal(got: lb.Quantized, want: lb.Quantized) -> None:
    assert got == want
    assert got.format.name == want.format.name
    assert_same(got.packed, want.packed)
    assert_same(got.scale, want.scale)
    assert (got.offset is None) == (want.offset is None)
    if want.offset is not None:
        assert_same(got.offset, want.offset)
    assert (got.scale_codes is None) == (want.scale_codes is None)
    if want.scale_codes is not None:
        assert_same(got.scale_codes, want.scale_codes)
    for field in ("shape", "axis", "block_size", "key_id", "size", "ndim", "nbytes", "tensor_scale"):
        assert getattr(got, field) == getattr(want, field), field


def examples(name: str) -> list[lb.Quantized]:
    shapes = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (2, 3, 4)]
    plain = [lb.quantize(normal(int(np.prod(s))).reshape(s), name, **r) for s in shapes for r in roundings(name)]
    x = normal(60).reshape(5, 12)
    shaped = [{"axis": 0}, {"axis": 1}, {"block_size": 5}, {"block_size": 2, "axis": 0}, {"scale": np.ones((5, 1))}]
    return [
        *plain,
        *(lb.quantize(x, name, **fit(name, **options)) for options in shaped),
        *(lb.quantize(x, name, **options) for options in scalings(name)),
    ]


def test_bytes_come_back(coded: str) -> None:
    for q in examples(coded):
        data = q.to_bytes()
        assert isinstance(data, bytes)
        assert len(data) % 16 == 0 or len(data) > q.nbytes
        for given_ in (data, bytearray(data), memoryview(data), memoryview(b"\0" + data)[1:]):
            assert_equal(lb.Quantized.from_bytes(given_), q)
        assert lb.Quantized.from_bytes(data).to_bytes() == data


def test_pickles_and_copies(coded: str) -> None:
    for q in examples(coded):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            assert_equal(pickle.loads(pickle.dumps(q, protocol)), q)
        assert_equal(copy.copy(q), q)
        assert_equal(copy.deepcopy(q), q)


def test_the_key_does_not_travel() -> None:
    q = lb.quantize(normal(100), "int4", rounding="dither", key=KEY)
    for word in KEY.words:
        assert word.to_bytes(8, "little") not in q.to_bytes()
    back = lb.Quantized.from_bytes(q.to_bytes())
    assert_same(lb.dequantize(back, key=KEY), lb.dequantize(q, key=KEY))


def test_equality(coded: str) -> None:
    x, name = normal(24).reshape(4, 6), coded
    q = lb.quantize(x, name)
    assert q == lb.quantize(x, name)
    others = [
        lb.quantize(-x, name),
        lb.quantize(x, name, scale=0.125),
        lb.quantize(x.reshape(6, 4), name),
        lb.quantize(x, name, axis=0),
        lb.quantize(x, name, **fit(name, block_size=3, axis=0)),
        lb.quantize(x, next(other for other in lb.formats() if other != name)),
        "something else",
        None,
    ]
    for other in others:
        assert q != other
        assert not q == other  # noqa: SIM201  (the other operator)


def test_an_array_is_never_equal() -> None:
    q = lb.quantize(normal(4), "int4")
    for array in (np.asarray(q), normal(7), np.float32(1)):
        assert (q == array) is False
        assert (array == q) is False
        assert q != array
    for sum_ in (lambda: q + normal(4), lambda: normal(4) + q, lambda: np.abs(q)):
        with pytest.raises(TypeError, match=r"Quantized.*np\.asarray"):
            sum_()


def test_its_memory_is_read_only(coded: str) -> None:
    name, record = coded, lb.get_format(coded)
    out = np.zeros(3 * record.bits, np.uint8)
    ones = np.ones(1 if record.default_block else 24, np.float32)
    made = [lb.quantize(normal(24), name, out=out), lb.quantize(normal(24), name, scale=ones)]
    made += [lb.Quantized.from_bytes(q.to_bytes()) for q in made] + [lb.Quantized(*parts(q).values()) for q in made]
    if lb.get_format(name).uniform:
        made.append(lb.quantize(normal(24), name, scale="minmax"))
    for q in made:
        for field in (each for each in (q.packed, q.scale, q.offset, q.scale_codes) if each is not None):
            assert not field.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                field[...] = 0
        assert hash(q) == hash(copy.copy(q))
    assert out.flags.writeable
    assert np.shares_memory(made[0].packed, out)


# --- Made by hand -----------------------------------------------------------------------------------------------------


def parts(q: lb.Quantized) -> dict[str, Any]:
    names = ("packed", "scale", "offset", "tensor_scale", "format", "shape", "axis", "block_size", "key_id")
    return {name: getattr(q, name) for name in names}


def test_the_constructor_makes_what_quantize_makes(coded: str) -> None:
    for q in examples(coded):
        assert_equal(lb.Quantized(**parts(q)), q)
        if q.scale_codes is not None:
            assert_equal(lb.Quantized(**dict(parts(q), scale=q.scale_codes)), q)
        own = dict(parts(q), format=coded, shape=[np.int64(length) for length in q.shape])
        if q.axis is not None:
            own["axis"] = q.axis - q.ndim
        own["packed"] = np.repeat(q.packed, 2)[::2]
        assert_equal(lb.Quantized(**own), q)


def test_scales_of_any_layout() -> None:
    q = lb.quantize(normal(12).reshape(3, 4), "int4", scale=np.exp2(np.arange(12)).reshape(3, 4) / 8)
    shifted = np.zeros(49, np.uint8)[1:].view(np.float32).reshape(3, 4)
    shifted[...] = q.scale
    assert not shifted.flags.aligned
    for scale in (
        np.asfortranarray(q.scale),
        q.scale.astype(">f4"),
        q.scale.astype(np.float64),
        q.scale.tolist(),
        shifted,
    ):
        assert_equal(lb.Quantized(**dict(parts(q), scale=scale)), q)
    row = lb.Quantized(**dict(parts(q), scale=q.scale[0]))
    assert row.scale.shape == (1, 4)
    assert_equal(lb.Quantized.from_bytes(row.to_bytes()), row)
    table = lb.get_format("int4").decode_table
    assert_same(lb.dequantize(row), table[q.codes] * q.scale[0])
    affine = lb.Quantized(**dict(parts(q), offset=1.0))
    assert affine.offset is not None
    assert affine.offset.shape == (3, 4)


@pytest.mark.parametrize(
    ("field", "bad", "error"),
    [
        ("packed", np.zeros(5, np.uint8), lb.Error),
        ("packed", np.zeros(7, np.uint8), lb.Error),
        ("packed", np.zeros(6, np.int8), TypeError),
        ("packed", np.zeros((6, 1), np.uint8), TypeError),
        ("packed", b"123456", TypeError),
        ("scale", np.nan, lb.Error),
        ("scale", 0.0, lb.Error),
        ("scale", 1e300, lb.Error),
        ("scale", np.ones(3), lb.Error),
        ("scale", np.ones((1, 1, 1)), lb.Error),
        ("scale", "amax", TypeError),
        ("scale", None, TypeError),
        ("scale", 1j, TypeError),
        ("offset", np.inf, lb.Error),
        ("offset", np.ones(3), lb.Error),
        ("tensor_scale", 2, lb.Error),
        ("format", "int_4", lb.Error),
        ("format", "float(8,14,ieee)", lb.Error),
        ("format", 4, TypeError),
        ("shape", (-1, 4), lb.Error),
        ("shape", (3, True), TypeError),
        ("shape", 12, TypeError),
        ("shape", "34", TypeError),
        ("shape", (2**40, 2**40), lb.Error),
        ("axis", 256, lb.Error),
        ("axis", 2, lb.Error),
        ("axis", 0.0, TypeError),
        ("block_size", 0, lb.Error),
        ("block_size", -1, lb.Error),
        ("block_size", 2.0, TypeError),
        ("key_id", b"ab", lb.Error),
        ("key_id", "12345678", TypeError),
    ],
)
def test_fields_that_are_wrong(field: str, bad: Any, error: type[Exception]) -> None:
    good = parts(lb.quantize(normal(12).reshape(3, 4), "int4"))
    with pytest.raises(error, match=field):
        lb.Quantized(**dict(good, **{field: bad}))


def test_only_equal_steps_have_offsets_and_dither() -> None:
    good = parts(lb.quantize(normal(12), "radix4"))
    for field, bad in (("offset", 0.0), ("key_id", b"12345678")):
        with pytest.raises(lb.Error, match=field):
            lb.Quantized(**dict(good, **{field: bad}))
    odd = parts(lb.quantize(normal(3), "int4"))
    with pytest.raises(lb.Error, match="packed"):
        lb.Quantized(**dict(odd, packed=odd["packed"] | np.uint8(0xF0)))


def test_fields_of_block_formats_that_are_wrong() -> None:
    mx, nv = (parts(lb.quantize(normal(64), name)) for name in ("mxfp4", "nvfp4"))
    codes = np.zeros(2, np.uint8)
    for good, field, bad in [
        (mx, "scale", np.float32([1, 3])),
        (mx, "scale", codes + np.uint8(255)),
        (mx, "scale", codes[:1].repeat(3)),
        (mx, "tensor_scale", 1.0),
        (mx, "offset", np.zeros(2)),
        (mx, "block_size", 16),
        (nv, "scale", np.float32([1, 1, 1, 0.3])),
        (nv, "scale", np.zeros(4, np.uint8)),
        (nv, "scale", np.full(4, 0x7F, np.uint8)),
        (nv, "scale", np.full(4, 0x88, np.uint8)),
        (nv, "tensor_scale", None),
        (nv, "tensor_scale", 0.0),
        (nv, "tensor_scale", np.nan),
        (nv, "tensor_scale", 2.0**118),
        (nv, "block_size", 32),
    ]:
        with pytest.raises(lb.Error, match=field):
            lb.Quantized(**dict(good, **{field: bad}))
    with pytest.raises(TypeError, match="tensor_scale"):
        lb.Quantized(**dict(nv, tensor_scale="1"))


def test_bytes_take_no_second_copy_of_the_scales() -> None:
    q = lb.quantize(np.ones(1 << 18, np.float32), "int4", block_size=1)
    tracemalloc.start()
    try:
        data = q.to_bytes()
        assert tracemalloc.get_traced_memory()[1] < len(data) + (1 << 16)
    finally:
        tracemalloc.stop()


def test_bytes_while_the_memory_is_written() -> None:
    """A thread that quantizes into memory that others read is the caller's business; it must not be an odd error."""
    out, x = np.zeros(1 << 19, np.uint8), normal(1 << 20)
    q, failures = lb.quantize(x, "int4", out=out), []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            lb.quantize(x, "int4", out=out)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            try:
                q.to_bytes()
            except BaseException as error:  # a panic is none of Exception
                failures.append(error)
    finally:
        stop.set()
        writer.join()
    assert not failures


def test_repr_tells_what_it_is(coded: str) -> None:
    options = fit(coded, block_size=3)
    text = repr(lb.quantize(normal(24).reshape(4, 6), coded, **options))
    for part in (coded, "4, 6", f"block_size={options['block_size']}"):
        assert part in text
    assert len(text) < 300


def test_asarray(coded: str) -> None:
    q = lb.quantize(normal(24).reshape(4, 6), coded)
    assert_same(np.asarray(q), lb.dequantize(q))
    assert_same(np.asarray(q, np.float64), lb.dequantize(q, dtype=np.float64))
    assert_same(np.array(q), lb.dequantize(q))


# --- Damage -----------------------------------------------------------------------------------------------------------


def damaged(name: str) -> list[bytes]:
    x = normal(15).reshape(3, 5)
    options: list[dict[str, Any]] = [{}, {"block_size": 2}]
    if lb.get_format(name).uniform:
        options += [{"rounding": "dither", "key": KEY}, {"scale": 0.5, "offset": -1.0, "axis": 0}]
    return [lb.quantize(x, name, **fit(name, **each)).to_bytes() for each in options]


def test_truncation_at_every_byte(coded: str) -> None:
    for data in damaged(coded):
        for end in range(len(data)):
            with pytest.raises(lb.DecodeError):
                lb.Quantized.from_bytes(data[:end])


def test_every_bit_flip(coded: str) -> None:
    for data in damaged(coded):
        for bit in range(8 * len(data)):
            spoilt = bytearray(data)
            spoilt[bit // 8] ^= 1 << bit % 8
            with pytest.raises(lb.DecodeError):
                lb.Quantized.from_bytes(bytes(spoilt))


def test_more_than_the_message(coded: str) -> None:
    for data in damaged(coded):
        for extra in (b"\0", b"\0" * 16, data):
            with pytest.raises(lb.DecodeError):
                lb.Quantized.from_bytes(data + extra)
        with pytest.raises(lb.DecodeError):
            lb.Quantized.from_bytes(b"\0" + data)


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    with pytest.raises(lb.DecodeError):
        lb.Quantized.from_bytes(data)


@given(data=st.data())
@settings(max_examples=300)
def test_spoilt_messages(data: st.DataObject) -> None:
    """Several bytes replaced at once: an error or (CRC32C lets 1 in 2^32 pass) the same value, nothing else."""
    good = lb.quantize(normal(15), "int4", block_size=4).to_bytes()
    spoilt = bytearray(good)
    for _ in range(data.draw(st.integers(1, 6))):
        spoilt[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    if bytes(spoilt) == good:
        return
    with pytest.raises(lb.DecodeError):
        lb.Quantized.from_bytes(bytes(spoilt))


def test_what_is_no_bytes() -> None:
    for bad in ("text", 5, None, [1, 2]):
        with pytest.raises(TypeError):
            lb.Quantized.from_bytes(bad)


# --- Files ------------------------------------------------------------------------------------------------------------


def test_files_come_back(tmp_path: Path) -> None:
    path = tmp_path / "tensors.safetensors"
    tensors: dict[str, Any] = {f"{name}/{i}": q for name in CODED for i, q in enumerate(examples(name))}
    tensors |= {"plain": normal(10).reshape(2, 5), "counts": np.arange(4), "half": np.ones(3, np.float16)}
    for where in (path, str(path)):
        lb.save(where, tensors)
        loaded = lb.load(where)
        assert list(loaded) == list(tensors) or set(loaded) == set(tensors)
        for name, tensor in tensors.items():
            if isinstance(tensor, lb.Quantized):
                assert_equal(loaded[name], tensor)
            else:
                assert_same(loaded[name], tensor)
    assert [file.name for file in tmp_path.iterdir()] == ["tensors.safetensors"], "no temporary file stays"


def test_plain_arrays_of_any_layout_and_dtype(tmp_path: Path) -> None:
    x = normal(60).reshape(5, 12)
    arrays = {
        "fortran": np.asfortranarray(x),
        "strided": x[::-1, ::3],
        "broadcast": np.broadcast_to(x[0], (3, 12)),
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), np.int8),
        "flags": x > 0,
        "bfloat16": x.astype(BFLOAT16),
    }
    lb.save(tmp_path / "a.safetensors", arrays)
    for name, array in lb.load(tmp_path / "a.safetensors").items():
        assert_same(array, arrays[name])
    swapped = x.astype(x.dtype.newbyteorder())
    try:
        lb.save(tmp_path / "b.safetensors", {"swapped": swapped})
    except TypeError as error:
        assert "swapped" in str(error) or ">f4" in str(error)  # noqa: PT017  (both answers are right)
    else:
        assert np.array_equal(lb.load(tmp_path / "b.safetensors")["swapped"], swapped)
    for bad in (np.array([1j], np.complex256 if hasattr(np, "complex256") else object), np.array(["a"])):
        with pytest.raises(TypeError, match="'bad'"):
            lb.save(tmp_path / "c.safetensors", {"good": x, "bad": bad})


def test_files_are_safetensors(tmp_path: Path) -> None:
    q = lb.quantize(normal(12).reshape(3, 4), "int4", scale="minmax")
    lb.save(tmp_path / "a.safetensors", {"w": q})
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert set(file.keys()) == {"w", "w.scale", "w.offset"}
        assert_same(file.get_tensor("w"), q.packed)
        assert_same(file.get_tensor("w.scale"), q.scale)
        assert "lowbit" in file.metadata()


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    lb.save(path, {"w": normal(3)})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        lb.save(path, {"w": object()})
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        lb.load(tmp_path / "missing.safetensors")
    with pytest.raises(OSError, match="missing"):
        lb.save(tmp_path / "missing" / "a.safetensors", {"w": normal(3)})
    for bad in (5, None):
        with pytest.raises(TypeError, match="path"):
            lb.load(bad)
        with pytest.raises(TypeError, match="path"):
            lb.save(bad, {})
    path = tmp_path / "a.safetensors"
    q = lb.quantize(normal(12), "int4")
    lb.save(path, {"w": q})
    data = path.read_bytes()
    for end in range(0, len(data), 3):
        path.write_bytes(data[:end])
        with pytest.raises(lb.DecodeError):
            lb.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(lb.DecodeError):
        lb.load(path)


def test_names_that_collide(tmp_path: Path) -> None:
    q = lb.quantize(normal(12), "int4")
    for part in ("w.scale", "w.offset"):
        for arrays in ({"w": q, part: normal(3)}, {part: normal(3), "w": q}, {part: q, "w": q}):
            with pytest.raises(lb.Error, match=re.escape(part)):
                lb.save(tmp_path / "a.safetensors", arrays)
    for name in ("__metadata__", "a\ud800"):
        for value in (q, normal(3)):
            with pytest.raises(lb.Error, match=re.escape(repr(name))):
                lb.save(tmp_path / "a.safetensors", {name: value})
    for bad in ({1: normal(3)}, [normal(3)], None):
        with pytest.raises(TypeError):
            lb.save(tmp_path / "a.safetensors", bad)
    assert not list(tmp_path.iterdir())


def test_the_longest_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 240 + ".tensors")
    lb.save(path, {"w": normal(3)})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="rights and links are POSIX's")
def test_links_rights_and_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(target)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    old = os.umask(0o027)
    try:
        # Reading the mask would mean to set it, for every thread of the process.
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)
            lb.save(link, {"w": normal(3)})
    finally:
        os.umask(old)
    assert link.is_symlink()
    assert synced == [target.stat().st_ino], "on the disk before it has its name"
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("installed", [True, False])
def test_bfloat16_files_in_a_fresh_process(tmp_path: Path, installed: bool) -> None:
    """NumPy knows bfloat16 only after ml_dtypes was imported, which nobody need have done."""
    path = tmp_path / "a.safetensors"
    lb.save(path, {"half": normal(4).astype(BFLOAT16)})
    hide = "" if installed else "sys.modules['ml_dtypes'] = None; "
    script = f"import sys; {hide}import lowbit as lb; print(lb.load(sys.argv[1])['half'].dtype)"
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    if installed:
        assert run.stdout.strip() == "bfloat16", run.stderr
    else:
        assert re.search(r"lowbit.*Error: .*'half'.*pip install ml_dtypes", run.stderr), run.stderr
