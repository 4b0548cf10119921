"""Layers of torch.nn whose products are quantized."""

from __future__ import annotations

from lowbit.torch.nn.attention import MultiheadAttention, TransformerEncoderLayer
from lowbit.torch.nn.conv import Conv1d, Conv2d
from lowbit.torch.nn.embedding import Embedding
from lowbit.torch.nn.linear import Linear
from lowbit.torch.nn.lstm import LSTM

__all__ = ["LSTM", "Conv1d", "Conv2d", "Embedding", "Linear", "MultiheadAttention", "TransformerEncoderLayer"]
