"""The arguments of operations in the form that operators take, and who computes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lowbit import _arguments, _core
from lowbit.torch import _bridge, _keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    CoreArguments = tuple[
        str,
        str | NDArray[Any] | None,
        NDArray[Any] | None,
        float | None,
        int | None,
        int | None,
        str,
        tuple[int, int] | None,
    ]


def _wanted() -> bool:
    """Whether the environment asks for torch operations on CPUs."""
    return _arguments.choice(os.environ.get("LOWBIT_TORCH", "core"), "LOWBIT_TORCH", ("core", "plain")) == "plain"


_state = {"plain": _wanted()}


def use_plain(on: bool) -> None:
    """Compute on CPUs as on other devices: in torch operations in place of the Rust kernels.

    The results are the same bits, later. The environment variable ``LOWBIT_TORCH=plain`` does the same from the start.

    Parameters
    ----------
    on : bool
        Whether to.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import ops
    >>> fast = ops.fake_quantize(torch.linspace(-1, 1, 9), "nf4")
    >>> ops.use_plain(True)
    >>> torch.equal(ops.fake_quantize(torch.linspace(-1, 1, 9), "nf4"), fast)
    True
    >>> ops.use_plain(False)
    """
    _state["plain"] = bool(on)


def check_floats(x: Tensor) -> None:
    """Refuse what cannot be rounded."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.dtype not in _bridge.FLOATS:
        use = "torch.float32 (x.float()), float16, bfloat16 or float64"
        raise TypeError(f"x: dtype {x.dtype} is not a float that rounds; use {use}")
    if x.layout is not torch.strided:
        raise TypeError(f"x: layout {x.layout} has no strides; use a dense tensor (x.to_dense())")


class Options(NamedTuple):
    """How to round, as operators take it."""

    format: str
    rule: str | None = None
    scale: Tensor | None = None
    offset: Tensor | None = None
    tensor_scale: Tensor | None = None
    axis: int | None = None
    block_size: int | None = None
    rounding: str = "nearest"
    key: Tensor | None = None

    def core(self, ndim: int) -> CoreArguments:
        """Give what the core takes between `x` and `out`."""
        return self._core(ndim, lambda t: _bridge.array(t.cpu()), _keys.words)

    def _core(
        self, ndim: int, array: Callable[[Tensor], NDArray[Any]], words: Callable[[Tensor], tuple[int, int]]
    ) -> CoreArguments:
        scale = self.rule if self.scale is None else array(self.scale)
        offset = None if self.offset is None else array(self.offset)
        scale, offset = _arguments.scaling(scale, offset, ndim, self.axis, self.block_size)
        tensor = None if self.tensor_scale is None else _arguments.tensor_scale(array(self.tensor_scale))
        key = None if self.key is None else words(self.key)
        return self.format, scale, offset, tensor, self.axis, self.block_size, self.rounding, key

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise what the core would for an array of this shape, without the work."""
        _check(shape, self.core(len(shape)))

    def check_fake(self, shape: tuple[Any, ...]) -> None:
        """`check` where there are no numbers to see, and lengths need not be known."""
        known = all(isinstance(n, int) for n in shape)

        def ones(t: Tensor) -> NDArray[Any]:
            dtype = np.complex64 if t.is_complex() else np.bool_ if t.dtype is torch.bool else np.float32
            return np.ones([n if known and isinstance(n, int) else 1 for n in t.shape], dtype)

        _check(tuple(n if known else 1 for n in shape), self._core(len(shape), ones, lambda _: (0, 0)))


def _check(shape: tuple[int, ...], arguments: CoreArguments) -> None:
    """Give the core an array with nothing in it: the lengths that no scale depends on become 0."""
    lengths = arguments[1].shape if isinstance(arguments[1], np.ndarray) else ()
    lengths = (1,) * (len(shape) - len(lengths)) + lengths
    small = tuple(0 if length == 1 else n for length, n in zip(lengths, shape, strict=False))
    try:
        _core.fake_quantize(_zeros((*small, *shape[len(small) :])), *arguments, None)
    except _core.Error:
        # Once more for a message with the true shape; it is raised before anything is computed.
        _core.fake_quantize(_zeros(shape), *arguments, None)
        raise


def _zeros(shape: tuple[int, ...]) -> Any:
    return np.broadcast_to(np.float32(0), shape)


def on_core(t: Tensor) -> bool:
    return t.device.type == "cpu" and not _state["plain"]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def sharing(format: str, ndim: int, axis: int | None, block_size: int | None) -> tuple[int | None, int | None]:
    """Give axis (from 0) and block size of the scales, the format's own where none is said."""
    fmt = _core.get_format(format)
    if ndim and block_size is None and (axis is None or fmt.scale_format is not None):
        block_size = fmt.default_block
    if block_size is not None and axis is None:
        axis = -1
    return None if axis is None else axis % ndim, block_size


def scale_shape(shape: tuple[Any, ...], options: Options) -> tuple[tuple[Any, ...], bool]:
    """Give the shape of the scales of a tensor of this shape, and whether there are offsets."""
    ndim, given = len(shape), [t for t in (options.scale, options.offset) if t is not None]
    if given:
        shapes = [tuple(t.shape) for t in given]
        if options.axis is not None and options.block_size is None:
            along = options.axis % ndim
            shapes = [tuple(s[0] if i == along else 1 for i in range(ndim)) if len(s) == 1 else s for s in shapes]
        together = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
        return (1,) * (ndim - len(together)) + tuple(together), len(given) == 2
    rule = options.rule or _core.get_format(options.format).default_scale
    axis, size = sharing(options.format, ndim, options.axis, options.block_size)
    if rule == "one" or axis is None:
        return (1,) * ndim, rule == "minmax"
    at = shape[axis] if size is None else (shape[axis] + size - 1) // size
    other = (1,) * ndim if size is None else shape
    return (*other[:axis], at, *other[axis + 1 :]), rule == "minmax"
