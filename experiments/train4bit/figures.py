"""The figures of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import plan
import recipes
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import Records
from tables import change, measure
from tasks import TASKS

# Okabe and Ito's colours, which the colour-blind can tell apart as well.
COLOURS = ("#555555", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "font.size": 9.5,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "savefig.dpi": 110,
}


def new(columns: int, width: float = 4.6, height: float = 3.7) -> tuple[Figure, list[Axes]]:
    """Make a figure with axes side by side."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height), layout="constrained", facecolor="white")
        return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def gradients(rows: Sequence[dict[str, Any]], networks: Sequence[str], path: Path) -> None:
    """Draw the error of dL/dW against its projection, a point for each quantizer under GradScale."""
    figure, axes = new(len(networks))
    kinds = list(dict.fromkeys(row["grid"] for row in rows))
    for ax, network in zip(axes, networks, strict=True):
        for row_kind in dict.fromkeys((r["grid"], r["rounding"], r["phases"]) for r in rows):
            grid, rounding, phases = row_kind
            mine = [r for r in rows if (r["grid"], r["rounding"], r["phases"]) == row_kind]
            mine = [r for r in mine if r["network"] == network and r["scaling"] == "gradscale"]
            x = np.mean([float(r["dW projection"]) for r in mine])
            y = np.mean([float(r["dW cosine"]) for r in mine])
            hollow = rounding == "stochastic"
            colour = COLOURS[kinds.index(grid) + 1]
            label = f"{grid}, {rounding}" if ax is axes[0] and phases in (1, "1") else None
            mark = "o" if phases in (1, "1") else "s"
            ax.plot(x, y, mark, color=colour, markerfacecolor="none" if hollow else colour, label=label)
        ax.set(title=TASKS[network].title, xlabel="projection on the true dL/dW", ylim=(0, 1.03))
        ax.axvline(1, color="#999999", linewidth=0.8)
    axes[0].set_ylabel("cosine with the true dL/dW")
    figure.legend(loc="outside right upper", fontsize=8, title="squares: two phases", title_fontsize=8)
    figure.savefig(path, dpi=110)


def through(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw what is left of dL/dW, layer by layer from the loss."""
    figure, axes = new(2, 5.4)
    kinds = list(dict.fromkeys((r["grid"], r["rounding"], r["phases"]) for r in rows))
    grids = list(dict.fromkeys(kind[0] for kind in kinds))
    for ax, name in zip(axes, ("projection", "cosine"), strict=True):
        for grid, rounding, phases in kinds:
            mine = [r for r in rows if (r["grid"], r["rounding"], r["phases"]) == (grid, rounding, phases)]
            backs = sorted({int(r["back"]) for r in mine})
            y = [np.mean([float(r[name]) for r in mine if int(r["back"]) == back]) for back in backs]
            style = ":" if rounding == "stochastic" else "--" if int(phases) == 2 else "-"
            label = f"{grid}, {rounding}{', two phases' if int(phases) == 2 else ''}"
            ax.plot(backs, y, style, color=COLOURS[grids.index(grid) + 1], label=label)
        ax.set(title=f"{name} on the true dL/dW", xlabel="roundings behind it: layers from the loss")
        ax.axhline(1, color="#999999", linewidth=0.8)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)


def compare(records: Records, path: Path) -> None:
    """Draw the paired changes of every recipe on every task, with intervals and margins."""
    figure, axes = new(len(plan.TASKS), 3.1)
    names = [*recipes.core(), plan.FP8, plan.LATER]
    for ax, task in zip(axes, plan.TASKS, strict=True):
        more = measure(task)[1]
        for i, recipe in enumerate(names):
            moved = change(records, task, recipe)
            if moved is not None:
                ax.errorbar(100 * moved.mean, -i, xerr=100 * moved.half, fmt="o", color=COLOURS[i + 1], capsize=3)
        ax.axvline(0, color="#999999", linewidth=0.8)
        ax.axvline(-100 * plan.MARGIN if more else 100 * plan.MARGIN, color="#999999", linestyle=":")
        ax.set(title=TASKS[task].title, xlabel=f"change of {'accuracy' if more else 'NLL'}, %")
        ax.set_yticks(range(0, -len(names), -1), names if ax is axes[0] else [""] * len(names))
    figure.savefig(path, dpi=110)


def curve(records: Records, path: Path) -> None:
    """Draw the loss at fixed scales, with GradScale and amax as bands."""
    tried = [task for task in plan.CLOSER if records.of(task, "2^0")]
    figure, axes = new(2 * len(tried), 4.2)
    for k, task in enumerate(tried):
        for ax, name in zip(axes[2 * k :], ("nll", "train_loss"), strict=False):
            seeds = records.of(task, "2^0")
            spread = {
                recipe: [
                    row[name] for s, row in records.of(task, recipe).items() if s in seeds and row[name] is not None
                ]
                for recipe in ("float32", *recipes.curve(), "sun2020", "amax")
            }
            fixed = {power: spread[f"2^{power}"] for power in recipes.POWERS if spread[f"2^{power}"]}
            ax.errorbar(
                list(fixed),
                [np.mean(v) for v in fixed.values()],
                [np.std(v) for v in fixed.values()],
                fmt="o-",
                color=COLOURS[1],
                label="fixed scale",
            )
            for recipe, label, colour in (("sun2020", "GradScale", 2), ("amax", "amax", 3), ("float32", "float32", 0)):
                if spread[recipe]:
                    middle, half = np.mean(spread[recipe]), np.std(spread[recipe])
                    ax.axhline(middle, color=COLOURS[colour], label=label)
                    ax.axhspan(middle - half, middle + half, color=COLOURS[colour], alpha=0.12, linewidth=0)
            ax.set(
                title=f"{TASKS[task].title}: {'test NLL' if name == 'nll' else 'train loss'}",
                xlabel="log2 of the scale",
                yscale="log",
            )
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def depth(records: Records, path: Path) -> None:
    """Draw the changes from float32 against depth, with and without batch norm."""
    figure, axes = new(2, 4.6)
    for ax, plain in zip(axes, ("", "-plain"), strict=True):
        for i, recipe in enumerate(plan.DEEP_RECIPES[1:]):
            found = {d: change(records, f"depth{d}{plain}", recipe, of="train_loss") for d in (6, 12, 20)}
            shown = {d: moved for d, moved in found.items() if moved is not None}
            ax.errorbar(
                [d + 0.3 * (i - 1) for d in shown],
                [m.mean + 1 for m in shown.values()],
                [m.half for m in shown.values()],
                fmt="o-",
                color=COLOURS[i + 1],
                capsize=3,
                label=recipe,
            )
        ax.axhline(1, color="#999999", linewidth=0.8)
        ax.set(title=f"{'without' if plain else 'with'} batch norm", xlabel="layers", xticks=(6, 12, 20))
    axes[0].set_ylabel("train loss over float32's")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
