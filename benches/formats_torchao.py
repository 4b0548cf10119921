"""The torchao recipes for number formats, compiled by torch.compile."""

from __future__ import annotations

from functools import partial

import formats_torchao_eager as eager
import torch

torch._dynamo.config.recompile_limit = 64  # one compilation for each size and format
compiled = torch.compile(fullgraph=True, dynamic=False)

quantize_bfloat16 = partial(eager.quantize_bfloat16, run=compiled)
fake_quantize_blocks = partial(eager.fake_quantize_blocks, run=compiled)
quantize_blocks = partial(eager.quantize_blocks, run=compiled)
dequantize = partial(eager.dequantize, run=compiled)
