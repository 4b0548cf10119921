"""Which weights of a layer are quantized, and by which site."""

from __future__ import annotations

from typing import cast

from torch import nn

from lowbit.torch import nn as quantized
from lowbit.torch._site import Site


def sites_of(module: nn.Module) -> dict[str, Site]:
    """Give the site of each weight of a quantized layer, by the weight's name; nothing for other modules."""
    if isinstance(module, quantized.LSTM):
        return {f"weight_{name}": cast(Site, site) for name, site in module.sites.items()}
    if isinstance(module, quantized.MultiheadAttention):
        if module._qkv_same_embed_dim:
            return {"in_proj_weight": module.site}
        sites = module.site, module.key_site, module.value_site
        return dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), sites, strict=True))
    if isinstance(module, quantized.Linear | quantized.Conv1d | quantized.Conv2d):
        return {"weight": module.site}
    return {}
