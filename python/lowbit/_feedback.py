"""Error feedback: what a biased message leaves out is added to the next one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lowbit import _arguments, _core
from lowbit._codecs import Float32, OneBit
from lowbit._messages import check_codec, decode, encode, in_mapping, name_of
from lowbit._packed import Packed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit._codec import Codec
    from lowbit._formats import KeyLike
    from lowbit._messages import Arrays

    Memory = dict[str | None, NDArray[np.float32]]


class ErrorFeedback:
    """One sender's memory of what its messages left out.

    Each round it adds what earlier messages left out to the array, encodes the sum, and remembers what this message in
    turn leaves out, so that nothing is lost: all that was decoded, plus the memory, is all that was given. With it,
    codecs that are biased (`Sign`, ``Eden(..., "min_error")``) train as far as exact gradients do, a little later.

    A round is `encode`, then `commit` if the message was used, or `discard` if it was not.

    Notes
    -----
    S. P. Karimireddy et al., "Error feedback fixes SignSGD and other gradient compression schemes", ICML 2019,
    arXiv:1901.09847; first used by F. Seide et al., Interspeech 2014. It needs codecs whose error is less than the
    vector (a contraction). Unbiased ones are refused: their errors average out over rounds and senders without it, and
    nothing keeps the error of one message smaller than the vector.

    The memory is float32, as large as the array, and kept by NumPy's sums. It belongs to one sender and one array: it
    is kept, not sent.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> feedback, total = lb.ErrorFeedback(), np.zeros(3, np.float32)
    >>> gradient = np.array([1.0, 0.5, -0.1], np.float32)
    >>> for step in range(100):
    ...     total += lb.decode(feedback.encode(gradient, lb.Sign()))
    ...     feedback.commit()
    >>> (total / 100).round(1)                    # a sign alone says 0.53, 0.53, -0.53
    array([ 1. ,  0.5, -0.1], dtype=float32)
    >>> bool(np.allclose(total + feedback.error, 100 * gradient))
    True
    """

    __slots__ = ("_error", "_open", "_pending")

    def __init__(self) -> None:
        # By name; the name of a single array is None.
        self._error: Memory | None = None
        self._pending: Memory | None = None
        self._open = False

    def encode(
        self,
        x: ArrayLike | Arrays,
        codec: Codec,
        *,
        key: KeyLike | None = None,
        sender: SupportsIndex = 0,
        min_elements: SupportsIndex = 1024,
    ) -> bytes:
        """Encode an array, or several by name, with what earlier messages left out added.

        Parameters
        ----------
        x, codec, key, sender, min_elements
            As for `lowbit.encode`. The names and shapes of the first round are those of all rounds. Arrays of a mapping
            that travel exactly leave nothing out.

        Returns
        -------
        bytes
            For `lowbit.decode` and `lowbit.decode_mean`, like any other message.

        Raises
        ------
        TypeError
            As for `lowbit.encode`.
        lowbit.Error
            The codec is unbiased, its error is not smaller than the vector (`Summable` and ``"norm"`` of few bits), it
            has no place for any number (`OneBit`, unsigned formats); `x` has other names or shapes than before; the
            last round was neither committed nor discarded; or as for `lowbit.encode`.

        Notes
        -----
        Where a number is not finite, or becomes so by adding, the message says so as any message does, and `commit`
        leaves the memory as it was.
        """
        self._close("encode")
        check_codec(codec)
        if codec.unbiased != "no" and not isinstance(codec, Float32):
            raise _core.Error(
                f"codec: {codec} is unbiased: its errors average out without ErrorFeedback, which needs errors smaller "
                'than the vector; give a biased one, such as Eden(bits, "min_error") or Sign()'
            )
        if isinstance(codec, OneBit) or (isinstance(codec, Packed) and not _core.get_format(codec.format).signed):
            raise _core.Error(
                f"codec: {codec} has no place for what earlier messages left out, which has either sign and any size; "
                'give another, such as Eden(bits, "min_error") or Sign()'
            )
        placed = self._placed(x, _arguments.within(min_elements, "min_elements", 0, (1 << 63) - 1))
        sums = {name: self._plus_error(name, array) for name, (array, exact) in placed.items() if not exact}
        for name, total in sums.items():
            if total.size and codec.expected_error(total.size) >= 1:
                raise _core.Error(
                    f"codec: the error of {codec} is larger than the vector for {total.size} numbers"
                    f"{'' if name is None else f' ({name})'}, so that the memory would grow for ever; give more bits, "
                    'or the scale "min_error"'
                )
        whole = {name: sums.get(name, array) for name, (array, _) in placed.items()}
        message = encode(_plain(whole), codec, key=key, sender=sender, min_elements=min_elements)
        # A generator's noise was the sender's alone, so the receiver needs no key.
        known = None if isinstance(key, np.random.Generator) else key
        received = decode(message, key=known, max_elements=(1 << 63) - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            for name, total in sums.items():
                np.subtract(total, received if name is None else received[name], out=total)
        self._pending = sums if all(np.isfinite(left).all() for left in sums.values()) else self._error
        self._open = True
        return message

    def commit(self) -> None:
        """Remember what the last message left out.

        Raises
        ------
        lowbit.Error
            There was no message since the last commit.
        """
        if not self._open:
            raise _core.Error("commit: there is no message to commit; encode one first")
        self._error = self._pending
        self.discard()

    def discard(self) -> None:
        """Forget the last message, as if it had not been encoded; without one, do nothing."""
        self._pending, self._open = None, False

    def rescale(self, factor: float) -> None:
        """Multiply the memory, when what is sent is scaled by another factor from now on (a loss scale, a rate).

        Parameters
        ----------
        factor : float
            Finite, not negative.

        Raises
        ------
        TypeError
            `factor` is no number.
        lowbit.Error
            `factor` is out of range or takes the memory beyond float32, or a round is open.
        """
        number = _arguments.real(factor, "factor")
        if not 0 <= number < math.inf:
            raise _core.Error(f"factor: {number} is out of range; give a finite number that is not negative")
        self._close("rescale")
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = {name: (left * number).astype(np.float32) for name, left in (self._error or {}).items()}
        if not all(np.isfinite(left).all() for left in scaled.values()):
            raise _core.Error(f"factor: {number} takes the memory beyond float32")
        self._error = scaled or self._error

    @property
    def error(self) -> Any:
        """What has been left out so far: read-only float32 of the array's shape, a dict by name, or None at first."""
        if self._error is None:
            return None
        views = {name: left.view() for name, left in self._error.items()}
        for view in views.values():
            view.flags.writeable = False
        return _plain(views)

    def state_dict(self) -> dict[str, Any]:
        """Give all that is needed to go on later: a dict with a copy of `error`.

        Raises
        ------
        lowbit.Error
            A round is open.
        """
        self._close("state_dict")
        if self._error is None:
            return {"error": None}
        return {"error": _plain({name: left.copy() for name, left in self._error.items()})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Parameters
        ----------
        state : mapping
            Its ``"error"`` is None, a float32 array, or a mapping of str to float32 arrays; it is copied.

        Raises
        ------
        TypeError
            `state` is not such a mapping.
        lowbit.Error
            A number is not finite, or a round is open.
        """
        self._close("load_state_dict")
        if not isinstance(state, Mapping) or set(state) != {"error"}:
            raise TypeError("state: expected what state_dict gave, a mapping with the one key 'error'")
        error = state["error"]
        if error is None:
            self._error = None
            return
        arrays = (
            {name_of(name): array for name, array in error.items()} if isinstance(error, Mapping) else {None: error}
        )
        memory: Memory = {}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                raise TypeError(f"state: {_called(name, 'error')} is no float32 array")
            if not np.isfinite(array).all():
                raise _core.Error(f"state: {_called(name, 'error')} holds a number that is not finite")
            memory[name] = np.array(array, order="C")
        self._error = memory

    def _close(self, what: str) -> None:
        if self._open:
            raise _core.Error(f"{what}: the last message was neither used nor not; call commit or discard first")

    def _placed(self, x: ArrayLike | Arrays, least: int) -> dict[str | None, tuple[NDArray[Any], bool]]:
        """Give every array and whether it travels exactly; those that do not must fit the memory."""
        placed: dict[str | None, tuple[NDArray[Any], bool]]
        if isinstance(x, Mapping):
            placed = {name_of(name): in_mapping(value, name, least) for name, value in x.items()}
        else:
            placed = {None: (_arguments.floats(x, "x"), False)}
        if self._error is not None:
            now = {name: array.shape for name, (array, exact) in placed.items() if not exact}
            before = {name: left.shape for name, left in self._error.items()}
            for name in [*before, *now]:
                if now.get(name) != before.get(name):
                    had, has = (each.get(name, "nothing coded") for each in (before, now))
                    reason = f"the memory has {had}, this is {has}; another array needs an ErrorFeedback of its own"
                    raise _core.Error(f"{_called(name, 'x')}: {reason}")
        return placed

    def _plus_error(self, name: str | None, array: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.array(array, np.float32, order="C")
            if self._error is not None:
                total += self._error[name]
        return total


def _called(name: str | None, argument: str) -> str:
    return argument if name is None else f"{argument}[{name!r}]"


def _plain(arrays: dict[str | None, Any]) -> Any:
    """Give the single array, or the arrays by name."""
    return arrays.get(None, arrays)
