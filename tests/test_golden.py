"""Bytes that released versions wrote: the same input gives them for ever, and they decode for ever."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import lowbit as lb
from lowbit import reference
from support import CODED, FORMATS, GOLDEN, assert_same, runs, slug

KEY = lb.Key(1234).fold("golden")


def array(text: str, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), "<f4").astype(np.float32).reshape(shape)


def golden_of(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"quantize-v1-{slug(name)}.json").read_text(encoding="utf-8"))


def test_codes_and_scales(coded: str) -> None:
    name, golden = coded, golden_of(coded)
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
            tensor = None if q.tensor_scale is None else float(q.tensor_scale).hex()
            assert tensor == case.get("tensor_scale"), f"{options}, {run}"


@pytest.mark.parametrize("uncoded", [name for name in FORMATS if name not in CODED])
def test_numbers_without_codes(uncoded: str) -> None:
    golden = golden_of(uncoded)
    x = array(golden["x"], golden["shape"])
    for case in golden["cases"]:
        options = case["options"] | ({} if case["options"]["rounding"] == "nearest" else {"key": KEY})
        want = array(case["rounded"], golden["shape"])
        assert_same(reference.fake_quantize(x, uncoded, **options), want)
        for run in runs(x.size):
            assert_same(lb.fake_quantize(x, uncoded, **options), want, f"{options}, {run}")


def test_the_reference_has_not_moved(coded: str) -> None:
    name, golden = coded, golden_of(coded)
    x = array(golden["x"], golden["shape"])
    for case in golden["cases"]:
        options = case["options"] | ({} if case["options"]["rounding"] == "nearest" else {"key": KEY})
        q = reference.quantize(x, name, **options)
        assert reference.pack(q.codes, lb.get_format(name).bits).tobytes().hex() == case["packed"]
        assert_same(q.scale.ravel(), array(case["scale"]))


def test_containers_decode_and_are_written_again(coded: str) -> None:
    name, golden = coded, golden_of(coded)
    lines = (GOLDEN / f"container-v1-{slug(name)}.hex").read_text(encoding="utf-8").split()
    assert lines
    for line, case in zip(lines, golden["cases"], strict=False):
        q = lb.Quantized.from_bytes(bytes.fromhex(line))
        assert q.format.name == name
        assert q.shape == tuple(golden["shape"])
        assert q.packed.tobytes().hex() == case["packed"]
        assert_same(q.scale.ravel(), array(case["scale"]))
        assert q.to_bytes().hex() == line
