"""What an optimizer rounds: a format for each of its numbers, and how numbers are brought to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

import lowbit as lb
from lowbit import _arguments, _core
from lowbit.torch import _bridge, _codes, _keys, _library, _operands
from lowbit.torch._options import Options, on_core
from lowbit.torch._spec import STATEFUL, Spec

if TYPE_CHECKING:
    from torch import Tensor

#: Codes of a state between steps, in place of its tensor; the other entries are tensors.
_MARK = "slot"


@dataclass(frozen=True)
class Slot:
    """A format, its scales, and a rounding."""

    format: str
    scale: str | float | None
    axis: int | None
    block_size: int | None
    rounding: str

    @cached_property
    def spec(self) -> Spec:
        """The same for codes."""
        per: Any = "block" if self.block_size is not None else "channel" if self.axis == 0 else "tensor"
        rounding: Any = self.rounding
        return Spec(self.format, self.scale, per, self.block_size, rounding)

    @cached_property
    def is_bfloat16(self) -> bool:
        """Whether its numbers are torch.bfloat16's."""
        return self.format == "bfloat16" and self.scale in (None, "one")

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return self.rounding == "stochastic"

    def round_(self, x: Tensor, key: lb.Key) -> None:
        """Round dense float32 numbers of any layout, in place."""
        rows = x.reshape(1) if x.dim() == 0 else x
        words = key.words if self.random else None
        if on_core(rows):
            y = _bridge.array(rows)
            scale: Any = self._scale_array()
            _core.fake_quantize(y, self.format, scale, None, None, self.axis, self.block_size, self.rounding, words, y)
        else:
            rows.copy_(_library.rounded(rows, False, self._options(words))[0])

    def pack(self, x: Tensor, key: lb.Key) -> dict[str, Any]:
        """Round float32 numbers and keep their codes: the numbers are those of `round_`.

        Of a group with a number that is not finite all numbers become NaN.
        """
        rows = x.reshape(1) if x.dim() == 0 else x
        kept = _operands.encode(rows, self.spec, axis=-1, key=key if self.random else None)
        return {_MARK: self.text, "packed": kept.packed, "scale": kept.scale, "rest": kept.rest}

    def unpack(self, codes: Mapping[str, Any], shape: torch.Size) -> Tensor:
        """Compute the numbers that `pack` kept."""
        parts = codes["packed"], self.format, tuple(shape) or (1,), codes["scale"], codes["rest"]
        groups = _operands.groups(self.spec, -1)
        return _codes.dequantize(*parts, axis=groups["axis"], block_size=groups["block_size"]).reshape(shape)

    @cached_property
    def text(self) -> str:
        """What codes are marked with: all that is needed to read them."""
        return f"{self.format} axis={self.axis} block_size={self.block_size}"

    def _scale_array(self) -> Any:
        return _bridge.array(torch.tensor(self.scale)) if isinstance(self.scale, float) else self.scale

    def _options(self, words: tuple[int, int] | None) -> Options:
        rule = self.scale if isinstance(self.scale, str) else None
        given = torch.tensor(self.scale) if isinstance(self.scale, float) else None
        key = None if words is None else _keys.pack(words)
        return Options(self.format, rule, given, None, None, self.axis, self.block_size, self.rounding, key)


def is_packed(entry: object) -> bool:
    """Whether an entry of a state is codes."""
    return isinstance(entry, dict) and _MARK in entry


def slot(given: object, argument: str, rounding: str) -> Slot | None:
    """Read what the user gave for one slot.

    Raises
    ------
    TypeError
        It is neither a format nor a Spec.
    lowbit.Error
        There is no such format, or the Spec says what only layers can do.
    """
    if given is None:
        return None
    if isinstance(given, Spec):
        return _of_spec(given, argument)
    if not isinstance(given, (str, lb.Format)):
        want = "a format's name, a lowbit.Format or a lowbit.torch.Spec"
        raise TypeError(f"{argument}: expected {want}, got {type(given).__name__}")
    try:
        fmt = lb.get_format(given)
    except lb.Error as error:
        raise lb.Error(f"{argument}: {error}") from None
    return Slot(fmt.name, None, None, None, rounding)


def _of_spec(spec: Spec, argument: str) -> Slot:
    if spec.scale in STATEFUL:
        raise lb.Error(f"{argument}: scale={spec.scale!r} belongs to layers; give a rule of the format, or a number")
    if spec.per in ("token", "tile"):
        raise lb.Error(f"{argument}: per={spec.per!r} belongs to layers; give 'tensor', 'channel' or 'block'")
    if spec.samples != 1 or spec.gradient != "pass":
        raise lb.Error(f"{argument}: samples and gradient belong to layers; leave them out")
    groups = _operands.groups(spec, -1)
    return Slot(spec.format, spec.scale, groups["axis"], groups["block_size"], spec.rounding)


def check(slot: Slot, argument: str, *, zero: bool, negative: bool) -> None:
    """Refuse a format that lacks numbers which a slot must hold.

    Raises
    ------
    lowbit.Error
        It has no zero, or no negative numbers.
    """
    fmt = lb.get_format(slot.format)
    if slot.scale == "minmax":
        return
    if zero and fmt.coded and not (fmt.values == 0).any():
        raise lb.Error(f"{argument}: {_arguments.shown(fmt.name)} has no zero, which this slot must hold")
    if negative and not fmt.signed:
        advice = "; a state that is never negative can be given it by name: momentum={'exp_avg_sq': ...}"
        raise lb.Error(
            f"{argument}: {_arguments.shown(fmt.name)} has no negative numbers, which this slot must hold"
            + (advice if argument == "momentum" else "")
        )


class Momentum:
    """The slots of an optimizer's states, by name.

    Parameters
    ----------
    given : format, Spec or mapping of str to either, optional
        What the user gave.
    rounding : str
        Of plain formats.
    """

    def __init__(self, given: object, rounding: str) -> None:
        self._named: dict[str, Slot] = {}
        self._every: Slot | None = None
        if not isinstance(given, Mapping):
            self._every = slot(given, "momentum", rounding)
            if self._every is not None:
                check(self._every, "momentum", zero=True, negative=True)
            return
        for name, value in given.items():
            if not isinstance(name, str):
                raise TypeError(f"momentum: names of states are str, got {type(name).__name__}")
            found = slot(value, f"momentum[{name!r}]", rounding)
            if found is not None:
                check(found, f"momentum[{name!r}]", zero=True, negative=False)
                self._named[name] = found

    def of(self, name: str) -> Slot | None:
        """Give the slot of the state of this name."""
        # Counts of steps have the shape of a parameter that is one number.
        return self._named.get(name, None if name == "step" else self._every)

    def __bool__(self) -> bool:
        return bool(self._named) or self._every is not None

    def __repr__(self) -> str:
        named = {name: slot.format for name, slot in self._named.items()}
        return f"momentum={named or (self._every and self._every.format)!r}, " if self else ""

    def slots(self) -> list[Slot]:
        """List those there are."""
        return [*self._named.values(), *([] if self._every is None else [self._every])]

    def check_names(self, found: set[str]) -> None:
        """Refuse names that no state has, once there are states.

        Raises
        ------
        lowbit.Error
            A name was given that is not among those found.
        """
        unknown = sorted(set(self._named) - found)
        if unknown:
            there = ", ".join(sorted(found)) or "none"
            raise lb.Error(f"momentum: no state is called {unknown[0]!r}; the optimizer's are: {there}")
