"""The torch.compile recipes for number formats: the eager expressions, fused by inductor into one loop."""

from __future__ import annotations

from functools import partial

import formats_torch as eager
import torch

torch._dynamo.config.recompile_limit = 64  # one compilation for each size and format
compiled = torch.compile(fullgraph=True, dynamic=False)

fake_quantize = partial(eager.fake_quantize, run=compiled)
quantize_bfloat16 = partial(eager.quantize_bfloat16, run=compiled)
fake_quantize_blocks = partial(eager.fake_quantize_blocks, run=compiled)
dequantize = partial(eager.dequantize, run=compiled)
