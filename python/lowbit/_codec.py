"""What all codecs have: how large and how wrong a message is, and how a codec is named on the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import FrozenInstanceError
from typing import ClassVar, Literal, Self, SupportsIndex

from lowbit import _arguments

Unbiased = Literal["exact", "asymptotic", "no"]
#: What a codec draws from its key: nothing, words that only the sender reads, or words that the receiver needs too.
Noise = Literal["nothing", "private", "shared"]

#: The bytes of a message of one dimension but for codec parameters and payload: fixed part, length, lengths and dtype,
#: checksum (docs/wire.md).
_FRAME = 64 + 8 + 2 + 1 + 4
_ALIGN, _CHECKSUM = 16, 4


class Codec(ABC):
    """How the numbers of a message are written: what all codecs have.

    The codecs are `Float32`, `Packed`, `Dither`, `OneBit`, `Sign`, `TernGrad`, `Qsgd`, `Eden` (and `Drive`),
    `DrivePlus`, `QuicFl` and `Summable`. Each is a small frozen record: made once, compared, hashed, sent along.

    Examples
    --------
    >>> import lowbit as lb
    >>> for codec in (lb.Eden(1), lb.QuicFl(2), lb.Sign()):
    ...     print(codec.unbiased, round(codec.expected_error(10**6), 4), round(codec.bits_per_element(10**6), 4))
    asymptotic 0.5708 1.0015
    exact 0.2135 2.0959
    no 0.3634 1.0007
    """

    __slots__ = ()
    _id: ClassVar[int]

    @property
    @abstractmethod
    def unbiased(self) -> Unbiased:
        """Whether what is decoded is right on average, so that the mean of many senders' messages becomes exact.

        ``"exact"``: for every vector. ``"asymptotic"``: but for a bias that vanishes as vectors grow. ``"no"``.
        """

    def expected_error(self, d: SupportsIndex) -> float:
        """Tell the squared error of one message, relative to the vector's squared norm (vNMSE).

        Parameters
        ----------
        d : int
            How many numbers the vector has, at least 1.

        Returns
        -------
        float
            For codecs that rotate: of any vector whose energy is spread over all of its length. `Dither` and
            `OneBit`: of numbers uniform on the interval (without one: on one around zero). `Packed`, `Sign`,
            `TernGrad`, `Qsgd`: of independent numbers from N(0, 1). Closed forms and quadrature for normal numbers,
            which large vectors come close to.

        Raises
        ------
        TypeError
            `d` is no int.
        lowbit.Error
            `d` is less than 1.
        """
        return self._error(_length(d))

    def bits_per_element(self, d: SupportsIndex) -> float:
        """Tell the bits per number of a whole message: header, scales, padding and checksums counted.

        Parameters
        ----------
        d : int
            How many numbers the vector has, at least 1.

        Returns
        -------
        float
            ``8 * len(message) / d`` for a one-dimensional array; expected where the length depends on the numbers
            (`QuicFl`, and `Eden` entropy-coded).

        Raises
        ------
        TypeError
            `d` is no int.
        lowbit.Error
            `d` is less than 1.
        """
        n = _length(d)
        header = _aligned(_FRAME + len(self._parameters()))
        payload = self._payload(n) + _CHECKSUM
        # Between multiples of 16 every length is alike likely, in even numbers of bytes.
        framed = _aligned(payload) if isinstance(payload, int) else payload + 7
        return 8 * (header + framed) / n

    @property
    @abstractmethod
    def _noise(self) -> Noise:
        """What is drawn from the key."""

    @abstractmethod
    def _error(self, d: int) -> float:
        """`expected_error` of a checked length."""

    @abstractmethod
    def _payload(self, d: int) -> float:
        """Bytes of a coded vector: an int where it is exact."""

    def _parameters(self) -> bytes:
        """Give the bytes that say which codec of its kind it is."""
        return b""

    @classmethod
    def _read(cls, parameters: bytes) -> Self:  # noqa: ARG003 - most have some
        """Make the codec of these parameters, which the core has checked."""
        return cls()

    def _wire(self) -> tuple[int, bytes]:
        """Give the codec as the core takes it."""
        return self._id, self._parameters()

    def __init_subclass__(cls) -> None:
        # Called a second time for the class with slots that dataclass makes; what that raises for a name that is no
        # field is baffling in Python 3.11.
        if "__dataclass_fields__" in cls.__dict__:
            cls.__setattr__ = cls.__delattr__ = _frozen  # type: ignore[method-assign, assignment]

    def _put(self, **fields: object) -> None:
        """Set checked fields of a frozen record."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def _frozen(codec: Codec, name: str, _: object = None) -> None:  # noqa: ARG001 - what Python calls it with
    raise FrozenInstanceError(f"{name}: a codec cannot be changed; make another")


def _length(d: SupportsIndex) -> int:
    return _arguments.within(d, "d", 1, (1 << 62) - 1)


def _aligned(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN


def bytes_of(bits: int) -> int:
    """Give the bytes that so many packed bits take."""
    return -(-bits // 8)
