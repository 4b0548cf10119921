"""What travels in Flower's records: arrays, messages, and the orders that say how to read and write them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

import lowbit as lb
from lowbit._describe import _CODECS

Arrays = dict[str, NDArray[Any]]

#: The ConfigRecord in which server and mod talk; the app never sees it.
RECORD = "lowbit"
#: How the bytes of an Array are written: `Array.numpy` refuses it, so that no message is taken for numbers.
STYPE = "lowbit.message"
PROTOCOL = 1


def wrap(message: bytes) -> Array:
    """Give a message as Flower carries it: large ones are cut into chunks, as arrays are."""
    return Array("uint8", (len(message),), STYPE, message)


def unwrap(array: Array) -> bytes:
    """Give the message in an Array.

    Raises
    ------
    lowbit.Error
        It holds something else.
    """
    if array.stype != STYPE:
        raise lb.Error(f"arrays: expected a message ({STYPE!r}), got an array that was serialized as {array.stype!r}")
    return array.data


def only_arrays(content: RecordDict) -> tuple[str, ArrayRecord]:
    """Find the one ArrayRecord of a message, and its name.

    Raises
    ------
    lowbit.Error
        There is none, or there are several.
    """
    records = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
    if len(records) != 1:
        names = ", ".join(map(repr, records)) or "none"
        raise lb.Error(f"content: expected one ArrayRecord, the model; got {names}")
    return next(iter(records.items()))


def read_arrays(record: ArrayRecord, argument: str = "arrays") -> Arrays:
    """Give the arrays of a record as NumPy's.

    Raises
    ------
    lowbit.Error
        One is of a dtype that no message holds.
    """
    arrays = {name: array.numpy() for name, array in record.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
            which = f"{argument}[{name!r}]"
            raise lb.Error(f"{which}: no message holds dtype {array.dtype}; give floats, integers or bools")
    return arrays


def write_arrays(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Give arrays as Flower's record."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def check_fit(arrays: Mapping[str, NDArray[Any]], model: Arrays, argument: str) -> None:
    """Check that names and shapes are those of the model.

    Raises
    ------
    lowbit.Error
        They are not.
    """
    for name in [*model, *arrays]:
        if name not in arrays or name not in model:
            reason = "it is missing" if name not in arrays else "the model has no such array"
        elif arrays[name].shape != model[name].shape:
            reason = f"its shape is {arrays[name].shape}, not {model[name].shape}"
        else:
            continue
        raise lb.Error(f"{argument}[{name!r}]: {reason}; names and shapes stay those of the first round")


def fitted(arrays: Arrays, model: Arrays, argument: str) -> Arrays:
    """Give `arrays` in the order and in the dtypes of `model`; raise as `check_fit` does."""
    check_fit(arrays, model, argument)
    return {name: _cast(arrays[name], array.dtype) for name, array in model.items()}


def difference(arrays: Arrays, model: Arrays) -> Arrays:
    """Give what changed, in at least float32; of integers and bools, which no codec rounds, give what they are now."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            name: np.asarray(np.subtract(array, model[name], dtype=np.result_type(array, np.float32)))
            if array.dtype.kind == "f"
            else array
            for name, array in arrays.items()
        }


def moved(model: Arrays, change: Arrays) -> Arrays:
    """Give the model with a difference added, in its own dtypes."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            name: _cast(np.asarray(array + change[name]) if array.dtype.kind == "f" else change[name], array.dtype)
            for name, array in model.items()
        }


def _cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    rounded = array
    if array.dtype.kind == "f" and dtype.kind != "f":
        # The mean of integers is a float; beyond the integers it would become one that depends on the machine.
        rounded = np.rint(array, dtype=np.float64)
        if dtype.kind != "b":
            least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
            top = float(most) if int(float(most)) == most else np.nextafter(float(most), 0.0)
            rounded = rounded.clip(float(least), top)
    with np.errstate(over="ignore", invalid="ignore"):
        return rounded.astype(dtype, copy=False)


def is_finite(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Tell whether no number is infinite or NaN."""
    return all(bool(np.isfinite(array).all()) for array in arrays.values())


@dataclass(frozen=True)
class Uplink:
    """How a client's answer is to be encoded; `used` is the last round whose message was added, None: no feedback."""

    round: int
    codec: lb.Codec
    key: lb.Key
    min_elements: int
    used: int | None


@dataclass(frozen=True)
class Downlink:
    """Which model comes: number `model`, as messages since number `since`, or (0) whole."""

    model: int
    since: int
    key: lb.Key


@dataclass(frozen=True)
class Orders:
    """What the server tells the mod of one client."""

    session: bytes
    uplink: Uplink | None
    downlink: Downlink | None

    def record(self) -> ConfigRecord:
        """Write the orders; `read` is its inverse."""
        record = ConfigRecord({"protocol": PROTOCOL, "session": self.session})
        if (up := self.uplink) is not None:
            number, parameters = up.codec._wire()
            record["round"], record["codec"], record["key"] = up.round, bytes([number]) + parameters, _pack(up.key)
            record["min-elements"] = up.min_elements
            if up.used is not None:
                record["used"] = up.used
        if (down := self.downlink) is not None:
            record["model"], record["since"], record["model-key"] = down.model, down.since, _pack(down.key)
        return record

    @classmethod
    def read(cls, record: ConfigRecord) -> Orders:
        """Read what `record` wrote.

        Raises
        ------
        lowbit.Error
            It was written by another version, or is damaged.
        """
        if record.get("protocol") != PROTOCOL:
            got = record.get("protocol")
            raise lb.Error(
                f"protocol: the server's is {got!r}, this client's {PROTOCOL}; install one version of lowbit"
            )
        try:
            uplink = downlink = None
            if "codec" in record:
                data: Any = record["codec"]
                codec = _CODECS[data[0]]._read(data[1:])
                values = Orders._integer(record, "round"), Orders._integer(record, "min-elements")
                used = Orders._integer(record, "used") if "used" in record else None
                uplink = Uplink(values[0], codec, _unpack(record["key"]), values[1], used)
            if "model" in record:
                numbers = Orders._integer(record, "model"), Orders._integer(record, "since")
                downlink = Downlink(*numbers, _unpack(record["model-key"]))
            session = record["session"]
            if not isinstance(session, bytes):
                raise TypeError("session")
        except (LookupError, TypeError, ValueError, struct.error) as error:
            raise lb.Error(f"orders: the server's are damaged ({error!r})") from None
        return cls(session, uplink, downlink)

    @staticmethod
    def _integer(record: ConfigRecord, name: str) -> int:
        value = record[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise TypeError(name)
        return value


def _pack(key: lb.Key) -> bytes:
    return b"".join(word.to_bytes(8, "little") for word in key.words)


def _unpack(data: Any) -> lb.Key:
    if not isinstance(data, bytes) or len(data) != 16:
        raise TypeError("key")
    return lb.Key.from_words(int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little"))
