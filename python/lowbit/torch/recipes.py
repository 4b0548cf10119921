"""Recipes: how published systems quantize the layers of a model.

Each is a function that gives a `Recipe`; what is left in float32 here is left in 16 or 32 bits there. Products are
accumulated in float32 (the papers': FP16 or FP32).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import lowbit as lb
from lowbit.torch._spec import Products, Recipe, Rotation, Spec

__all__ = [
    "binary",
    "float32",
    "int4_forward",
    "int4_rescaled",
    "lp",
    "luq",
    "mxfp4",
    "nvfp4",
    "sun2020",
    "ternary",
]

_SUN = "Sun et al., Ultra-Low Precision 4-bit Training, NeurIPS 2020"
_WEIGHT = Spec("int4_symmetric", scale="sawb", gradient="clip")
_PACT = Spec("uint4", scale="pact")
#: HFP8's formats, which the rows of table 1 with FP8 are presumed to use.
_FP8, _FP8_GRAD = Spec("fp8_e4m3", scale="amax"), Spec("fp8_e5m2", scale="amax")


def float32() -> Recipe:
    """Quantize nothing: what others are compared with."""
    return Recipe("float32", Products(), Products(), Products(), depthwise=True, source="IEEE 754")


def int4_rescaled() -> Recipe:
    """Rescale weights and inputs to INT4 every round, from least to greatest; gradients in radix-4 FP4, two phases.

    The way of the article that lowbit's demo follows: every layer, inputs by sample (or row).
    """
    inner = Products(
        weight=Spec("int4", scale="minmax"),
        input=Spec("int4", scale="minmax", per="token"),
        grad_input=Spec("radix4", scale="gradscale"),
        grad_weight=Spec("radix4_odd", scale="gradscale"),
    )
    return Recipe("int4_rescaled", inner, inner, inner, depthwise=True, source=_SUN)


def int4_forward(*, pact_init: float | None = None) -> Recipe:
    """INT4 weights (SAWB) and inputs (PACT); gradients stay float32."""
    inner = Products(weight=_WEIGHT, input=_PACT)
    return Recipe("int4_forward", inner, pact_init=pact_init, source="arXiv:1805.06085, arXiv:1807.06964")


def sun2020(
    *,
    phases: Literal[1, 2] = 2,
    scaling: Literal["gradscale", "amax"] | float = "gradscale",
    base: Literal[2, 4, 8, "int4"] = 4,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    pointwise: Literal["fp8"] | None = None,
    grad_weight: Literal["fp8"] | None = None,
    pact_init: float | None = None,
    grad_scale: float = 1.0,
) -> Recipe:
    """4-bit training (Sun et al. 2020): INT4 forward, radix-4 FP4 gradients in two phases under GradScale.

    The first and the last layer and depthwise convolutions stay float32 (FP16 in the paper).

    Parameters
    ----------
    phases : {2, 1}
        Two: dL/dx uses the powers of four, dL/dW those half as large. One: both use the former.
    scaling : {"gradscale", "amax"} or float
        The layer's voted power of two; the largest gradient of each call; or what gradients are multiplied by.
    base : {4, 2, 8, "int4"}
        The radix of gradients; ``"int4"``: equal steps. Only 4 has two phases.
    rounding : {"nearest", "stochastic"}
        Of gradients.
    pointwise : {"fp8"}, optional
        1x1 convolutions in FP8 (table 1's last column).
    grad_weight : {"fp8"}, optional
        dL/dW with FP8 gradients (table 1's fourth column).
    pact_init : float, optional
        Where the clips start; default at the largest input of the first batch.
    grad_scale : float
        Where GradScale starts, a power of two. It doubles or halves with each step.

    Raises
    ------
    lowbit.Error
        Two phases of a base other than 4, or an option that there is not.
    """
    formats = {2: "luq4", 4: "radix4", 8: "radix(8,3)", "int4": "int4_symmetric"}
    if base not in formats:
        raise lb.Error(f"base: {base!r} is none of 2, 4, 8, 'int4'")
    if phases not in (1, 2):
        raise lb.Error(f"phases: {phases!r} is neither 1 nor 2")
    if phases == 2 and base != 4 and grad_weight is None:
        raise lb.Error(f"phases: only base 4 has two; say sun2020(phases=1, base={base!r})")
    for name, option in (("pointwise", pointwise), ("grad_weight", grad_weight)):
        if option not in (None, "fp8"):
            raise lb.Error(f"{name}: {option!r} is neither None nor 'fp8'")
    if isinstance(scaling, str) and scaling not in ("gradscale", "amax"):
        raise lb.Error(f"scaling: {scaling!r} is none of 'gradscale', 'amax', or a number")
    if not isinstance(scaling, str) and (not 2.0**-126 <= scaling <= 2.0**126 or math.frexp(scaling)[0] != 0.5):
        raise lb.Error(f"scaling: {scaling!r} is not a power of two from 2**-126 to 2**126")
    scale = scaling if isinstance(scaling, str) else 1.0 / scaling
    even = Spec(formats[base], scale=scale, rounding=rounding)
    odd = replace(even, format="radix4_odd") if phases == 2 and base == 4 else even
    inner = Products(_WEIGHT, _PACT, even, _FP8_GRAD if grad_weight else odd)
    eight = Products(_FP8, _FP8, _FP8_GRAD, _FP8_GRAD) if pointwise else None
    return Recipe("sun2020", inner, pointwise=eight, pact_init=pact_init, grad_scale=grad_scale, source=_SUN)


def luq(*, samples: int = 1, hindsight: float | None = None, as_published: bool = False) -> Recipe:
    """LUQ (Chmiel et al., ICLR 2023): INT4 forward (SAWB), unbiased radix-2 FP4 gradients.

    Parameters
    ----------
    samples : int
        The mean of so many independent roundings of each gradient (SMP).
    hindsight : float, optional
        Scale by a running maximum of earlier steps with this eta, in place of the present maximum.
    as_published : bool
        The authors' code scales by max / 128: a zero and eight magnitudes, which are 17 numbers and not 4 bits.
    """
    if hindsight is not None and not 0 <= hindsight < 1:
        raise lb.Error(f"hindsight: {hindsight!r} is not a number from 0 up to 1")
    signal = Spec("int4_symmetric", scale="sawb", gradient="clip")
    powers = [sign * 2.0**i for i in range(8) for sign in (-1, 1)]
    grid = lb.table_format(sorted([0.0, *powers])).name if as_published else "luq4"
    scale = "amax" if hindsight is None else "hindsight"
    gradient = Spec(grid, scale=scale, rounding="stochastic", samples=samples, momentum=hindsight)
    return Recipe("luq", Products(signal, signal, gradient, gradient), source="arXiv:2112.10769")


def mxfp4(*, forward: bool = False) -> Recipe:
    """MXFP4 gradient products (Tseng et al. 2025): both operands stochastic, after a random Hadamard transform of 64.

    Scales are rounded up, so that nothing is clipped and stochastic rounding has no bias; the authors reach the same by
    multiplying by 3/4 first.

    Parameters
    ----------
    forward : bool
        Quantize the forward product too (nearest).
    """
    signal = Spec("mxfp4", scale="rceil") if forward else None
    noisy = Spec("mxfp4", scale="rceil", rounding="stochastic")
    turn = Rotation(64)
    inner = Products(signal, signal, noisy, noisy, noisy, noisy, turn, turn)
    return Recipe("mxfp4", inner, inner, None, source="arXiv:2502.20586")


def nvfp4(*, rotation: bool = True) -> Recipe:
    """NVFP4 pretraining (NVIDIA 2025): all three products in E2M1 under E4M3 scales.

    Weights in squares of 16 x 16; gradients stochastic; the operands of dL/dW after a Hadamard transform of 16 with one
    vector of signs; the last 15 % of the layers stay float32.

    Parameters
    ----------
    rotation : bool
        Whether to transform.
    """
    weight = Spec(lb.block_format("fp4_e2m1", scale_format="e4m3", block_size=256).name, per="tile")
    signal, noisy = Spec("nvfp4"), Spec("nvfp4", rounding="stochastic")
    turn = Rotation(16, fixed=True) if rotation else None
    inner = Products(weight, signal, noisy, noisy, input_again=signal, rotate_weight=turn)
    return Recipe("nvfp4", inner, inner, None, last_share=0.15, source="arXiv:2509.25149")


def ternary() -> Recipe:
    """BitNet b1.58: weights -1, 0, 1 times their mean magnitude, inputs in 8 bits by row; gradients stay float32.

    The authors put a norm before each layer; that is the model's to have.
    """
    inner = Products(Spec("ternary", scale="mean"), Spec("int8", scale="amax", per="token"))
    return Recipe("ternary", inner, source="arXiv:2402.17764")


def binary(*, inputs: bool = True) -> Recipe:
    """XNOR-Net: weights of one bit times the mean magnitude of their output channel; gradients stay float32.

    Parameters
    ----------
    inputs : bool
        Inputs of one bit too, scaled by sample or row; else they stay float32 (binary-weight networks).
    """
    weight = Spec("sign", scale="mean", per="channel", gradient="clip")
    signal = Spec("sign", scale="mean", per="token", gradient="clip") if inputs else None
    return Recipe("binary", Products(weight, signal), source="arXiv:1603.05279")


def lp(format: str | lb.Format) -> Recipe:
    """Every operand of every layer in one format by its own rule; gradients stochastic."""
    name = lb.get_format(format).name
    signal, noisy = Spec(name), Spec(name, rounding="stochastic")
    inner = Products(signal, signal, noisy, noisy)
    return Recipe(f"lp({name})", inner, inner, inner, depthwise=True, source=lb.get_format(name).source)
