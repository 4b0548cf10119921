"""The networks: small enough for a second core to train one in seconds, with the parts the papers talk about.

All are plain torch. The layers that 4-bit recipes leave alone stand at the ends: a first layer that reads the data and
a last one that scores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """``relu(x + inside(x))``, with a 1 x 1 convolution beside where the shape changes (He et al. 2015)."""

    def __init__(self, inside: nn.Module, beside: nn.Module) -> None:
        super().__init__()
        self.inside, self.beside = inside, beside

    def forward(self, x: Tensor) -> Tensor:
        """Add what is inside to what is beside."""
        return torch.relu(self.beside(x) + self.inside(x))


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1, *, norm: bool = True) -> list[nn.Module]:
    """Make a convolution and what follows it: batch norm, or nothing and a bias."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=not norm)
    return [layer, nn.BatchNorm2d(outputs)] if norm else [layer]


def bottleneck(inputs: int, outputs: int) -> Residual:
    """1 x 1, 3 x 3, 1 x 1: the block whose pointwise convolutions the paper would keep in FP8."""
    width = outputs // 2
    inside = nn.Sequential(*conv(inputs, width, 1), nn.ReLU(), *conv(width, width), nn.ReLU(), *conv(width, outputs, 1))
    return Residual(inside, nn.Identity() if inputs == outputs else nn.Sequential(*conv(inputs, outputs, 1)))


def vision(classes: int) -> nn.Module:
    """Make a residual network with batch norm at 7 x 7: ten convolutions, two of its blocks bottlenecks."""
    return nn.Sequential(
        *conv(1, 16, 3, 2),
        nn.ReLU(),
        Residual(nn.Sequential(*conv(16, 16), nn.ReLU(), *conv(16, 16)), nn.Identity()),
        bottleneck(16, 32),
        bottleneck(32, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


def deep(classes: int, depth: int, *, norm: bool) -> nn.Module:
    """Make a residual network of `depth` inner 3 x 3 convolutions at 7 x 7, with batch norm or without.

    Without it weights start as He et al. (2015) have them, and the second convolution of each block at zero (Zhang et
    al. 2019), so that the sum of the blocks does not grow with their number.
    """
    width = 16
    layers: list[nn.Module] = [*conv(1, width, 3, 2, norm=norm), nn.ReLU()]
    for _ in range(depth // 2):
        inside = nn.Sequential(*conv(width, width, norm=norm), nn.ReLU(), *conv(width, width, norm=norm))
        layers.append(Residual(inside, nn.Identity()))
    model = nn.Sequential(*layers, nn.AvgPool2d(3, 2), nn.Flatten(), nn.Linear(9 * width, classes))
    if not norm:
        for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        for block in (m for m in model if isinstance(m, Residual)):
            nn.init.zeros_(block.inside[-1].weight)
    return model


class Speech(nn.Module):
    """A layer on every four frames, two LSTM layers, the mean over the frames that are there, and scores."""

    def __init__(self, classes: int, inputs: int = 52, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Score recordings of shape (n, steps, coefficients + 1)."""
        frames, present = x[..., :-1], x[..., -1:] > 0
        states, _ = self.lstm(torch.relu(self.first(frames)))
        return self.last((states * present).sum(1) / present.sum(1))


class LanguageLSTM(nn.Module):
    """Characters, an LSTM layer, and scores of the next character."""

    def __init__(self, classes: int, width: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.last = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Score the next character at every place of texts of shape (n, length)."""
        states, _ = self.lstm(self.embedding(x))
        return self.last(states)


class Transformer(nn.Module):
    """Characters with their places, causal layers, and scores of the next character."""

    def __init__(self, classes: int, length: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.places = nn.Embedding(length, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, classes)
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Score the next character at every place of texts of shape (n, length)."""
        states = self.embedding(x) + self.places.weight
        for layer in self.layers:
            states = layer(states, src_mask=self.mask, is_causal=True)
        return self.last(self.norm(states))
