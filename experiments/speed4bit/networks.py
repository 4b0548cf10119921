"""The networks: plain torch, as anyone would write them."""

from __future__ import annotations

import torch
from plan import Case
from torch import Tensor, nn

LAYERS, PIXELS, CLASSES, TOKENS, SIDE = 4, 784, 10, 64, 16


def network(case: Case) -> nn.Module:
    """Make the network of a case, always the same."""
    torch.manual_seed(0)
    return {"mlp": _mlp, "transformer": _transformer, "cnn": _cnn}[case.network](case.width)


def batch(case: Case) -> Tensor:
    """Make the inputs of a case."""
    torch.manual_seed(1)
    shape = {"mlp": (PIXELS,), "transformer": (TOKENS, case.width), "cnn": (3, SIDE, SIDE)}[case.network]
    return torch.randn(case.batch, *shape)


def _mlp(width: int) -> nn.Module:
    """Put four square layers between a first and a last one."""
    hidden = [part for _ in range(LAYERS) for part in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU(), *hidden, nn.Linear(width, CLASSES))


def _transformer(width: int) -> nn.Module:
    """Put a block between a layer before and a layer after it, which recipes leave in float32."""
    block = nn.TransformerEncoderLayer(width, max(width // 64, 1), 4 * width, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(width, width), block, nn.Linear(width, CLASSES))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norm_one, self.norm_two = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm_one(self.one(x)))
        return torch.relu(x + self.norm_two(self.two(y)))


def _cnn(channels: int) -> nn.Module:
    """Put two residual blocks between a first and a last layer."""
    blocks = [_Residual(channels) for _ in range(2)]
    first = nn.Conv2d(3, channels, 3, padding=1)
    return nn.Sequential(first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
