"""Train one small model in float32 and in bfloat16, rounded at random and to nearest: docs/img/bfloat16.png.

``python experiments/bfloat16.py`` (lowbit, torch and matplotlib) prints the losses at the end and draws the figure.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit.torch.optim import LowPrecision

STEPS, LR = 3000, 2e-4
IMAGE = Path(__file__).resolve().parent.parent / "docs" / "img" / "bfloat16.png"


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Give products of coordinates with a little noise: what a line cannot fit."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(256, 16, generator=generator)
    y = x[:, :1] * x[:, 1:2] + x[:, 2:3] + 0.1 * torch.randn(256, 1, generator=generator)
    return x, y


def losses(rounding: str | None) -> list[float]:
    torch.manual_seed(2)
    dtype = torch.float32 if rounding is None else torch.bfloat16
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1)).to(dtype)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=LR)
    if rounding is not None:
        optimizer = LowPrecision(optimizer, weight="bfloat16", rounding=rounding)
    x, y = problem()
    curve = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x.to(dtype)).float(), y)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def main() -> None:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for label, rounding in (
        ("float32", None),
        ("bfloat16, at random", "stochastic"),
        ("bfloat16, to nearest", "nearest"),
    ):
        curve = losses(rounding)
        print(f"{label:22} {sum(curve[-100:]) / 100:.2e}")
        axes.semilogy(curve, label=label, linewidth=1)
    axes.set(xlabel=f"steps of AdamW, lr {LR:g}", ylabel="loss")
    axes.legend(frameon=False)
    figure.savefig(IMAGE, dpi=150)


if __name__ == "__main__":
    main()
