"""The picture: seven panels on white."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from data import Images, count_shades, to_int4
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from network import FLOAT32, INT4_FORWARD, ONE_PHASE, TWO_PHASE, Array
from table import final
from training import Results, Run
from workers import CHANNELS, WORKERS

import lowbit as lb

# Okabe and Ito's colours, which the colour-blind can tell apart as well.
GREY, BLUE, ORANGE, GREEN, PURPLE = "#555555", "#0072B2", "#D55E00", "#009E73", "#CC79A7"
RECIPE_COLOURS = {FLOAT32: GREY, INT4_FORWARD: BLUE, ONE_PHASE: ORANGE, TWO_PHASE: GREEN}
CHANNEL_COLOURS = dict(zip(CHANNELS, (GREY, ORANGE, BLUE, GREEN), strict=True))
TITLE = {"fontsize": 11.5, "fontweight": "bold", "x": 0.01, "ha": "left"}
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.labelcolor": "#333333",
    "font.size": 9.5,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
}


def draw(images: Images, results: Results) -> Figure:
    """Draw everything."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(14.5, 13), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.07), facecolor="white")
        figure.suptitle("lowbit: four bits to compute with, one bit to send", fontsize=17, fontweight="bold")
        top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.15), hspace=0.04)
        draw_strip(top, images)
        axes = bottom.subplots(2, 3)
        draw_weights(axes[0, 0], results.alone[TWO_PHASE][0])
        draw_radix4(axes[0, 1])
        draw_scales(axes[0, 2], results.alone[TWO_PHASE][0])
        draw_recipes(axes[1, 0], results)
        draw_channels(axes[1, 1], results)
        draw_schemes(axes[1, 2])
        return figure


def save(figure: Figure, path: Path) -> None:
    """Write the PNG beside its place and move it there, so that nobody ever sees half of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format="png")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def draw_strip(figure: SubFigure, images: Images) -> None:
    """Show one image of every digit, what INT4 makes of it, and the difference."""
    rows = [np.flatnonzero(images.labels == digit)[0] for digit in range(10)]
    int4 = to_int4(images.pixels)
    shades = count_shades(images.pixels)
    strips = (
        (f"float32\n{shades.before} shades", images.pixels, "gray", 0, 1),
        (f"INT4\n{shades.after} shades", int4, "gray", 0, 1),
        ("what was lost\n(blue $-$, red $+$,\nhalf a step at most)", int4 - images.pixels, "RdBu_r", -1 / 30, 1 / 30),
    )
    axes = figure.subplots(3, 10)
    for line, (name, pixels, colours, low, high) in zip(axes, strips, strict=True):
        for axis, row in zip(line, rows, strict=True):
            shape = (images.side, images.side)
            axis.imshow(pixels[row].reshape(shape), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            for spine in axis.spines.values():
                spine.set(visible=True, color="#CCCCCC")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=10)
    figure.suptitle(f"Images in INT4 ({images.title}): black becomes \N{MINUS SIGN}8, white becomes 7", **TITLE)


def draw_weights(axis: Axes, run: Run) -> None:
    """Show the float32 master weights of the middle layer and the 16 numbers that its products see."""
    weight = run.network[1].weight
    levels, counts = np.unique(lb.fake_quantize(weight, "int4", scale="minmax"), return_counts=True)
    step = (levels[-1] - levels[0]) / 15
    axis.hist(weight.ravel(), bins=120, weights=np.full(weight.size, 120 / 15), color="#BBBBBB", label="float32")
    axis.vlines(levels, 0, counts, color=BLUE, linewidth=2)
    axis.plot(levels, counts, "o", color=BLUE, markersize=5, label="INT4")
    axis.set(
        title="INT4: 16 even steps from min to max",
        xlabel="a weight of the second layer",
        ylabel="weights per step",
        xlim=(levels[0] - step, levels[-1] + step),
        ylim=(0, None),
    )
    axis.legend(loc="upper right")


def draw_radix4(axis: Axes) -> None:
    """Show both grids of radix-4: each is coarse, and each is wrong where the other is right."""
    x = np.geomspace(2.0**-9, 2.0**7, 4001).astype(np.float32)
    even, odd = (lb.fake_quantize(x, grid, scale=1) for grid in ("radix4", "radix4_odd"))
    axis.plot(x, x, color="#BBBBBB", linewidth=1, label="exact")
    axis.plot(x, np.where(even > 0, even, np.nan), color=GREEN, label=r"even phase, for $\partial L/\partial x$")
    axis.plot(x, np.where(odd > 0, odd, np.nan), color=PURPLE, label=r"odd phase, for $\partial L/\partial W$")
    axis.set_xscale("log", base=4)
    axis.set_yscale("log", base=4)
    axis.minorticks_off()
    axis.set(title="Radix-4: powers of 4 in two phases", xlabel="a scaled gradient", ylabel="rounded to")
    axis.legend(loc="upper left")


def draw_scales(axis: Axes, run: Run) -> None:
    """Show how the votes find each layer's gradient scale, and then keep trying."""
    scales = np.log2(run.scales)[:100]
    for layer, colour in enumerate(("#9ECAE1", "#4292C6", "#08306B")):
        axis.step(
            np.arange(len(scales)),
            scales[:, layer],
            where="mid",
            color=colour,
            linewidth=1.2,
            label=f"layer {layer + 1}",
        )
    axis.set(
        title="GradScale: votes find each layer's scale", xlabel="the first rounds", ylabel=r"$\log_2$ of the scale"
    )
    axis.legend(loc="lower right")


def draw_recipes(axis: Axes, results: Results) -> None:
    """Show the error on held-out images after every epoch, for one worker."""
    for recipe, runs in results.alone.items():
        epochs = np.arange(len(runs[0].accuracies))
        curve(axis, epochs, runs, RECIPE_COLOURS[recipe], recipe.name)
    axis.set(title="One worker: error while it learns", xlabel="epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish_errors(axis)
    axis.legend(loc="upper right", fontsize=8.5)


def draw_channels(axis: Axes, results: Results) -> None:
    """Show the same error against the bytes that each worker had sent."""
    for channel, runs in results.together.items():
        kilobytes = np.array(runs[0].sent[1:]) / 1000
        curve(axis, kilobytes, runs, CHANNEL_COLOURS[channel], channel.name)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set(title=f"{WORKERS} workers: error against bytes sent", xlabel="kilobytes sent by each worker")
    finish_errors(axis)
    axis.legend(loc="lower right", fontsize=8.5)
    most, least = (runs[0].sent[-1] / 1000 for runs in (results.together[CHANNELS[0]], results.together[CHANNELS[-1]]))
    height = 0.8 * min(100 - final(runs).mean() for runs in results.together.values())
    axis.annotate("", (least, height), (most, height), arrowprops={"arrowstyle": "<->", "color": GREY, "shrinkA": 0})
    label = f"{most / least:.0f} times fewer bytes"
    axis.annotate(label, ((most * least) ** 0.5, height), (0, 4), textcoords="offset points", ha="center")


def curve(axis: Axes, x: Array, runs: Sequence[Run], colour: str, name: str) -> None:
    """Draw the mean over the seeds with a band of one standard error, for the last looks, one for every x."""
    errors = 100 - np.array([run.accuracies[-len(x) :] for run in runs])
    mean, margin = errors.mean(axis=0), errors.std(axis=0, ddof=1) / len(runs) ** 0.5
    axis.plot(x, mean, color=colour, label=name)
    axis.fill_between(x, mean - margin, mean + margin, color=colour, alpha=0.18, linewidth=0)


def finish_errors(axis: Axes) -> None:
    """Give both error panels the same scale."""
    axis.set_yscale("log")
    axis.set(ylabel="wrong on held-out images, %", ylim=(0.7, 100))
    axis.set_yticks((1, 2, 5, 10, 20, 50, 100), ("1", "2", "5", "10", "20", "50", "100"))
    axis.minorticks_off()


def draw_schemes(axis: Axes) -> None:
    """Show what one bit costs: the exact error as lines, and as dots what many encoded copies measure."""
    x, dots, copies = np.linspace(0, 1, 201), np.linspace(0, 1, 11), 1 << 14
    numbers = np.repeat(dots, copies).astype(np.float32)
    for channel, colour in CHANNEL_COLOURS.items():
        if channel.scheme is None:
            continue
        bits = lb.onebit.encode(numbers, scheme=channel.scheme, key=lb.Key(0))
        decoded = lb.onebit.decode(bits, numbers.shape, scheme=channel.scheme, key=lb.Key(0))
        measured = np.square(decoded - numbers, dtype=np.float64).reshape(len(dots), copies).mean(axis=1)
        axis.plot(x, lb.onebit.squared_error(x, channel.scheme), color=colour, label=channel.name)
        axis.plot(dots, measured, "o", color=colour, markersize=4.5, clip_on=False)
    axis.set(
        title="One number in one bit: what it costs",
        xlabel=f"the number (dots: {copies:,} copies sent)",
        ylabel="mean squared error",
        ylim=(0, 0.34),
    )
    axis.legend(loc="upper right", fontsize=8.5)
