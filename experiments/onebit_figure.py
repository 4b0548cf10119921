"""Draws docs/img/onebit.png: the mean squared error at every x, from the exact formulas.

Run ``python experiments/onebit_figure.py``; it needs matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from lowbit import onebit

PANELS = {
    "unbiased: errors of many senders average out": [
        ("randomized", None, "no shared bits: one with probability x", "0.45"),
        ("optimal_unbiased", 1, "1 shared bit", "tab:orange"),
        ("optimal_unbiased", 2, "2 shared bits", "tab:green"),
        ("dither", None, "subtractive dither, unlimited", "tab:purple"),
        ("optimal_unbiased", None, "optimal, unlimited: 1 / (2e² - 2)", "tab:blue"),
    ],
    "biased: least error of a single number": [
        ("deterministic", None, "no shared bits: 1/4 or 3/4", "0.45"),
        ("optimal_biased", 1, "1 shared bit", "tab:orange"),
        ("clipped_dither", None, "clipped dither, unlimited", "tab:purple"),
        ("optimal_biased", None, "optimal, unlimited: 1/(8e)", "tab:blue"),
    ],
}


def main() -> None:
    x = np.linspace(0, 1, 2001)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for panel, (title, lines) in zip(axes, PANELS.items(), strict=True):
        for scheme, bits, label, colour in lines:
            worst = onebit.worst_case_error(scheme, bits)
            panel.plot(x, onebit.squared_error(x, scheme, bits), color=colour, label=f"{label} ({worst:.4f})")
        panel.set(title=title, xlabel="the number x", xlim=(0, 1), ylim=(0, None))
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_ylim(0, panel.get_ylim()[1] * 1.5)
        panel.legend(title="(worst case)", frameon=False, fontsize=9, loc="upper center", ncols=1)
    axes[0].set_ylabel("mean squared error of the estimate")
    path = Path(__file__).parents[1] / "docs" / "img" / "onebit.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
