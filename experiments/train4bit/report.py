"""Write the page, docs/results/train4bit.md, of what there is."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures
import plan
import recipes
import tables
import torch
from runs import Records
from tasks import TASKS

import lowbit as lb

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]


def keep(path: Path, collect: Callable[[], list[Row]]) -> None:
    """Measure and write a file, unless it is there."""
    if path.exists():
        return
    rows = collect()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{x:.4g}" if isinstance(x, float) else x for name, x in row.items()})


def load(path: Path) -> list[Row]:
    """Read what `keep` wrote."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(part: str) -> str:
    """Say how a section is made."""
    return f"`python experiments/train4bit {part}`"


def write(out: Path, records: Records) -> Path:
    """Write the page and its figures."""
    folder = out / "train4bit"
    folder.mkdir(parents=True, exist_ok=True)
    hours = sum(row["seconds"] for row in records.rows.values()) / 3600
    text = (HERE / "introduction.md").read_text()
    text = text.format(
        runs=len(records.rows), hours=hours, torch=torch.__version__, lowbit=lb.__version__, findings=findings(records)
    )
    text += section_a(folder) + section_b(records, folder) + section_c(records, folder) + section_d(records)
    text += section_e(records, folder)
    text += f"\n## Learning rates\n\n{command('rates')}: float32 alone, two seeds that no comparison uses.\n\n"
    text += tables.rates_table(records)
    page = out / "train4bit.md"
    page.write_text(text)
    return page


def findings(records: Records) -> str:
    """Give what was written by hand about the runs that are committed; there is nothing to say about others."""
    return "" if records.quick else (HERE / "findings.md").read_text()


def section_a(folder: Path) -> str:
    """Write A: gradients rounded."""
    rows, deep = load(folder / "gradients.csv"), load(folder / "through.csv")
    if not rows:
        return ""
    text = (HERE / "gradients.md").read_text().format(command=command("gradients"))
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figures.gradients(rows, networks, folder / "gradients.png")
    head = ["grid", "rounding", "phases", *tables.GRADIENT_COLUMNS.values()]
    for network in networks:
        body = list(tables.gradients(rows, network, "gradscale"))
        text += f"\n**{TASKS[network].title}**, GradScale\n\n{tables.table(head, body)}\n"
    text += "\nRadix-4 to nearest in two phases, by scale:\n"
    for network in networks:
        body = [
            [scaling, *line[3:]]
            for scaling in dict.fromkeys(row["scaling"] for row in rows)
            for line in tables.gradients(rows, network, scaling)
            if line[:3] == ["radix-4", "nearest", "2"]
        ]
        text += f"\n**{TASKS[network].title}**\n\n{tables.table(['scale', *head[3:]], body)}\n"
    if deep:
        figures.through(deep, folder / "through.png")
    return text


def section_b(records: Records, folder: Path) -> str:
    """Write B: recipes, and the switches of one."""
    text = ""
    parts = [tables.compared(records, task, ("float32", *recipes.core(), plan.FP8, plan.LATER)) for task in plan.TASKS]
    if any(records.of(task, "sun2020") for task in plan.TASKS):
        figures.compare(records, folder / "compare.png")
        text += (
            f"\n## B. Recipes in training\n\n{command('compare')}. Means, and paired changes from float32 with 95 %\n"
        )
        text += "intervals. The dotted line is the margin.\n\n![Changes from float32](train4bit/compare.png)\n\n"
        text += "\n".join(parts)
    if len(records.of(plan.LONGER, "sun2020")) > 1:
        text += f"\n{command('longer')}: not in the first plan.\n\n"
        text += tables.compared(records, plan.LONGER, ("float32", *recipes.core()))
    tried = closer(records, "pointwise fp8")
    if tried:
        text += f"\n### Switches\n\n{command('switches')}\n\n"
        for task in tried:
            text += tables.compared(records, task, ("float32", "sun2020", *recipes.switches())) + "\n"
        text += "Paired differences; those whose interval leaves out zero are bold.\n\n"
        against = [(name, "sun2020") for name in recipes.switches()]
        against += [("one phase, amax", "amax"), (f"one phase, 2^{recipes.FIXED}", f"2^{recipes.FIXED}")]
        text += "\n".join(tables.differences(records, task, against) for task in tried)
    return text


def closer(records: Records, recipe: str) -> list[str]:
    """Name the tasks on which switches, scales and grids were tried so far."""
    return [task for task in plan.CLOSER if len(records.of(task, recipe)) > 1]


def section_c(records: Records, folder: Path) -> str:
    """Write C: fixed scales."""
    tried = closer(records, "2^0")
    if not tried:
        return ""
    figures.curve(records, folder / "curve.png")
    text = (
        f"\n## C. GradScale beside fixed scales\n\n{command('curve')}. Bars, bands: standard deviations over seeds.\n"
    )
    text += "\n![Loss against fixed scales](train4bit/curve.png)\n\n"
    for task in tried:
        text += tables.compared(records, task, (*recipes.curve(), "amax", "sun2020"))
        text += f"\nThe votes brought the layers of `sun2020` to {tables.settled(records, task, 'sun2020')}.\n\n"
    return text


def section_d(records: Records) -> str:
    """Write D: grids of gradients."""
    names = [*recipes.bases(), "one phase, amax"]
    tried = closer(records, "INT4, nearest")
    if not tried:
        return ""
    text = (
        f"\n## D. Which base?\n\n{command('bases')}. Both gradients on one grid, scaled by amax; `one phase, amax` is\n"
    )
    text += "base 4 to nearest.\n\n"
    for task in tried:
        text += tables.compared(records, task, ("float32", *names, "sun2020")) + "\n"
        against = [(name, "one phase, amax") for name in recipes.bases()]
        text += tables.differences(records, task, against) + "\n"
    return text


def section_e(records: Records, folder: Path) -> str:
    """Write E: depth."""
    if not any(records.of(task, "sun2020") for task in plan.DEEP):
        return ""
    figures.depth(records, folder / "depth.png")
    text = f"\n## E. Depth\n\n{command('depth')}. MNIST-5k at 7 x 7; paired changes of accuracy from float32.\n\n"
    text += "![Train loss against depth](train4bit/depth.png)\n\n"
    return text + tables.depth(records) + "\n" + tables.running_means(records)
