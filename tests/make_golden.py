"""Write the golden files that are missing; never change one that is there (``make golden``).

Codes, scales and words come from ``lowbit.reference``; the bytes of containers and messages from the library itself.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import lowbit as lb
from lowbit import reference
from support import CODED, FORMATS, slug

GOLDEN = Path(__file__).parent / "golden"
KEY = lb.Key(1234).fold("golden")


def numbers() -> np.ndarray:
    """Ninety-one fixed float32 numbers of many magnitudes, exact in every step."""
    words = reference.random_bits((1, 2), 91)
    mantissa = (words >> np.uint32(8)).astype(np.float32) - np.float32(2.0**23)
    return np.ldexp(mantissa, -21 - (words % 7).astype(np.int32)).astype(np.float32).reshape(7, 13)


def options(name: str) -> list[dict[str, Any]]:
    """Every kind of scale, group and rounding, as JSON can hold them."""
    grid = reference.get_format(name)
    scalings: list[dict[str, Any]] = [{"scale": rule} for rule in grid.scale_rules] + [{"scale": 0.25}]
    roundings: list[dict[str, Any]] = [{"rounding": "nearest"}, {"rounding": "stochastic"}]
    if grid.uniform:
        scalings.append({"scale": 0.25, "offset": -1.5})
        roundings.append({"rounding": "dither"})
    groups: list[dict[str, Any]] = [{}, {"axis": 0}, {"block_size": 5}, {"block_size": 3, "axis": 0}]
    if grid.scale_format and grid.default_block:
        groups = groups[:2]
    return [scaling | group | rounding for scaling in scalings for group in groups for rounding in roundings]


def with_key(case: dict[str, Any]) -> dict[str, Any]:
    """Add the key that the golden files use, where one is needed."""
    return case if case["rounding"] == "nearest" else case | {"key": KEY}


def stream() -> str:
    """Keys from seeds and labels, and words from several places."""
    cases: list[dict[str, Any]] = []
    for seed, fold in [
        (0, []),
        (1234, []),
        (2**64 - 1, []),
        (1234, ["step", 7]),
        (1234, [0]),
        (b"lowbit", ["é", 2**63]),
    ]:
        key = lb.Key(seed).fold(*fold)
        places = [(0, 20), (1, 3), (2**32 - 2, 5), (2**63 + 1, 4)]
        cases.append(
            {
                "seed": seed.hex() if isinstance(seed, bytes) else seed,
                "fold": fold,
                "words": [f"{word:016x}" for word in key.words],
                "elements": {
                    str(at): [f"{w:08x}" for w in reference.random_bits(key.words, n, at)] for at, n in places
                },
            }
        )
    return json.dumps({"version": 1, "cases": cases}, indent=1) + "\n"


def quantize(name: str) -> str:
    """Packed codes, scales and offsets of `numbers`, as hexadecimal little-endian bytes; without codes the result."""
    x, cases, grid = numbers(), [], reference.get_format(name)
    for case in options(name):
        if not grid.coded:
            y = reference.fake_quantize(x, name, **with_key(case))
            cases.append(json.dumps({"options": case, "rounded": y.astype("<f4").tobytes().hex()}))
            continue
        q = reference.quantize(x, name, **with_key(case))
        offset = None if q.offset is None else q.offset.astype("<f4").tobytes().hex()
        record = {"options": case, "packed": reference.pack(q.codes, grid.bits).tobytes().hex()}
        record |= {"scale": q.scale.astype("<f4").tobytes().hex(), "offset": offset}
        if q.tensor_scale is not None:
            record["tensor_scale"] = float(q.tensor_scale).hex()
        cases.append(json.dumps(record))
    head = json.dumps({"format": name, "shape": x.shape, "x": x.astype("<f4").tobytes().hex()})[:-1]
    return head + ', "cases": [\n' + ",\n".join(cases) + "\n]}\n"


def container(name: str) -> str:
    """``Quantized.to_bytes`` of `numbers`, a line for each of `options`."""
    x = numbers()
    return "".join(lb.quantize(x, name, **with_key(case)).to_bytes().hex() + "\n" for case in options(name)[:16])


#: One small message per codec.
CODECS: dict[str, Any] = {
    "float32": lb.Float32(),
    "packed": lb.Packed("int4", block_size=5, rounding="stochastic"),
    "dither": lb.Dither(3),
    "dither-given": lb.Dither(2, -4.0, 4.0),
    "onebit": lb.OneBit("optimal_unbiased", -4.0, 4.0),
    "sign": lb.Sign(),
    "terngrad": lb.TernGrad(),
    "qsgd": lb.Qsgd(5),
    "eden": lb.Eden(2.5),
    "eden-below-one": lb.Eden(0.3, "min_error"),
    "eden-entropy-coded": lb.Eden(1.5, "norm", entropy_coded=True),
    "drive": lb.Drive(),
    "driveplus": lb.DrivePlus(),
    "quicfl": lb.QuicFl(2),
    "summable": lb.Summable(3),
    "packed-nvfp4": lb.Packed("nvfp4"),
    "packed-float": lb.Packed("float(4,3,bias=11)", rounding="stochastic"),
}
SENDER = 11


def arrays() -> dict[str, np.ndarray]:
    """A mapping: coded, exact, empty, and one whose floats are not finite."""
    x = numbers()
    bad = x[0].copy()
    bad[3] = np.inf
    small = {"step": np.array(7), "half": x[1, :3].astype(np.float16), "none": np.zeros((2, 0), np.float32)}
    return {"weight": x, **small, "größe": bad}


def message(x: Any, codec: Any) -> str:
    """A message, and on a line of its own for each array what it decodes to; the reference must agree."""
    options = {"key": KEY, "sender": SENDER, "min_elements": 10}
    fields = {field.name: getattr(codec, field.name) for field in dataclasses.fields(codec)}
    data = lb.encode(x, codec, **options)
    if data != reference.encode_message(x, getattr(reference, type(codec).__name__)(**fields), **options):
        raise ValueError(f"{codec}: the reference writes other bytes")
    lines, decoded, again = [data.hex()], lb.decode(data, key=KEY), reference.decode_message(data, KEY)
    pairs = [(decoded[name], again[name]) for name in decoded] if isinstance(decoded, dict) else [(decoded, again)]
    for got, want in pairs:
        if got.tobytes() != want.tobytes():
            raise ValueError(f"{codec}: the reference reads other numbers")
        lines.append(got.astype(got.dtype.newbyteorder("<")).tobytes().hex())
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write what is missing."""
    wanted: dict[str, Callable[[], str]] = {"stream-v1.json": stream}
    wanted |= {f"quantize-v1-{slug(name)}.json": partial(quantize, name) for name in FORMATS}
    wanted |= {f"container-v1-{slug(name)}.hex": partial(container, name) for name in CODED}
    wanted |= {f"message-v1-{name}.hex": partial(message, numbers(), codec) for name, codec in CODECS.items()}
    wanted["message-v1-mapping.hex"] = partial(message, arrays(), lb.Drive())
    GOLDEN.mkdir(exist_ok=True)
    for file, make in wanted.items():
        path = GOLDEN / file
        if not path.exists():
            path.write_text(make(), encoding="utf-8")
            sys.stdout.write(f"wrote {path.name}\n")


if __name__ == "__main__":
    main()
