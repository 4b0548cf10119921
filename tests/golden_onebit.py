"""Writes golden/onebit-v1.json if it is not there: the bits and estimates that every later version must give.

Run ``python tests/golden_onebit.py``. A golden file is never rewritten: other bytes are another version.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import lowbit as lb

PATH = Path(__file__).parent / "golden" / "onebit-v1.json"
SEED, COUNT, SENDER = 20_211, 100, 3
ONLY = {"deterministic": [None], "randomized": [None], "clipped_dither": [None]}
SCHEMES = ["deterministic", "randomized", "dither", "clipped_dither", "optimal_biased", "optimal_unbiased"]


def numbers() -> np.ndarray:
    """Return the inputs: the top 24 bits of COUNT words of the stream of SEED, on [0, 1)."""
    return ((lb.random_bits(SEED, COUNT) >> np.uint32(8)) * 2.0**-24).astype(np.float32)


def message(scheme: str, shared_bits: int | None) -> dict[str, object]:
    """Return the packed bits, and the estimates as float32 bit patterns, in hexadecimal."""
    options = {"scheme": scheme, "shared_bits": shared_bits, "key": SEED, "sender": SENDER}
    bits = lb.onebit.encode(numbers(), **options)
    estimates = lb.onebit.decode(bits, COUNT, **options)
    read = estimates.astype("<f4").tobytes().hex()
    return {"scheme": scheme, "shared_bits": shared_bits, "bits": bits.tobytes().hex(), "estimates": read}


def add_missing() -> None:
    """Write the file unless there is one."""
    if PATH.exists():
        return
    served = [(scheme, bits) for scheme in SCHEMES for bits in ONLY.get(scheme, [None, 0, 1, 2, 3, 4, 8])]
    content = {"version": 1, "seed": SEED, "count": COUNT, "sender": SENDER, "messages": [message(*s) for s in served]}
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    add_missing()
