"""Messages: arrays as bytes, and means of many senders' arrays from theirs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lowbit import _arguments, _core
from lowbit._codec import Codec

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit._formats import KeyLike
    from lowbit._keys import Key

Message = bytes | bytearray | memoryview
Arrays = Mapping[str, "ArrayLike"]

_MAX_ELEMENTS = 1 << 30


def encode(
    x: ArrayLike | Arrays,
    codec: Codec,
    *,
    key: KeyLike | None = None,
    sender: SupportsIndex = 0,
    min_elements: SupportsIndex = 1024,
) -> bytes:
    """Write an array, or several by name, as one message.

    Parameters
    ----------
    x : array_like or mapping of str to array_like
        Any shape and layout; float16, bfloat16, float32 or float64 (rounded to float32). A mapping's arrays travel
        under one header, in its order; integers, bools and floats of fewer than `min_elements` numbers travel exactly.
    codec : Codec
        How: ``lb.Eden(1)``, ``lb.QuicFl(2)``, ``lb.Sign()``, ...
    key : Key or int, optional
        This round's key, the same for all senders and for the receiver; use a key once
        (``lb.Key(seed).fold("round", r)``). Where the receiver needs none (`TernGrad`, `Qsgd`, stochastic `Packed`,
        ``OneBit("randomized")``) a ``numpy.random.Generator`` will do: two words are drawn from it. A codec that draws
        nothing ignores it.
    sender : int, optional
        Who sends, 0 to 2**64 - 1. Senders who share a key need different numbers: with the same their errors would
        be alike and would not average out.
    min_elements : int, optional
        For mappings: the least number of floats that is worth coding.

    Returns
    -------
    bytes
        ``docs/wire.md`` says what every byte means. They are a function of the arguments alone: the same on every CPU,
        for any number of threads.

    Raises
    ------
    TypeError
        `codec` is no codec, `x` has no float dtype (or, in a mapping, none that can travel), `key` is not a key.
    lowbit.Error
        A key is missing, a number does not fit the codec's interval, a name cannot be written.

    Notes
    -----
    An array (for codecs that rotate: a block of it) with a number that is not finite is decoded as NaN throughout, so
    that a receiver sees it. The header holds a hash of the key, never the key. Not cryptographic:
    ``docs/shared-key.md``.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x, key = np.random.default_rng(0).normal(size=100_000), lb.Key(1234).fold("round", 7)
    >>> message = lb.encode(x, lb.Eden(1), key=key)
    >>> round(8 * len(message) / x.size, 2)
    1.01
    >>> y = lb.decode(message, key=key)
    >>> round(float(np.sum((y - x) ** 2) / np.sum(x**2)), 2)
    0.57
    """
    check_codec(codec)
    least = _arguments.within(min_elements, "min_elements", 0, (1 << 63) - 1)
    words = _words(key, codec)
    who = _arguments.sender(sender)
    if isinstance(x, Mapping):
        arrays = [(name_of(name), *in_mapping(value, name, least)) for name, value in x.items()]
        return _core.message_encode(codec._wire(), arrays, True, words, who)
    return _core.message_encode(codec._wire(), [(None, _arguments.floats(x, "x"), False)], False, words, who)


def check_codec(codec: Codec) -> None:
    """Refuse what is no codec."""
    given: Any = codec
    if not isinstance(given, Codec):
        got = f"the class {given.__name__}; call it" if isinstance(given, type) else type(given).__name__
        raise TypeError(f"codec: expected a codec such as lowbit.Eden(1), got {got}")


def _words(key: KeyLike | None, codec: Codec) -> tuple[int, int] | None:
    """Find the words that a codec draws from, if it draws any."""
    if codec._noise == "nothing":
        return None
    if key is None:
        whose = "the same for sender and receiver" if codec._noise == "shared" else "any that was not used before"
        raise _core.Error(f"key: {codec} draws random words and needs a key, {whose}; make one by lowbit.Key(seed)")
    return _arguments.words(key, private=codec._noise == "private")


def name_of(name: object) -> str:
    """Check that a name is text that UTF-8 can hold."""
    if not isinstance(name, str):
        raise TypeError(f"x: names must be str, got {type(name).__name__}")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise _core.Error(f"x: the name {name!r} has a lone surrogate, which is no UTF-8; give another") from None
    if length > 0xFFFF:
        raise _core.Error(f"x: the name {name[:20]!r}... takes {length} bytes; give one of at most 65535")
    return name


def in_mapping(value: ArrayLike, name: str, least: int) -> tuple[NDArray[Any], bool]:
    """Give an array of a mapping, and whether it travels exactly."""
    array = _arguments.array(value, f"x[{name!r}]")
    coded = _arguments.is_float(array.dtype)
    if not coded and array.dtype.kind not in "iub":
        raise TypeError(f"x[{name!r}]: no message holds dtype {array.dtype}; give floats, integers or bools")
    exact = not coded or array.size < least
    # Exact arrays travel as the bytes they are, so they are put in order here.
    return (np.asarray(array, array.dtype.newbyteorder("="), order="C") if exact else array), exact


def decode(
    message: Message,
    *,
    key: Key | int | None = None,
    out: NDArray[np.float32] | Mapping[str, NDArray[Any]] | None = None,
    max_elements: SupportsIndex = _MAX_ELEMENTS,
) -> Any:
    """Read a message.

    Parameters
    ----------
    message : bytes
        What `encode` returned.
    key : Key or int, optional
        The key it was encoded with. Codecs whose receiver needs none ignore it.
    out : numpy.ndarray or mapping of str to numpy.ndarray, optional
        Where to write: float32 of the array's shape and any strides; for a mapping's message one array under each name,
        of its own dtype where it travelled exactly.
    max_elements : int, optional
        The most numbers that are accepted: a few bytes may claim to be many zeros.

    Returns
    -------
    numpy.ndarray or dict of str to numpy.ndarray
        float32, of the shape that was encoded (or `out`); of a mapping a dict in its order, in which arrays that
        travelled exactly have their own dtype.

    Raises
    ------
    TypeError
        `message` is not bytes, `key` is not a key (a Generator cannot repeat the sender's words), `out` is not as said.
    lowbit.DecodeError
        The bytes are damaged, truncated, of an unknown version, made with another key, or hold more than
        `max_elements`.
    lowbit.Error
        The message needs a key and there is none, or `out` has another shape or other names.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> weights = {"w": np.full((64, 64), 0.5, np.float32), "b": np.zeros(3), "step": np.array(7)}
    >>> message = lb.encode(weights, lb.Sign())
    >>> len(message)
    720
    >>> for name, array in lb.decode(message).items():
    ...     print(name, array.shape, array.dtype)
    w (64, 64) float32
    b (3,) float64
    step () int64
    """
    words = _arguments.words(key, private=False)
    return _given(_core.message_decode(data_of(message, "message"), words, _most(max_elements), _memory(out)), out)


def decode_mean(
    messages: Iterable[Message],
    *,
    key: Key | int | None = None,
    weights: Sequence[float] | NDArray[Any] | None = None,
    out: NDArray[np.float32] | Mapping[str, NDArray[Any]] | None = None,
    max_elements: SupportsIndex = _MAX_ELEMENTS,
) -> Any:
    """Read many senders' messages as the mean of their arrays.

    Parameters
    ----------
    messages : iterable of bytes
        At least one, from different senders, encoded by one codec with one key; the arrays have the same names and
        shapes. Their order does not matter: they are added in the order of senders.
    key : Key or int, optional
        The key they were encoded with.
    weights : sequence of float, optional
        One for each message, 0 or between 2**-126 and 2**126, some above zero; the result is divided by their sum.
        Default 1.
    out : numpy.ndarray or mapping of str to numpy.ndarray, optional
        Where to write, as in `decode`.
    max_elements : int, optional
        The most numbers that are accepted in one message.

    Returns
    -------
    numpy.ndarray or dict of str to numpy.ndarray
        As `decode` gives for one message; arrays that travelled exactly are averaged in float64, and are float32
        where they were float16, bfloat16 or float32, else float64.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.DecodeError
        A message is damaged, differs from the others in codec, parameters, names or shapes, was made with another key,
        or has a sender that another has.
    lowbit.Error
        There is no message, weights are not as said, or the key is missing.

    Notes
    -----
    Nothing but one accumulator is kept. Where all senders share a rotation (`QuicFl`, `Summable`) the sum is taken in
    rotated space and rotated back once.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x, key = np.linspace(-1, 1, 10_000), lb.Key(2024)
    >>> messages = [lb.encode(x, lb.QuicFl(1), key=key, sender=s) for s in range(100)]
    >>> mean = lb.decode_mean(messages, key=key)
    >>> round(float(np.sum((mean - x) ** 2) / np.sum(x**2)), 3)
    0.015
    """
    if isinstance(messages, (bytes, bytearray, memoryview)):
        raise TypeError("messages: expected several, got bytes; one message is read by decode")
    if not isinstance(messages, Iterable):
        raise TypeError(f"messages: expected an iterable of bytes, got {type(messages).__name__}")
    received = [data_of(message, "messages") for message in messages]
    if not received:
        raise _core.Error("messages: the mean of none is not defined; give at least one")
    words, shares = _arguments.words(key, private=False), None
    if weights is not None:
        if not isinstance(weights, Iterable):
            raise TypeError(f"weights: expected one number for each message, got {type(weights).__name__}")
        shares = [_weight(weight, "weights") for weight in weights]
        if len(shares) != len(received):
            raise _core.Error(f"weights: {len(shares)} for {len(received)} messages; give one for each")
        if not sum(shares) > 0:
            raise _core.Error("weights: all are zero; give at least one above")
    return _given(_core.message_mean(received, words, shares, _most(max_elements), _memory(out)), out)


class Mean:
    """The mean of messages that come one at a time.

    It keeps one accumulator, two after 4,096 messages, whatever their number: sums of lots of so many are added, so
    that a million messages lose nothing to float32. The mean is that of `decode_mean`, bit for bit if messages are
    added in the order of their senders; in another order it differs by the rounding of float32 sums.

    Parameters
    ----------
    key : Key or int, optional
        The key that the messages were encoded with.
    max_elements : int, optional
        The most numbers that are accepted in one message.

    Raises
    ------
    TypeError
        `key` is not a key.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x, key = np.linspace(-1, 1, 10_000), lb.Key(2024)
    >>> mean = lb.Mean(key)
    >>> for sender in range(100):
    ...     mean.add(lb.encode(x, lb.Eden(1), key=key, sender=sender))
    >>> mean.count
    100
    >>> round(float(np.sum((mean.result() - x) ** 2) / np.sum(x**2)), 4)
    0.0058
    """

    __slots__ = ("_mean",)

    def __init__(self, key: Key | int | None = None, *, max_elements: SupportsIndex = _MAX_ELEMENTS) -> None:
        self._mean = _core.MessageMean(_arguments.words(key, private=False), _most(max_elements))

    def add(self, message: Message, weight: float = 1.0) -> None:
        """Add one message; after an error the mean is what it was.

        Raises
        ------
        TypeError
            `message` is not bytes, or `weight` is not a number.
        lowbit.DecodeError
            As for `decode_mean`: among others, a sender that was added before.
        lowbit.Error
            `weight` is negative or not finite, or the key is missing.
        """
        self._mean.add(data_of(message, "message"), _weight(weight, "weight"))

    def result(self, out: NDArray[np.float32] | Mapping[str, NDArray[Any]] | None = None) -> Any:
        """Give the mean of what was added so far; more can be added afterwards.

        Raises
        ------
        TypeError
            `out` is not as `decode` takes it.
        lowbit.Error
            Nothing was added, or only with weight zero.
        """
        return _given(self._mean.result(), out)

    @property
    def count(self) -> int:
        """How many messages were added."""
        return int(self._mean.count)

    def __repr__(self) -> str:
        return f"<Mean of {self.count} messages>"


def data_of(message: Message, argument: str) -> bytes:
    if not isinstance(message, (bytes, bytearray, memoryview)):
        raise TypeError(f"{argument}: expected bytes, got {type(message).__name__}")
    return bytes(message)


def _most(max_elements: SupportsIndex) -> int:
    return _arguments.within(max_elements, "max_elements", 0, (1 << 63) - 1)


def _weight(weight: float, argument: str) -> float:
    number = _arguments.real(weight, argument)
    if not 0 <= number < math.inf:
        raise _core.Error(f"{argument}: {number} is not a weight; give a finite number that is not negative")
    return number


def _memory(out: object) -> NDArray[Any] | None:
    """Give `out` to the core if it might write there; it looks itself whether it can."""
    return out if type(out) is np.ndarray else None


def _given(
    decoded: tuple[bool, list[tuple[str, NDArray[Any]]]], out: NDArray[Any] | Mapping[str, NDArray[Any]] | None
) -> Any:
    """Return what was decoded, or write it to `out`, all or nothing."""
    mapping, arrays = decoded
    if out is None:
        return dict(arrays) if mapping else arrays[0][1]
    if not mapping:
        if out is arrays[0][1]:
            return out
        _fits(out, arrays[0][1], "out")[...] = arrays[0][1]
        return out
    if not isinstance(out, Mapping):
        raise TypeError(f"out: the message holds arrays by name; give a mapping, not {type(out).__name__}")
    if set(out) != {name for name, _ in arrays}:
        raise _core.Error(f"out: its names are not those of the message, {', '.join(name for name, _ in arrays)}")
    targets = [_fits(out[name], array, f"out[{name!r}]") for name, array in arrays]
    for (one, _), (two, _) in combinations(arrays, 2):
        if np.may_share_memory(out[one], out[two]):
            raise _core.Error(f"out: {one!r} and {two!r} overlap in memory; give separate arrays")
    for target, (_, array) in zip(targets, arrays, strict=True):
        target[...] = array
    return out


def _fits(out: object, array: NDArray[Any], argument: str) -> NDArray[Any]:
    """Check that an array can be written there as it is."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"{argument}: expected a numpy.ndarray, got {type(out).__name__}")
    if out.dtype != array.dtype:
        raise TypeError(f"{argument}: expected {array.dtype}, got {out.dtype}")
    if out.shape != array.shape:
        raise _core.Error(f"{argument}: the message's shape is {array.shape}, not {out.shape}")
    if not out.flags.writeable:
        raise _core.Error(f"{argument}: it is read-only; give one that can be written")
    return out
