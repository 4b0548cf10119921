"""Which numbers a format clips, asked of the core by formats made for the question.

Rounding to a table's nearest value sends ties down: the table of 0 and 2 b gives 0 up to b, and 2 b above it. So a
table whose midpoints are the ends of a format gives 0 exactly where `t`, rounded as always, lies between them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import lowbit as lb
from lowbit import _arguments, _core
from lowbit.torch import _bridge
from lowbit.torch._options import sharing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from lowbit.torch._options import Options

#: Ends between these have doubles that float32 holds, and that no scale makes subnormal.
_RANGE = 0.5, 2.0**100
#: What scales of a table may be; E8M0 goes on a little.
_SCALES = 2.0**-126, 2.0**126


@lru_cache(maxsize=256)
def _ends(format: str) -> tuple[lb.Format, ...]:
    """Make formats that give 0 (or 1, of a sign) to what lies within the ends; none where there is no such format."""
    record = _core.get_format(format)
    if not record.coded:
        return ()
    low, high = np.float32(record.values[0]), np.float32(record.values[-1])
    if not all(_RANGE[0] <= abs(end) <= _RANGE[1] for end in (low, high) if end):
        return ()
    # What is below the lowest value is at most the number before it.
    before, after = 2 * float(np.nextafter(low, np.float32(-np.inf))), 2 * float(high)
    if low < 0 < high:
        return (lb.table_format([before, 0, after]),)
    return (lb.get_format("sign"), lb.table_format([0, after])) if low == 0 else ()


def inside(x: Tensor, options: Options) -> Tensor | None:
    """Tell whether each number of a CPU tensor is not clipped, as `_plain.inside` does; None where this cannot tell."""
    ends, scaling = _ends(options.format), _scaling(x, options)
    if not ends or scaling is None:
        return None
    scale, axis, size = scaling
    # In half precision a small number would be zero.
    numbers = _bridge.array(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
    outside = torch.zeros_like(x, dtype=torch.bool)
    for end in ends:
        y = _bridge.tensor(_core.fake_quantize(numbers, end, scale, None, None, axis, size, "nearest", None, None))
        outside |= y < 0 if end.name == "sign" else y.abs() > 0
    return ~outside


def _scaling(x: Tensor, options: Options) -> tuple[NDArray[Any], int | None, int | None] | None:
    """Find the scales, as the core takes them: the given, or a rule's; None where there are offsets or NaN."""
    fmt, nearest = _core.get_format(options.format), options._replace(rounding="nearest", key=None)
    _, scale, offset, tensor, *shared, _, _ = nearest.core(x.ndim)
    rule = fmt.default_scale if scale is None else scale
    if isinstance(rule, str):
        if rule == "one":
            return np.ones((1,) * x.ndim, np.float32), None, None
        # Of "twn" another number is stored than the one that divides.
        if rule == "twn":
            return None
        try:
            _, scale, offset, tensor = _core.quantize(_bridge.array(x), *nearest.core(x.ndim), out=None)
        except _core.Error:
            return None
        scale = scale if fmt.scale_format is None else _core.scale_values(fmt, scale)
    if offset is not None or not isinstance(scale, np.ndarray):
        return None
    axis, size = sharing(options.format, x.ndim, *shared)
    if tensor is not None:
        with np.errstate(all="ignore"):
            scale = _arguments.float32(scale, "scale") * np.float32(tensor)
    if scale.size and not (scale.min() >= _SCALES[0] and scale.max() <= _SCALES[1]):
        return None
    return scale, axis, size
