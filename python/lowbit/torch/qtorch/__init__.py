"""QPyTorch's public API on lowbit's kernels (``docs/qtorch.md``): numbers here, then `quant`, `optim`, `auto_low`.

>>> import torch, lowbit.torch.qtorch as qtorch
>>> from lowbit.torch.qtorch.quant import float_quantize
>>> float_quantize(torch.tensor([0.3]), exp=5, man=2, rounding="nearest")
tensor([0.3125])

A script that says ``import qtorch`` runs on it after

>>> qtorch.install()
>>> from qtorch.quant import float_quantize as theirs
>>> theirs is float_quantize
True
>>> qtorch.uninstall()
"""

from __future__ import annotations

import sys
from types import ModuleType

import lowbit as lb
from lowbit.torch.qtorch import auto_low, number, optim, quant
from lowbit.torch.qtorch.number import BlockFloatingPoint, FixedPoint, FloatingPoint
from lowbit.torch.qtorch.number import Number as Number

# What `from qtorch import *` gives in QPyTorch too.
__all__ = ["BlockFloatingPoint", "FixedPoint", "FloatingPoint"]

#: QPyTorch's modules, and ours that have their names.
_MODULES: dict[str, ModuleType] = {
    "qtorch": sys.modules[__name__],
    "qtorch.number": number,
    "qtorch.quant": quant,
    "qtorch.quant.quant_function": quant,
    "qtorch.quant.quant_module": quant,
    "qtorch.optim": optim,
    "qtorch.optim.optim_low": optim,
    "qtorch.auto_low": auto_low,
    "qtorch.auto_low.auto_low": auto_low,
}

#: What `install` took the place of.
_displaced: dict[str, ModuleType] = {}


def install(*, force: bool = False) -> None:
    """Let ``import qtorch`` mean this package from now on, in this process.

    Parameters
    ----------
    force : bool
        Also if QPyTorch itself has been imported; what holds its functions already keeps them.

    Raises
    ------
    lowbit.Error
        QPyTorch itself has been imported, and `force` is not given.

    Examples
    --------
    >>> import lowbit.torch.qtorch
    >>> lowbit.torch.qtorch.install()
    >>> import qtorch
    >>> qtorch.FixedPoint(8, 4)
    FixedPoint (wl=8, fl=4)
    >>> lowbit.torch.qtorch.uninstall()
    """
    theirs = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "qtorch"}
    if theirs.get("qtorch") is _MODULES["qtorch"]:
        return
    if theirs and not force:
        raise lb.Error(
            "force: qtorch itself has been imported; call install() before anything imports it, or give force=True"
        )
    _displaced.update(theirs)
    for name in theirs:
        del sys.modules[name]
    sys.modules.update(_MODULES)


def uninstall() -> None:
    """Undo `install`: QPyTorch, where it was imported or is installed, has its name again."""
    if sys.modules.get("qtorch") is not _MODULES["qtorch"]:
        return
    for name in _MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(_displaced)
    _displaced.clear()
