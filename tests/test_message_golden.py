"""Messages that released versions wrote: the same input gives them for ever, and they decode for ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowbit as lb
from lowbit import reference
from make_golden import CODECS, KEY, SENDER, arrays, numbers
from support import GOLDEN, assert_same, runs

MESSAGES: dict[str, tuple[Any, Any]] = {name: (numbers(), codec) for name, codec in CODECS.items()}
MESSAGES["mapping"] = (arrays(), lb.Drive())


def test_every_codec_has_one() -> None:
    files = {path.stem.removeprefix("message-v1-") for path in GOLDEN.glob("message-v1-*.hex")}
    assert files == set(MESSAGES)
    elementwise = {lb.Float32, lb.Packed, lb.Dither, lb.OneBit, lb.Sign, lb.TernGrad, lb.Qsgd}
    rotating = {lb.Eden, lb.DrivePlus, lb.QuicFl, lb.Summable}
    assert {type(codec) for _, codec in MESSAGES.values()} == elementwise | rotating


@pytest.mark.parametrize("file", MESSAGES)
def test_it_is_written_again_and_read(file: str) -> None:
    x, codec = MESSAGES[file]
    line, *decoded = (GOLDEN / f"message-v1-{file}.hex").read_text(encoding="utf-8").split("\n")[:-1]
    message = bytes.fromhex(line)
    for run in runs(91):
        assert lb.encode(x, codec, key=KEY, sender=SENDER, min_elements=10) == message, run
        for read in (lb.decode(message, key=KEY), reference.decode_message(message, KEY)):
            whole = read if isinstance(read, dict) else {"": read}
            assert len(whole) == len(decoded)
            for (name, array), text in zip(whole.items(), decoded, strict=True):
                want = np.frombuffer(bytes.fromhex(text), array.dtype.newbyteorder("<"))
                assert_same(array.ravel(), want.astype(array.dtype), f"{file}, {name!r}, {run}")
        assert lb.describe(message).codec == codec
        assert lb.describe(message).sender == SENDER
