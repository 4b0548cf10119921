"""What is drawn and tabled: runs of one task and way, averaged over seeds, against samples, bytes and modelled time."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
from intervals import Interval, interval
from numpy.typing import NDArray

from . import plan
from .crew import Records

#: Bits per second of every rank's link, both ways at once.
LINKS = {"10 Mbit": 1e7, "100 Mbit": 1e8, "1 Gbit": 1e9, "10 Gbit": 1e10, "100 Gbit": 1e11}
#: Of fewer seeds there is no interval.
FEWEST = 3
#: How far below float32's end, in accuracy, a run is called near.
NEAR = 0.02
SHOWN = (plan.FLOAT32, plan.BFLOAT16, "Eden(4)", plan.ONE, plan.HALF, plan.SIGN, "PowerSGD, rank 2", plan.LOCAL)


class Curve:
    """All runs of one task, way and number of ranks.

    Parameters
    ----------
    records : Records
    task, way : str
    size : int
    """

    def __init__(self, records: Records, task: str, way: str, size: int = 4) -> None:
        self.task, self.way = task, way
        self.rows = records.of(task, way, size)
        self.base = records.of(task, plan.FLOAT32, size)

    def __bool__(self) -> bool:
        return bool(self.rows)

    def values(self, name: str) -> list[float]:
        """Give a number of every run; NaN where it was not finite."""
        return [np.nan if row[name] is None else row[name] for row in self.rows.values()]

    def mean(self, name: str) -> float:
        """Average a number over the runs."""
        return float(np.mean(self.values(name)))

    def differences(self, name: str, *, relative: bool = False) -> list[float]:
        """Compare with float32 of the same seed, where both are finite."""
        pairs = [(row[name], self.base[seed][name]) for seed, row in self.rows.items() if seed in self.base]
        return [a / b - 1 if relative else a - b for a, b in pairs if a is not None and b is not None]

    def change(self, name: str, *, relative: bool = False) -> Interval | None:
        """Give the interval of the differences; None of fewer than three: two small tests may agree by chance."""
        differences = self.differences(name, relative=relative)
        return interval(differences) if len(differences) >= FEWEST else None

    @property
    def lost(self) -> int:
        """How many runs did not stay finite."""
        return sum(row["nll"] is None for row in self.rows.values())

    @cached_property
    def bytes(self) -> float:
        """What the busiest rank receives for a step, on average."""
        return self.mean("received") / self.steps

    @property
    def steps(self) -> int:
        """How many steps a run has."""
        return int(next(iter(self.rows.values()))["steps"])

    @property
    def cpu(self) -> float:
        """Seconds of one core that a rank takes for a step, in the median run."""
        return median(self.values("cpu"))

    @property
    def fewer(self) -> float:
        """How many times fewer bytes than a float32 ring all_reduce brings."""
        size, numbers = (next(iter(self.rows.values()))[name] for name in ("size", "numbers"))
        return 8 * (size - 1) / size * numbers / self.bytes

    def points(self, column: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give steps, and the mean over seeds of a column of the curves: 1 train loss, 2 NLL, 3 accuracy."""
        table = np.array([row["curve"] for row in self.rows.values()], float)
        return table[0, :, 0], table[:, :, column].mean(axis=0)

    def seconds(self, link: float) -> float:
        """How long a step takes on a link, nothing overlapping."""
        return self.cpu + 8 * self.bytes / link

    def near(self, target: float) -> float | None:
        """After how many steps the tests on the way first reach an accuracy, on a straight line between two tests."""
        steps, seen = self.points(3)
        reached = np.flatnonzero(seen >= target)
        if not len(reached):
            return None
        at = int(reached[0])
        if at == 0:
            return float(steps[0])
        share = (target - seen[at - 1]) / (seen[at] - seen[at - 1])
        return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


def target(base: Curve) -> float:
    """Give the accuracy that is near float32's end."""
    return float(base.points(3)[1][-1]) - NEAR


def at_equal_bytes(path: Path, records: Records, tasks: tuple[str, ...]) -> None:
    """Draw the test's loss against samples, above, and against bytes, below."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(tasks), figsize=(4.2 * len(tasks), 7), sharey="col", layout="constrained")
    for column, task in enumerate(tasks):
        top, bottom = axes[:, column]
        batch = plan.EVERY[task].batch
        for number, way in enumerate(SHOWN):
            curve = Curve(records, task, way)
            if not curve:
                continue
            steps, loss = curve.points(2)
            style = {"label": way, "color": f"C{number}", "marker": ".", "linestyle": "--" if number == 0 else "-"}
            top.plot(steps * batch, loss, **style)
            bottom.plot(steps * curve.bytes / 1e6, loss, **style)
        top.set(title=plan.EVERY[task].title, xlabel="examples (rows of text)", yscale="log")
        bottom.set(xlabel="megabytes received by each of 4 ranks", xscale="log", yscale="log")
        # Before their statistics have settled, batch norms make losses above guessing.
        guess = math.log(plan.CLASSES[task in plan.TEXTS])
        top.set_ylim(top=min(top.get_ylim()[1], guess))
        for each in (top, bottom):
            each.grid(alpha=0.3, which="both")
            plain(each)
    for row in axes:
        row[0].set_ylabel("test loss, nats")
    axes[0, -1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plain(axes: Any) -> None:
    """Write the numbers of a logarithmic axis without powers of ten."""
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.tick_params(axis="y", which="both", labelsize="small")


def on_links(path: Path, records: Records, tasks: tuple[str, ...]) -> None:
    """Draw how long it takes on every link until a run is near float32's end."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 4), layout="constrained")
    links = np.array(list(LINKS.values()))
    for each, task in zip(axes, tasks, strict=True):
        base = Curve(records, task, plan.FLOAT32)
        if not base:
            continue
        for number, way in enumerate(SHOWN):
            curve = Curve(records, task, way)
            steps = curve.near(target(base)) if curve else None
            if steps is not None:
                seconds = [steps * curve.seconds(link) for link in links]
                each.plot(links, seconds, label=way, color=f"C{number}", marker=".", linestyle="-" if number else "--")
        each.set(title=plan.EVERY[task].title, xscale="log", yscale="log", xlabel="link, per second")
        each.set_xticks(links, LINKS, fontsize="small")
        each.set_xticks([], minor=True)
        each.grid(alpha=0.3, which="both")
        plain(each)
    axes[0].set_ylabel(f"seconds to {100 * NEAR:g} points below float32's end")
    axes[-1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def links_of(curve: Curve) -> list[Any]:
    """Give milliseconds of a step for every link."""
    return [1e3 * curve.seconds(link) for link in LINKS.values()]
