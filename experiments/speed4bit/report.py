"""The page of the results: tables, a plot, and the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from contenders import INFERENCE, TITLES, TRAINING

HERE = Path(__file__).parent
COLORS = {"bfloat16": "#8a8a8a", "int8": "#c9a227", "simulated": "#7fb3d5", "integer": "#b03a2e"}


def ratios(row: dict[str, Any], name: str) -> np.ndarray:
    """How many times as fast as float32 a contender was, in each round."""
    ms = {key: np.array(times) for key, times in row["ms"].items()}
    whole = np.median(ms["float32"]) if len(ms[name]) < len(ms["float32"]) else ms["float32"]
    return whole / ms[name]


def line(row: dict[str, Any]) -> str:
    """One measurement as a line."""
    head = f"{row['what']} {row['case']}, {row['threads']} threads ({row['kernel']}):"
    if "parts" in row:
        return head + "".join(f" {name} {ms:.1f} ms" for name, ms in row["parts"].items())
    return head + "".join(f" {name} {np.median(ms):.2f} ms" for name, ms in row["ms"].items())


def write(out: Path, rows: list[dict[str, Any]]) -> Path:
    """Write speed4bit.md and speed4bit.png."""
    page = [(HERE / "introduction.md").read_text(), "![Speed beside float32](speed4bit.png)\n"]
    page += [(HERE / "findings.md").read_text()]
    for cpu in dict.fromkeys(row["cpu"] for row in rows):
        own = [row for row in rows if row["cpu"] == cpu]
        page.append(f"## {cpu}, kernel `{own[0]['kernel']}`\n")
        for what, names in (("training", TRAINING), ("inference", INFERENCE)):
            page += table(what, names, [row for row in own if row["what"] == what])
        page += parts([row for row in own if row["what"] == "shares"])
    plot(out / "speed4bit.png", rows)
    path = out / "speed4bit.md"
    path.write_text("\n".join(page))
    return path


def table(what: str, names: tuple[str, ...], rows: list[dict[str, Any]]) -> list[str]:
    """Milliseconds, and how many times as fast as float32."""
    if not rows:
        return []
    title = {"training": "A training step", "inference": "Inference"}[what]
    lines = [
        f"### {title}",
        "",
        "| network | threads | float32, ms | " + " | ".join(TITLES[n] for n in names[1:]) + " |",
    ]
    lines.append("|---|---|---|" + "---|" * (len(names) - 1))
    for row in rows:
        cells = []
        for name in names[1:]:
            if name not in row["ms"]:
                cells.append("not timed")
                continue
            low, middle, high = np.quantile(ratios(row, name), [0.25, 0.5, 0.75])
            cells.append(f"{np.median(row['ms'][name]):.2f} ms, {middle:.2f}x ({low:.2f}-{high:.2f})")
        first = f"{np.median(row['ms']['float32']):.2f}"
        lines.append(f"| {row['case']} | {row['threads']} | {first} | " + " | ".join(cells) + " |")
    if any("mj" in row for row in rows):
        lines += ["", "Millijoules of the processor's package (RAPL):", ""]
        lines += [f"* {row['case']}: {row['mj']}" for row in rows if "mj" in row]
    return [*lines, ""]


def parts(rows: list[dict[str, Any]]) -> list[str]:
    """Where the time of a step on integers goes."""
    if not rows:
        return []
    names = list(rows[0]["parts"])
    lines = ["### Where a step's time goes", "", "One thread, 4 bits on integers.", ""]
    lines += ["| network | step, ms | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in rows:
        total = sum(row["parts"].values())
        shares = " | ".join(f"{row['parts'][name] / total:.0%}" for name in names)
        lines.append(f"| {row['case']} | {total:.1f} | {shares} |")
    return [*lines, ""]


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """How many times as fast as float32, one thread."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    for axis, what, names in zip(axes, ("training", "inference"), (TRAINING, INFERENCE), strict=True):
        own = [row for row in rows if row["what"] == what and row["threads"] == 1]
        for i, name in enumerate(names[1:]):
            shift = (i - (len(names) - 2) / 2) * 0.2
            middles = [float(np.median(ratios(row, name))) if name in row["ms"] else 0.0 for row in own]
            axis.barh(np.arange(len(own)) + shift, middles, 0.19, color=COLORS[name], label=TITLES[name])
        axis.axvline(1.0, color="black", linewidth=1)
        axis.set_yticks(range(len(own)), [row["case"] for row in own], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("times as fast as float32 (one thread)")
        axis.set_title({"training": "A training step", "inference": "Inference"}[what])
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=2, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
