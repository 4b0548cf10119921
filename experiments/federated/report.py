"""Write the page and the picture of what there is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1] / "train4bit"))

import plan
import task
from intervals import Interval, interval

#: How far below the end of float32 a way is called there, in points of accuracy.
NEAR = 1.0
INTRODUCTION, FINDINGS = (Path(__file__).with_name(name) for name in ("introduction.md", "findings.md"))
SHOWN = ("float32", "float16 both ways", "1 bit up", "1 bit both ways", "signs both ways, with feedback")


class Runs:
    """All runs of one way, seed by seed: arrays of shape (seeds, rounds)."""

    def __init__(self, kept: dict[str, Any], way: plan.Way) -> None:
        rows = [done[way.name] for done in kept["runs"].values()]

        def table(*names: str) -> NDArray[np.float64]:
            return np.array([[sum(row[name] for name in names) for row in run] for run in rows], float)

        self.accuracy, self.asked = table("accuracy"), table("asked")
        self.up, self.down, self.both = table("up"), table("down"), table("up", "down")

    @property
    def ends(self) -> NDArray[np.float64]:
        """The mean accuracy of the last rounds, by seed."""
        return self.accuracy[:, -plan.LAST :].mean(axis=1)

    def steady(self, which: NDArray[np.float64]) -> float:
        """Bytes for each client asked, from the second round on."""
        return float(which[:, 1:].sum() / self.asked[:, 1:].sum())

    @property
    def spent(self) -> NDArray[np.float64]:
        """Megabytes of all clients up to each round, averaged over seeds."""
        return np.cumsum(self.both.mean(axis=0)) / 1e6


def write(out: Path, kept: dict[str, Any]) -> Path:
    """Write federated.md and federated.png; return the page's path."""
    runs = {way: Runs(kept, way) for way in plan.WAYS}
    draw(out / "federated.png", runs)
    page = out / "federated.md"
    seeds, rounds = len(kept["runs"]), kept["rounds"]
    numbers = sum(array.size for array in task.new_model(kept["data"], 0).values())
    full = kept["data"] == "mnist5k" and seeds >= plan.SEEDS and rounds >= plan.ROUNDS
    title = task.images(kept["data"], 0)[0].title
    facts = {"epochs": task.EPOCHS, "batch": task.BATCH, "rate": task.RATE, "last": plan.LAST, "near": NEAR}
    given = {"numbers": numbers, "title": title, "rounds": rounds, "seeds": seeds}
    text = [INTRODUCTION.read_text().format(**facts, **given)]
    if full:
        text += [FINDINGS.read_text().strip(), ""]
    for heading, ways in (("All clients every round", plan.ALL), ("Five of ten clients every round", plan.SOME)):
        text += [f"## {heading}", "", *table(ways, runs, numbers), ""]
    page.write_text("\n".join(text).rstrip() + "\n")
    return page


def table(ways: Sequence[plan.Way], runs: dict[plan.Way, Runs], numbers: int) -> list[str]:
    """Write the rows of some ways."""
    rows = [
        "| | codecs: up, down | kB up | kB down | bits up, down | steady, times fewer | whole run, times fewer "
        '| accuracy | against float32 | rounds to "near" | MB to "near" |',
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for way in ways:
        mine, base = runs[way], runs[plan.baseline(way)]
        up, down = mine.steady(mine.up), mine.steady(mine.down)
        change = interval(list(mine.ends - base.ends))
        rounds = reached(mine, base)
        cells = [
            way.name,
            codecs(way),
            f"{up / 1e3:.1f}",
            f"{down / 1e3:.1f}",
            f"{8 * up / numbers:.2f}, {8 * down / numbers:.2f}",
            f"{base.steady(base.both) / (up + down):.1f}",
            f"{base.spent[-1] / mine.spent[-1]:.1f}",
            f"{mine.ends.mean():.2f}",
            "" if mine is base else points(change),
            "-" if rounds is None else str(rounds),
            "-" if rounds is None else f"{mine.spent[rounds - 1]:.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def codecs(way: plan.Way) -> str:
    """Name a way's codecs as one would type them."""
    if way.up is None:
        return ""
    return ", ".join("as they are" if codec is None else f"`{short(codec)}`" for codec in (way.up, way.down))


def short(codec: Any) -> str:
    """Write a codec without its defaults."""
    kind = type(codec).__name__
    if kind == "Eden":
        return f"Eden({codec.bits:g})" if codec.scale == "unbiased" else f'Eden({codec.bits:g}, "{codec.scale}")'
    return f'Packed("{codec.format}")' if kind == "Packed" else f"{kind}()"


def points(change: Interval) -> str:
    """Write a difference in points of accuracy."""
    return change.show(2, 1)


def reached(mine: Runs, base: Runs) -> int | None:
    """Find the first round whose mean accuracy is near float32's end."""
    near = np.flatnonzero(mine.accuracy.mean(axis=0) >= base.ends.mean() - NEAR)
    return int(near[0]) + 1 if len(near) else None


def draw(path: Path, runs: dict[plan.Way, Runs]) -> None:
    """Draw accuracy against rounds and against bytes."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for way in (way for way in plan.ALL if way.name in SHOWN):
        mine = runs[way]
        mean = mine.accuracy.mean(axis=0)
        left.plot(np.arange(1, len(mean) + 1), mean, label=way.name)
        right.plot(mine.spent / mine.asked[0, 0], mean, label=way.name)
    left.set(xlabel="round", ylabel="accuracy, per cent", ylim=(50, None))
    right.set(xlabel="megabytes for each client, both ways", xscale="log")
    right.legend(frameon=False, fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
