"""Bytes that released versions wrote: the same input gives them for ever, and they decode for ever."""

from __future__ import annotations

import json

import numpy as np

import lowbit as lb
from lowbit import reference
from support import GOLDEN, assert_same, runs

KEY = lb.Key(1234).fold("golden")


def array(text: str, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), "<f4").astype(np.float32).reshape(shape)


def test_codes_and_scales(name: str) -> None:
    golden = json.loads((GOLDEN / f"quantize-v1-{name}.json").read_text(encoding="utf-8"))
    x = array(golden["x"], golden["shape"])
    assert golden["cases"]
    for run in runs(x.size):
        for case in golden["cases"]:
            options = case["options"] | ({} if case["options"]["rounding"] == "nearest" else {"key": KEY})
            q = lb.quantize(x, name, **options)
            assert q.packed.tobytes().hex() == case["packed"], f"{options}, {run}"
            assert_same(q.scale.ravel(), array(case["scale"]), f"{options}, {run}")
            assert (q.offset is None) == (case["offset"] is None)
            if q.offset is not None:
                assert_same(q.offset.ravel(), array(case["offset"]), f"{options}, {run}")


def test_the_reference_has_not_moved(name: str) -> None:
    golden = json.loads((GOLDEN / f"quantize-v1-{name}.json").read_text(encoding="utf-8"))
    x = array(golden["x"], golden["shape"])
    for case in golden["cases"]:
        options = case["options"] | ({} if case["options"]["rounding"] == "nearest" else {"key": KEY})
        q = reference.quantize(x, name, **options)
        assert reference.pack(q.codes, lb.get_format(name).bits).tobytes().hex() == case["packed"]
        assert_same(q.scale.ravel(), array(case["scale"]))


def test_containers_decode_and_are_written_again(name: str) -> None:
    golden = json.loads((GOLDEN / f"quantize-v1-{name}.json").read_text(encoding="utf-8"))
    lines = (GOLDEN / f"container-v1-{name}.hex").read_text(encoding="utf-8").split()
    assert lines
    for line, case in zip(lines, golden["cases"], strict=False):
        q = lb.Quantized.from_bytes(bytes.fromhex(line))
        assert q.format.name == name
        assert q.shape == tuple(golden["shape"])
        assert q.packed.tobytes().hex() == case["packed"]
        assert_same(q.scale.ravel(), array(case["scale"]))
        assert q.to_bytes().hex() == line
