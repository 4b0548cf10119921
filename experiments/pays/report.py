"""Write the page of tables and the picture of what there is."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import costs
import plan
from costs import Speeds
from plan import Seen

from lowbit import _core

PAGE = Path(__file__).with_name("page.md")


def write(out: Path, kept: dict[str, Any]) -> Path:
    """Write pays.md and pays.png; return the page's path."""
    done = [(cell, kept["cells"][cell.title]) for cell in plan.cells() if cell.title in kept["cells"]]
    seen = [row for cell, record in done for row in plan.judged(cell, record["runs"])]
    measured = kept["costs"]
    speeds = costs.speeds_of(measured)
    told = "by name, and changed nothing" if kept["late"] == plan.REFUSED else f"NOT as promised: {kept['late']}"
    page = out / "pays.md"
    page.write_text(
        PAGE.read_text().format(
            minutes=sum(record["seconds"] for _, record in done) / 60,
            machine=platform.machine(),
            level=_core.cpu_level(),
            message=1e6 * measured["message"],
            others=measured["others"],
            speeds=speeds_table(measured),
            even=even_table(speeds),
            shares=shares_table(speeds),
            overlap=overlap_table(speeds),
            receiver=receiver_table(speeds, measured["message"]),
            margin=plan.MARGIN,
            bias=plan.BIAS_MARGIN,
            met=sum(row.met for row in seen) + (kept["late"] == plan.REFUSED),
            all=len(seen) + 1,
            late=f"A late message was refused {told}: `{kept['late']}`.\n",
            errors=errors_table(seen),
        )
    )
    draw(out / "pays.png", speeds, seen)
    return page


def lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def speeds_table(measured: dict[str, Any]) -> str:
    """Write what kernels need."""
    rows = [
        [f"`{codec!r}`", *(f"{1e9 * measured['speeds'][name][what]:.2f}" for what in ("encode", "decode", "mean"))]
        for name, codec in costs.CODECS.items()
    ]
    return lines(["codec", "encode", "decode", "decode_mean"], rows)


def even_table(speeds: Speeds) -> str:
    """Write the links of break-even."""
    rows = [
        [
            way.name,
            str(n),
            f"{way.error(n):.2g}",
            *(costs.bandwidth.gigabits(costs.break_even(way, n, cores)) for cores in costs.CORES),
        ]
        for way in costs.schemes(speeds)
        for n in costs.RANKS
    ]
    return lines(["way", "ranks", "error", *(f"{c} core{'s' * (c > 1)}" for c in costs.CORES)], rows)


def shares_table(speeds: Speeds) -> str:
    """Write times in shares of bf16's."""
    links = [f"{link / 1e6:g} Mbit/s" if link < 1e9 else f"{link / 1e9:g} Gbit/s" for link in costs.LINKS]
    rows = [
        [way.name, str(cores), *(f"{costs.share(way, 8, cores, link):.2g}" for link in costs.LINKS)]
        for way in costs.schemes(speeds)
        for cores in (1, 16)
    ]
    return lines(["way", "cores", *links], rows)


def overlap_table(speeds: Speeds) -> str:
    """Write what overlapping with the backward pass leaves."""
    way = next(way for way in costs.schemes(speeds) if way.name == "1 bit, all-gather")
    scale = costs.bandwidth.NUMBERS / 25e6  # the model's times are for that many numbers
    rows = []
    for backward in (0.0, 0.1, 0.3, 1.0, 3.0):
        cells = [
            f"{costs.overlapped(way, 4, 1, link, scale * backward, spare=spare):.2f}"
            for link in (1e9, 1e10)
            for spare in (False, True)
        ]
        rows.append([f"{backward:g} s", *cells])
    head = [f"{link} Gbit/s, {which} core" for link in (1, 10) for which in ("same", "spare")]
    return lines(["backward pass", *head], rows)


def receiver_table(speeds: Speeds, overhead: float) -> str:
    """Write what averaging so many messages takes of one aggregator."""
    rows = []
    for n in (10, 100, 1000, 10_000, 100_000, 1_000_000):
        received, link, work = costs.receiver(n, 25e6, 1e9, speeds[costs.ONE], overhead)
        rows.append([f"{n:,}", f"{received / 1e9:,.3g} GB", duration(link), duration(work)])
    return lines(["messages", "received", "the link", "one core"], rows)


def duration(seconds: float) -> str:
    """Write a time in a unit that suits it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


def errors_table(seen: Sequence[Seen]) -> str:
    """Write every number beside its promise, by part."""
    text = []
    for part in dict.fromkeys(row.part for row in seen):
        rows = [
            [
                row.cell,
                f"{int(row.name):,} senders" if row.name.isdigit() else row.name,
                str(row.runs),
                f"{row.promised:.3g}",
                f"{row.mean:.3g} ± {row.half:.2g}",
                f"{row.mean / row.promised:.3f}",
                "met" if row.met else "MISSED",
            ]
            for row in seen
            if row.part == part
        ]
        head = ["", "", "runs", "promised", "found", "found / promised", ""]
        text += [f"\n### {part.capitalize()}\n", lines(head, rows)]
    return "\n".join(text)


def draw(path: Path, speeds: Speeds, seen: Sequence[Seen]) -> None:
    """Draw break-even, errors against senders, and all that was found over what was promised."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained")
    way = next(way for way in costs.schemes(speeds) if way.name == "1 bit, all-gather")
    links = np.geomspace(1e7, 1e11, 100)
    for cores in costs.CORES:
        shares = [costs.share(way, 4, cores, link) for link in links]
        left.plot(links / 1e9, shares, label=f"{cores} core{'s' * (cores > 1)} a rank")
    left.axhline(1, color="black", lw=1)
    left.axhspan(1, 100, color="tab:red", alpha=0.08)
    left.text(0.012, 1.2, "fewer bits lose", color="tab:red")
    left.set(xscale="log", yscale="log", xlabel="link, Gbit/s", ylabel="share of bf16's time", ylim=(0.08, 50))
    left.set_title("Eden(1), 4 ranks, all-gather, kernels alone, no overlap", fontsize=11)
    left.legend(frameon=False)

    flat = [row for row in seen if row.part == "flat"]
    for colour, cell in zip(
        ("tab:blue", "tab:red", "tab:orange"), dict.fromkeys(row.cell for row in flat), strict=False
    ):
        rows = sorted((row for row in flat if row.cell == cell), key=lambda row: int(row.name))
        counts = [int(row.name) for row in rows]
        middle.errorbar(
            counts,
            [row.mean for row in rows],
            [row.half for row in rows],
            fmt="o",
            ms=4,
            color=colour,
            label=cell.replace("`", ""),
        )
        middle.plot(counts, [row.promised for row in rows], color=colour, lw=1)
    for marker, upper in (("s", "1, 1, 1"), ("^", "1, 4, 8")):
        rows = [row for row in seen if row.part == "tree" and f": {upper};" in row.cell]
        middle.plot(
            [1e6] * len(rows),
            [row.mean for row in rows],
            marker,
            color="black",
            label=f"tree, 100 x 100 x 100, {upper} bits",
        )
    middle.set(xscale="log", yscale="log", xlabel="senders", ylabel="squared error of the mean")
    middle.set_title("Alike vectors: found (dots), promised (lines)", fontsize=11)
    middle.legend(frameon=False, fontsize=8.5, loc="lower left")

    low, high = 0.0, 1.4
    names = list(dict.fromkeys(row.part for row in seen))
    for k, part in enumerate(names):
        rows = [row for row in seen if row.part == part]
        where = k + (np.arange(len(rows)) + 0.5) / len(rows) * 0.8 - 0.4
        shares = np.array([row.mean / row.promised for row in rows])
        halves = [row.half / row.promised for row in rows]
        right.errorbar(where, shares, halves, fmt="o", ms=3, lw=1)
        for x, share in zip(where[shares > high], shares[shares > high], strict=True):
            right.annotate(f"{share:.1f} ↑", (x, high), ha="center", va="top")
    right.set_xticks(range(len(names)), names, rotation=30)
    right.axhspan(1 - plan.MARGIN, 1 + plan.MARGIN, color="0.9")
    right.set(ylabel="found / promised", ylim=(low, high))
    right.set_title("Everything, and the margin", fontsize=11)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
