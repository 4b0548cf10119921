"""Train below 8 bits in PyTorch: operations on tensors, quantized layers, recipes."""

from __future__ import annotations
