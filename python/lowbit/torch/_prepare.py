"""``prepare``: a model whose layers are quantized, in place."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

from torch import Tensor, nn

import lowbit as lb
from lowbit.torch import _compress
from lowbit.torch import nn as quantized
from lowbit.torch._site import Site
from lowbit.torch._spec import COMPUTE, Compute, Products, Recipe
from lowbit.torch.nn.attention import keep_from_fused

Model = TypeVar("Model", bound=nn.Module)

#: Exactly these types: a subclass may compute something else.
_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: quantized.Linear,
    nn.Conv1d: quantized.Conv1d,
    nn.Conv2d: quantized.Conv2d,
    nn.LSTM: quantized.LSTM,
    nn.MultiheadAttention: quantized.MultiheadAttention,
    nn.Embedding: quantized.Embedding,
}
#: What has parameters and no product to quantize.
_FLOAT = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.PReLU,
    nn.Embedding,
    nn.EmbeddingBag,
)


def prepare(
    model: Model,
    recipe: Recipe,
    *,
    skip: str | type[nn.Module] | Iterable[str | type[nn.Module]] = (),
    strict: bool = False,
    compress_activations: bool = False,
    compute: Compute | None = None,
) -> Model:
    """Quantize the layers of a model by a recipe, in place.

    Modules and Parameters stay the objects they are (a layer becomes its quantized subclass), so that hooks, other
    references and an optimizer made before go on working. Clips of PACT are new Parameters: see `param_groups`.

    Parameters
    ----------
    model : torch.nn.Module
    recipe : Recipe
        Such as ``lowbit.torch.recipes.sun2020()``.
    skip : str, type or several, optional
        Layers to leave as they are: names as in ``model.named_modules()``, patterns of them (``"head.*"``), or types. A
        skipped layer is not counted as first or last; all within a skipped module is skipped.
    strict : bool
        Raise where a layer cannot be converted, in place of a warning.
    compress_activations : bool
        Let batch norms and ReLUs keep a compressed input for their gradient (see ``docs/torch-tools.md``).
    compute : {"auto", "integer", "float"}, optional
        What products of whole numbers (INT4, radix-4, ternary, ...) are computed on; all give the same bits.
        ``"auto"``: integers, from packed codes, where that was measured to be faster; ``"integer"``: wherever the
        formats allow. Default: as the recipe's products say, which is ``"auto"``.

    Returns
    -------
    torch.nn.Module
        `model`.

    Raises
    ------
    TypeError
        `recipe` is not a Recipe.
    lowbit.Error
        The model is prepared already, or (with `strict`) has layers that cannot be converted.

    Warns
    -----
    UserWarning
        Layers that cannot be converted, with their names.

    Examples
    --------
    >>> import torch, lowbit.torch
    >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    >>> model = lowbit.torch.prepare(model, lowbit.torch.recipes.sun2020())
    >>> [type(layer).__module__.split(".")[0] for layer in model]
    ['torch', 'lowbit', 'torch']
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe: expected a lowbit.torch.Recipe, such as recipes.sun2020(), got {type(recipe).__name__}"
        )
    if compute not in (None, *COMPUTE):
        raise lb.Error(f"compute: {compute!r} is none of {', '.join(COMPUTE)}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, Site) for module in model.modules()):
        raise lb.Error("model: it is prepared already; prepare the float model (a copy of it, kept before)")
    if any(isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise lb.Error("model: its parameters are another's already; wrap what prepare returns")
    skipped = [skip] if isinstance(skip, str | type) else list(skip)
    for one in skipped:
        if not isinstance(one, str) and not (isinstance(one, type) and issubclass(one, nn.Module)):
            raise TypeError(f"skip: expected names, patterns or types of modules, got {one!r}")
    layers, others = _layers(model, skipped)
    chosen = _chosen(layers, recipe)
    if recipe.embedding is None:
        others = [(name, module) for name, module in others if not isinstance(module, nn.Embedding)]
    if others:
        listed = ", ".join(f"{name or 'the model'} ({type(module).__name__})" for name, module in others)
        advice = "they stay float32; name them in skip= if that is meant"
        if strict:
            raise lb.Error(f"model: no rule converts {listed}; name them in skip=")
        warnings.warn(f"no rule of lowbit.torch.prepare converts {listed}: {advice}", UserWarning, stacklevel=2)
    if layers and not chosen and recipe.inner.specs():
        kept = ", ".join(name or "the model" for name, _ in layers)
        warnings.warn(
            f"no layer is quantized: of {kept}, {recipe.name} leaves the first and the last in float32 "
            "(dataclasses.replace(recipe, first=recipe.inner, last=recipe.inner) does not)",
            UserWarning,
            stacklevel=2,
        )
    outputs = [name for name, _ in model.named_modules() if name.endswith("out_proj") and _matches(name, skipped)]
    for name, module, products in chosen:
        own = products if compute is None else replace(products, compute=compute)
        _convert(module, own, recipe, output=f"{name}.out_proj".lstrip(".") not in outputs)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(isinstance(m, Site) for m in module.modules()):
            if type(module) is nn.TransformerEncoderLayer:
                module.__class__ = quantized.TransformerEncoderLayer
            keep_from_fused(module)
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, Site) for m in module.modules()):
            # Nested tensors are for the fused path alone.
            module.enable_nested_tensor = module.use_nested_tensor = False
    if compress_activations:
        _compress.compress(model)
    return model


def _layers(
    model: nn.Module, skip: list[str | type[nn.Module]]
) -> tuple[list[tuple[str, nn.Module]], list[tuple[str, nn.Module]]]:
    """Find the layers that can be converted, and what has parameters and cannot, in the model's order."""
    layers: list[tuple[str, nn.Module]] = []
    others: list[tuple[str, nn.Module]] = []
    within: list[str] = []
    types = tuple(kind for kind in skip if isinstance(kind, type))
    patterns = [pattern for pattern in skip if isinstance(pattern, str)]
    used = set()
    for name, module in model.named_modules():
        matched = [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)]
        used.update(matched)
        if any(name.startswith(f"{outer}.") or not outer for outer in within):
            continue
        if matched or isinstance(module, types):
            within.append(name)
        elif type(module) in _KINDS and not _impossible(module):
            layers.append((name, module))
            if isinstance(module, nn.MultiheadAttention):
                within.append(name)
        elif type(module) in _KINDS or (not isinstance(module, _FLOAT) and _has_parameters(module)):
            others.append((name, module))
    missing = [pattern for pattern in patterns if pattern not in used]
    if missing:
        raise lb.Error(f"skip: no module is called {', '.join(missing)}")
    return layers, others


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _matches(name: str, skip: list[str | type[nn.Module]]) -> bool:
    return any(isinstance(pattern, str) and fnmatch.fnmatchcase(name, pattern) for pattern in skip)


def _impossible(module: nn.Module) -> bool:
    """Say whether a layer of a convertible type has what its quantized twin has not."""
    if isinstance(module, nn.Embedding):
        return module.max_norm is not None or module.sparse
    return isinstance(module, nn.Conv1d | nn.Conv2d) and not isinstance(module.weight, Tensor)


def _chosen(layers: list[tuple[str, nn.Module]], recipe: Recipe) -> list[tuple[str, nn.Module, Products]]:
    """Find each layer's products; layers that stay float32 are left out."""
    chosen: list[tuple[str, nn.Module, Products]] = []
    last = max(1, round(recipe.last_share * len(layers)))
    for i, (name, module) in enumerate(layers):
        products: Products | None = recipe.inner
        # Of a single layer, or of a first that is last too, the first's rule counts where there is one.
        if i == 0 and len(layers) > 1:
            products = recipe.first
        elif i >= len(layers) - last and len(layers) > 1:
            products = recipe.last
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            if module.groups == module.in_channels > 1 and not recipe.depthwise:
                products = None
            elif recipe.pointwise is not None and module.weight[0, 0].numel() == 1:
                products = recipe.pointwise
        if isinstance(module, nn.Embedding):
            if recipe.embedding is not None:
                chosen.append((name, module, Products(weight=recipe.embedding)))
        elif products is not None:
            chosen.append((name, module, products))
    return chosen


def _convert(module: nn.Module, products: Products, recipe: Recipe, *, output: bool) -> None:
    """Turn a layer into its quantized twin."""
    state: dict[str, Any] = {"pact_init": recipe.pact_init, "grad_scale": recipe.grad_scale}
    module.__class__ = _KINDS[type(module)]
    if isinstance(module, quantized.Embedding):
        assert products.weight is not None
        module.weight_spec = products.weight
    elif isinstance(module, quantized.LSTM):
        module.quantize(products, **state)
    elif isinstance(module, quantized.MultiheadAttention):
        module.quantize(products, output=output, **state)
    else:
        module.site = Site(products, cast(Tensor, module.weight), **state)
    for site in module.modules():
        if isinstance(site, Site):
            site.train(module.training)
            site.to(next(module.parameters()).device)


def param_groups(
    model: nn.Module, *, pact_decay: float, weight_decay: float = 0.0, **options: Any
) -> list[dict[str, Any]]:
    """Split a model's parameters for an optimizer: all but the clips of PACT, and the clips.

    Parameters
    ----------
    model : torch.nn.Module
        A prepared model.
    pact_decay : float
        The weight decay of the clips (usually that of the weights: arXiv:1805.06085). It pulls them down, towards
        finer steps, against the gradient of what they clip.
    weight_decay : float
        The weight decay of all others.
    **options
        More for both groups, such as ``lr``.

    Returns
    -------
    list of dict
        For ``torch.optim.SGD(param_groups(model, pact_decay=1e-4), lr=0.1)``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    clips = [m.clip for m in model.modules() if isinstance(m, Site) and isinstance(m.clip, nn.Parameter)]
    known = {id(clip) for clip in clips}
    rest = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": rest, "weight_decay": weight_decay, **options}]
    return groups + ([{"params": clips, "weight_decay": pact_decay, **options}] if clips else [])
