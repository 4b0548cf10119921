"""What a quantized layer is made of: how each operand of its three products is quantized."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import lowbit as lb

Per = Literal["tensor", "channel", "token", "block", "tile"]
Compute = Literal["auto", "integer", "float"]
COMPUTE: tuple[str, ...] = ("auto", "integer", "float")

#: Scales that belong to training: the learned clip of PACT; the voted power of two; the maximum of earlier steps.
STATEFUL = ("pact", "gradscale", "hindsight")


def _one_of(value: object, argument: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise lb.Error(f"{argument}: {value!r} is none of {', '.join(choices)}")


@dataclass(frozen=True)
class Spec:
    """How one operand of a product is quantized.

    Parameters
    ----------
    format : str
        A number format: a name of ``lowbit.formats()``, or what a factory's format is called.
    scale : str or float, optional
        A scale rule of the format; a number (every number is divided by it); ``"pact"`` (inputs: a learned clip,
        arXiv:1805.06085); ``"gradscale"`` (gradients: the layer's power of two, Sun et al. 2020, figure 3a) or
        ``"hindsight"`` (gradients: the running maximum of earlier steps, arXiv:2112.10769). Default: the format's own
        rule.
    per : {"tensor", "channel", "token", "block", "tile"}
        What shares a scale: all numbers; an output channel (weights); a row, or of a convolution's input a sample; a
        run of `block_size` numbers along the axis that the product sums over; a square of a weight, whose side is the
        root of the format's block. Formats with a block of their own are always in blocks.
    block_size : int, optional
        For ``"block"``; default the format's own.
    rounding : {"nearest", "stochastic"}
    samples : int
        Gradients: the mean of so many independent stochastic roundings (the SMP of arXiv:2112.10769).
    gradient : {"pass", "clip"}
        The straight-through estimator of weights and inputs: the gradient passes everywhere, or is zero where a number
        was clipped (by the scale; where the format is ``sign``, beyond 1: BNN and XNOR-Net).
    momentum : float, optional
        For ``"hindsight"``: the eta of ``m[t] = (1 - eta) max|x[t-1]| + eta m[t-1]``.

    Raises
    ------
    lowbit.Error
        There is no such format, or an option does not fit it; the message names the argument.

    Examples
    --------
    >>> from lowbit.torch import Spec
    >>> Spec("int4_symmetric", scale="sawb", gradient="clip")
    Spec('int4_symmetric', scale='sawb', gradient='clip')
    """

    format: str
    scale: str | float | None = None
    per: Per = "tensor"
    block_size: int | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"
    samples: int = 1
    gradient: Literal["pass", "clip"] = "pass"
    momentum: float | None = None

    def __post_init__(self) -> None:
        fmt = lb.get_format(self.format)
        object.__setattr__(self, "format", fmt.name)
        if not fmt.coded:
            raise lb.Error(f"format: {fmt.name} has no codes, and what a layer keeps is stored; take one of 16 bits")
        _one_of(self.per, "per", ("tensor", "channel", "token", "block", "tile"))
        _one_of(self.rounding, "rounding", ("nearest", "stochastic"))
        _one_of(self.gradient, "gradient", ("pass", "clip"))
        if isinstance(self.scale, str) and self.scale not in (*STATEFUL, *fmt.scale_rules):
            known = ", ".join((*fmt.scale_rules, *STATEFUL))
            raise lb.Error(f"scale: {fmt.name} has no rule {self.scale!r}; it can use {known}, or a number")
        if self.scale is not None and not isinstance(self.scale, str):
            object.__setattr__(self, "scale", float(self.scale))
        if not isinstance(self.scale, str | None) and not 2.0**-126 <= self.scale <= 2.0**126:
            raise lb.Error(f"scale: {self.scale} is not a number from 2**-126 to 2**126")
        if self.samples < 1 or (self.samples > 1 and self.rounding == "nearest"):
            raise lb.Error(f"samples: {self.samples} of nearest rounding; more than one wants rounding='stochastic'")
        if (self.scale == "hindsight") != (self.momentum is not None):
            raise lb.Error("momentum: goes with scale='hindsight', which needs it (a number from 0 to 1)")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise lb.Error(f"momentum: {self.momentum} is not from 0 up to 1")
        if self.per == "block" and self.block_size is None and fmt.default_block is None:
            raise lb.Error(f"block_size: per='block' needs one, since {fmt.name} has no block of its own")
        if self.gradient == "clip" and self.per != "tensor" and fmt.name != "sign":
            raise lb.Error(f"gradient: 'clip' wants one clip for all numbers, not one {self.per} at a time")
        if self.block_size is not None:
            if isinstance(self.block_size, bool) or not isinstance(self.block_size, int):
                raise TypeError(f"block_size: expected an int, got {type(self.block_size).__name__}")
            if self.block_size < 1 or not (self.per == "block" or fmt.default_block) or fmt.scale_format is not None:
                raise lb.Error(
                    f"block_size: {self.block_size} goes with per='block', from 1, and not with formats whose block is "
                    "their own"
                )
        if self.per == "tile" and (
            fmt.default_block is None or math.isqrt(fmt.default_block) ** 2 != fmt.default_block
        ):
            raise lb.Error(f"per: 'tile' wants a format whose block is a square, such as 256; {fmt.name} has none")
        if self.in_blocks and self.gradient == "clip":
            raise lb.Error(f"gradient: 'clip' wants one clip for all numbers; {fmt.name} is scaled in blocks")
        if self.in_blocks and isinstance(self.scale, str) and self.scale in STATEFUL:
            raise lb.Error(f"scale: {self.scale!r} is one number; {fmt.name} is scaled in blocks")

    def __repr__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self)[1:] if getattr(self, f.name) != f.default)
        return f"Spec({', '.join([repr(self.format), *(f'{name}={value!r}' for name, value in given)])})"

    @cached_property
    def record(self) -> lb.Format:
        """The format itself."""
        return lb.get_format(self.format)

    @cached_property
    def in_blocks(self) -> bool:
        """Whether scales change along the axis that the product sums over."""
        return self.per in ("block", "tile") or self.record.default_block is not None

    @cached_property
    def clips(self) -> bool:
        """Whether the gradient of a number depends on the number: PACT, or ``gradient="clip"``."""
        return self.scale == "pact" or self.gradient == "clip"

    @cached_property
    def single(self) -> Spec:
        """The same of one sample."""
        return replace(self, samples=1)

    @property
    def random(self) -> bool:
        """Whether it draws random numbers."""
        return self.rounding == "stochastic"


@dataclass(frozen=True)
class Rotation:
    """A randomized Hadamard transform along the axis that a gradient product sums over, of both operands.

    Parameters
    ----------
    block : int
        How many numbers are mixed, a power of two; the axis is padded with zeros to a multiple of it.
    fixed : bool
        One vector of signs for ever (arXiv:2509.25149), or a new one at every call (arXiv:2502.20586).
    """

    block: int
    fixed: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, int):
            raise TypeError(f"block: expected an int, got {type(self.block).__name__}")
        if self.block < 2 or self.block & (self.block - 1):
            raise lb.Error(f"block: {self.block} is not a power of two from 2")


@dataclass(frozen=True)
class Products:
    """The three products of a layer: ``y = x W^T``, ``dL/dx = dL/dy W`` and ``dL/dW = dL/dy^T x``.

    Parameters
    ----------
    weight, input : Spec, optional
        The operands of the forward product. None: float32.
    grad_input, grad_weight : Spec, optional
        ``dL/dy`` as the operand of ``dL/dx`` and of ``dL/dW``.
    weight_again, input_again : Spec, optional
        How the weight is quantized for ``dL/dx`` and the input for ``dL/dW``. None: the codes of the forward product.
    rotate_input, rotate_weight : Rotation, optional
        Of both operands of ``dL/dx`` and of ``dL/dW``, which are then quantized again (float32 where no spec says how).
    compute : {"auto", "integer", "float"}
        What products of whole numbers are computed on: integers read off the packed codes, or float32. They give the
        same bits. ``"auto"``: integers where that was measured to be faster, by the machine and the sizes;
        ``"integer"``: wherever the formats allow. Products of other numbers (block scales) are float32 in any case.
    """

    weight: Spec | None = None
    input: Spec | None = None
    grad_input: Spec | None = None
    grad_weight: Spec | None = None
    weight_again: Spec | None = None
    input_again: Spec | None = None
    rotate_input: Rotation | None = None
    rotate_weight: Rotation | None = None
    compute: Compute = "auto"

    def __post_init__(self) -> None:
        _one_of(self.compute, "compute", COMPUTE)
        for name, spec in self.specs():
            gradient = name.startswith("grad_")
            if spec.scale in ("gradscale", "hindsight") and not gradient:
                raise lb.Error(f"{name}: scale={spec.scale!r} belongs to gradients")
            if spec.scale == "pact" and name != "input":
                raise lb.Error(f"{name}: scale='pact' belongs to the input of the forward product")
            if spec.scale == "pact" and self.input_again is not None:
                raise lb.Error("input_again: the gradient of PACT's clip wants the codes of the forward product")
            if spec.scale == "pact" and not lb.get_format(spec.format).uniform:
                raise lb.Error(f"{name}: scale='pact' wants a format of equal steps, such as uint4")
            if spec.samples > 1 and not gradient:
                raise lb.Error(f"{name}: samples={spec.samples} belongs to gradients")
            if spec.per in ("channel", "tile") and not name.startswith("weight"):
                raise lb.Error(f"{name}: per={spec.per!r} belongs to weights")
            if spec.per == "token" and name not in ("input", "input_again"):
                raise lb.Error(f"{name}: per='token' belongs to inputs")

    def specs(self) -> list[tuple[str, Spec]]:
        """Name the operands that are quantized."""
        every = ((f.name, getattr(self, f.name)) for f in fields(self))
        return [(name, value) for name, value in every if isinstance(value, Spec)]

    @cached_property
    def random(self) -> bool:
        """Whether a call draws random numbers."""
        turned = any(turn is not None and not turn.fixed for turn in (self.rotate_input, self.rotate_weight))
        return turned or any(spec.random for _, spec in self.specs())

    @cached_property
    def keeps_random(self) -> bool:
        """Whether what a call keeps for its gradients is random."""
        turn = self.rotate_weight is not None and not self.rotate_weight.fixed
        return self.input_again is not None and (turn or self.input_again.random)

    @cached_property
    def watched(self) -> bool:
        """Whether the largest gradient is remembered: GradScale and running maxima."""
        return any(spec.scale in ("gradscale", "hindsight") for _, spec in self.specs())

    @cached_property
    def looked_at(self) -> bool:
        """Whether a scale is given to gradients, which would hide what is not finite in them."""
        specs = (self.grad_input, self.grad_weight)
        return self.watched or any(isinstance(spec.scale, float) for spec in specs if spec is not None)

    @property
    def text(self) -> str:
        """One line that `parse` reads: what an operation takes as an argument."""
        return _text(self)

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Products:
        """Read what `text` wrote."""
        made: dict[str, Any] = json.loads(text)
        for name, part in made.items():
            if isinstance(part, dict):
                made[name] = (Rotation if name.startswith("rotate_") else Spec)(**part)
        return Products(**made)

    def with_input(self, spec: Spec | None) -> Products:
        """Give the same with another input."""
        return replace(self, input=spec)


@lru_cache(maxsize=1024)
def _text(products: Products) -> str:
    return json.dumps({name: part for name, part in asdict(products).items() if part is not None})


@dataclass(frozen=True)
class Recipe:
    """How the layers of a model are quantized.

    Parameters
    ----------
    name : str
    inner : Products
        For every layer but the first and the last.
    first, last : Products, optional
        For those, in the order of ``model.named_modules()`` (an embedding table is a layer). None: they stay as they
        are.
    last_share : float
        Which share of the layers, from the end, is "last"; at least one.
    pointwise : Products, optional
        For 1x1 convolutions; default as `inner`.
    depthwise : bool
        Whether convolutions with one input channel a group are converted.
    embedding : Spec, optional
        For embedding tables. None: they stay as they are.
    pact_init : float, optional
        Where the clips of PACT start. None: at the largest magnitude of the first batch.
    grad_scale : float
        Where the power of two of GradScale starts.
    source : str
    """

    name: str
    inner: Products
    first: Products | None = None
    last: Products | None = None
    last_share: float = 0.0
    pointwise: Products | None = None
    depthwise: bool = False
    embedding: Spec | None = None
    pact_init: float | None = None
    grad_scale: float = 1.0
    source: str = ""

    def __post_init__(self) -> None:
        if self.pact_init is not None and not (math.isfinite(self.pact_init) and self.pact_init > 0):
            raise lb.Error(f"pact_init: {self.pact_init} is not a positive number")
        mantissa, _ = math.frexp(self.grad_scale) if math.isfinite(self.grad_scale) else (0, 0)
        if mantissa != 0.5:
            raise lb.Error(f"grad_scale: {self.grad_scale} is not a power of two")
