"""QPyTorch's ways to round what the layers of a model give, without rewriting it."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from lowbit import _arguments
from lowbit.torch.qtorch.quant import Quantizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from lowbit.torch.qtorch.number import Number

__all__ = ["lower", "sequential_lower"]


def _classes(names: str) -> frozenset[type[nn.Module]]:
    """Look classes up in `torch.nn`; a name that ends in digits and "d" stands for one of each dimension."""
    found: set[type[nn.Module]] = set()
    for name in names.split():
        stem = name.removesuffix("d").rstrip("123")
        digits = name[len(stem) : -1] if name.endswith("d") and name[-2] in "123" else ""
        found |= {getattr(nn, f"{stem}{digit}d") for digit in digits} if digits else {getattr(nn, name)}
    return frozenset(found)


#: QPyTorch's kinds of layers: these very classes, neither classes derived from them nor recurrent layers.
LAYERS_TYPES = {
    "conv": _classes("Conv123d ConvTranspose123d Fold Unfold"),
    "linear": _classes("Bilinear Linear"),
    "pool": _classes(
        "AdaptiveAvgPool123d AdaptiveMaxPool123d AvgPool123d FractionalMaxPool2d LPPool12d MaxPool123d MaxUnpool123d"
    ),
    "pad": _classes("ConstantPad123d ReflectionPad12d ReplicationPad12d ZeroPad2d"),
    "activation": _classes(
        "ELU Hardshrink Hardtanh LeakyReLU LogSigmoid LogSoftmax PReLU RReLU ReLU ReLU6 SELU Sigmoid Softmax Softmax2d"
        " Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold"
    ),
    "normalization": _classes("BatchNorm123d GroupNorm InstanceNorm123d LayerNorm LocalResponseNorm"),
    "dropout": _classes("AlphaDropout Dropout Dropout23d"),
    "loss": _classes(
        "BCELoss BCEWithLogitsLoss CrossEntropyLoss HingeEmbeddingLoss KLDivLoss L1Loss MSELoss MarginRankingLoss"
        " MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss PoissonNLLLoss SmoothL1Loss"
        " SoftMarginLoss TripletMarginLoss"
    ),
}


def _meant(layer_types: Iterable[str]) -> frozenset[type[nn.Module]]:
    kinds = [_arguments.choice(kind, "layer_types", LAYERS_TYPES) for kind in layer_types]
    return frozenset[type[nn.Module]]().union(*(LAYERS_TYPES[kind] for kind in kinds))


def _rounded(quant: Quantizer, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Round what a module gives: a forward hook."""
    return quant(output)


def lower(
    model: nn.Module,
    layer_types: Iterable[str] = (),
    forward_number: Number | None = None,
    backward_number: Number | None = None,
    forward_rounding: str = "stochastic",
    backward_rounding: str = "stochastic",
) -> None:
    """Round what layers of a model give, in place: a forward hook on each.

    Parameters
    ----------
    model : nn.Module
        Changed. Its parameters, their names and its state_dict stay as they are.
    layer_types : iterable of str
        Which layers: "conv", "linear", "pool", "pad", "activation", "normalization", "dropout", "loss". Classes derived
        from torch's are not meant, nor are recurrent layers.
    forward_number, backward_number : Number, optional
        The formats of what a layer gives and of its gradient; None rounds nothing.
    forward_rounding, backward_rounding : {"stochastic", "nearest"}
        How.

    Raises
    ------
    lowbit.Error
        A kind of layer or a rounding is not known.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch import FixedPoint
    >>> from lowbit.torch.qtorch.auto_low import lower
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> lower(model, layer_types=["linear", "activation"], forward_number=FixedPoint(8, 4))
    >>> y = model(torch.ones(1, 4))
    >>> torch.equal(y * 16, (y * 16).round())
    True
    """
    meant = _meant(layer_types)
    quant = Quantizer(forward_number, backward_number, forward_rounding, backward_rounding)
    for module in model.modules():
        if type(module) in meant:
            # First of all hooks: the caller's see what was rounded.
            module.register_forward_hook(partial(_rounded, quant), prepend=True)


def sequential_lower(
    model: nn.Module,
    layer_types: Iterable[str] = (),
    forward_number: Number | None = None,
    backward_number: Number | None = None,
    forward_rounding: str = "stochastic",
    backward_rounding: str = "stochastic",
) -> nn.Module:
    """Copy a model with a `Quantizer` after layers: each becomes ``nn.Sequential(layer, quantizer)``.

    Parameters
    ----------
    model : nn.Module
        Not changed.
    layer_types, forward_number, backward_number, forward_rounding, backward_rounding
        As for `lower`.

    Returns
    -------
    nn.Module
        The copy. A layer's parameters have ``.0`` in their names.

    Raises
    ------
    lowbit.Error
        A kind of layer or a rounding is not known.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch import FixedPoint
    >>> from lowbit.torch.qtorch.auto_low import sequential_lower
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU())
    >>> sequential_lower(model, layer_types=["linear"], forward_number=FixedPoint(8, 4))
    Sequential(
      (0): Sequential(
        (0): Linear(in_features=4, out_features=8, bias=True)
        (1): Quantizer()
      )
      (1): ReLU()
    )
    """
    meant = _meant(layer_types)
    quant = Quantizer(forward_number, backward_number, forward_rounding, backward_rounding)
    done: dict[nn.Module, nn.Module] = {}

    def lowered(module: nn.Module) -> nn.Module:
        if module not in done:
            done[module] = module
            children = [(name, child) for name, child in module._modules.items() if child is not None]
            for name, child in children:
                module._modules[name] = lowered(child)
            if not children and type(module) in meant:
                done[module] = nn.Sequential(module, quant)
        return done[module]

    return lowered(copy.deepcopy(model))
