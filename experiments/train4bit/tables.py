"""The tables of the page, each from the records that there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import plan
import rates
from intervals import Interval, interval, relative, verdict
from runs import Records
from tasks import TASKS

Row = dict[str, Any]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pairs(records: Records, task: str, recipe: str, base: str = "float32") -> list[tuple[Row, Row]]:
    """Give the finished runs of a recipe with those of the same seed of another, the first; seed by seed."""
    ours, theirs = records.of(task, recipe), records.of(task, base)
    return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def measure(task: str) -> tuple[str, bool]:
    """Name what a task is judged by, and say whether more of it is better."""
    return ("nll", False) if TASKS[task].length else ("accuracy", True)


def change(records: Records, task: str, recipe: str, base: str = "float32", of: str | None = None) -> Interval | None:
    """Give the paired relative change of a task's measure, or of another number; None if fewer than 2 are finite."""
    name = of or measure(task)[0]
    both = [(a[name], b[name]) for a, b in pairs(records, task, recipe, base)]
    both = [pair for pair in both if None not in pair]
    return relative(*zip(*both, strict=True)) if len(both) > 1 else None


def mean(rows: Iterable[Row], name: str, unit: float = 1.0, digits: int = 3) -> str:
    """Write the mean of a number over runs; a run that diverged has none."""
    values = [row[name] for row in rows]
    finite = [value for value in values if value is not None]
    lost = len(values) - len(finite)
    return (f"{unit * np.mean(finite):.{digits}f}" if finite else "") + (f" ({lost} diverged)" if lost else "")


def judged(task: str, recipe: str, relative: Interval) -> str:
    """Give the plan's verdict."""
    margin = plan.VISION_MARGIN if recipe == "sun2020" and task in plan.VISION else plan.MARGIN
    return f"{verdict(relative, margin, more_is_better=measure(task)[1])} ({margin:.1%})"


def compared(records: Records, task: str, recipes: Iterable[str]) -> str:
    """Write how recipes did on a task, and their paired changes from float32."""
    name, _ = measure(task)
    head = ["recipe", "seeds", "accuracy, %", f"NLL{' per character' if name == 'nll' else ''}", "train loss"]
    head += [f"change of {'NLL' if name == 'nll' else 'accuracy'}, %", "verdict (margin)"]
    if name == "accuracy":
        head.insert(6, "change of NLL, %")
    rows = []
    for recipe in recipes:
        both = pairs(records, task, recipe)
        if len(both) < 2:
            continue
        ours = [a for a, _ in both]
        row = [recipe, str(len(both)), mean(ours, "accuracy", 100, 2), mean(ours, "nll"), mean(ours, "train_loss")]
        moved = change(records, task, recipe)
        if recipe == "float32" or moved is None:
            row += [""] * (len(head) - len(row))
        else:
            row.append(moved.show())
            if name == "accuracy":
                nll = change(records, task, recipe, of="nll")
                row.append(nll.show(1) if nll else "")
            row.append(judged(task, recipe, moved))
        rows.append(row)
    return f"**{TASKS[task].title}**\n\n{table(head, rows)}\n"


def differences(records: Records, task: str, against: Sequence[tuple[str, str]]) -> str:
    """Write paired differences between two recipes, to see whether the one is better than the other."""
    rows = []
    for recipe, base in against:
        row = [recipe, base, str(len(pairs(records, task, recipe, base)))]
        seen = [change(records, task, recipe, base, of) for of in ("accuracy", "nll", "train_loss")]
        if None not in seen:
            rows.append([*row, *(f"**{x.show()}**" if x.clear else x.show() for x in seen if x)])
    head = ["recipe", "minus", "seeds", "accuracy, %", "NLL, %", "train loss, %"]
    return f"**{TASKS[task].title}**\n\n{table(head, rows)}\n" if rows else ""


def settled(records: Records, task: str, recipe: str) -> str:
    """Write where the votes of GradScale brought the layers: the least and the greatest power, mean over seeds."""
    scales = [row["grad_scales"] for row in records.of(task, recipe).values()]
    return f"2^{np.mean([min(s) for s in scales]):.0f} to 2^{np.mean([max(s) for s in scales]):.0f}"


def depth(records: Records) -> str:
    """Write the changes of deeper networks, and what batch norm's running means had become."""
    rows = []
    for task in plan.DEEP:
        base = records.of(task, "float32").values()
        if len(base) < 2:
            continue
        row = [TASKS[task].title.removeprefix("MNIST-5k, "), mean(base, "accuracy", 100, 2)]
        for recipe in plan.DEEP_RECIPES[1:]:
            moved = change(records, task, recipe)
            lost = sum(a["nll"] is None for a, _ in pairs(records, task, recipe))
            row.append((moved.show() if moved else "") + (f" ({lost} diverged)" if lost else ""))
        phases = change(records, task, "one phase", "sun2020")
        rows.append([*row, phases.show() if phases else ""])
    head = ["layers", "float32, %", *(f"{name}, %" for name in plan.DEEP_RECIPES[1:]), "one phase minus sun2020, %"]
    return table(head, rows) + "\n"


def running_means(records: Records) -> str:
    """Write the largest running mean of batch norms, and what the test loses by them against its own batches' means."""
    rows = []
    for task in plan.DEEP:
        for recipe in plan.DEEP_RECIPES:
            kept = [r for r in records.of(task, recipe).values() if r["means"] and r["nll"] is not None]
            if len(kept) > 1:
                largest = [max(row["means"]) for row in kept if None not in row["means"]]
                gap = interval([row["nll"] - row["batch_nll"] for row in kept])
                title = TASKS[task].title.removeprefix("MNIST-5k, ").removesuffix(" with batch norm")
                rows.append([title, recipe, f"{np.mean(largest):.1f}", gap.show(4, 1)])
    return table(["layers", "recipe", "largest running mean", "NLL, running minus batch statistics"], rows) + "\n"


def rates_table(records: Records) -> str:
    """Write float32's NLL at every rate that was tried."""
    rows = []
    for name, task in TASKS.items():
        tried = rates.ADAM if task.adam else rates.DESCENT
        found = [
            (r, [row["nll"] for run, row in records.rows.items() if (run.task, run.rate) == (name, r)]) for r in tried
        ]
        cells = [f"{r:g}: {np.mean([x if x is not None else np.nan for x in v]):.3f}" for r, v in found if v]
        if cells:
            rows.append([task.title, "AdamW" if task.adam else "momentum", ", ".join(cells), f"{task.rate:g}"])
    return table(["task", "optimizer", "rate: NLL", "taken"], rows) + "\n" if rows else ""


GRADIENT_COLUMNS = {
    "dW cosine": "dW cos",
    "dW projection": "dW proj",
    "dW error": "dW error",
    "dW variance": "dW var",
    "dx cosine": "dx cos",
    "dx projection": "dx proj",
    "dx error": "dx error",
    "dx variance": "dx var",
    "E[x e]": "E[x e]",
    "excess": "excess",
    "zeros": "zeros",
}


def gradients(rows: Sequence[Row], network: str, scaling: str) -> Iterator[list[str]]:
    """Give a line for every quantizer: the mean over layers and moments."""
    kinds = dict.fromkeys((row["grid"], row["rounding"], row["phases"]) for row in rows)
    for kind in kinds:
        mine = [
            row
            for row in rows
            if (row["network"], row["scaling"]) == (network, scaling)
            and (row["grid"], row["rounding"], row["phases"]) == kind
        ]
        if mine:
            cells = [np.mean([float(row[name]) for row in mine]) for name in GRADIENT_COLUMNS]
            yield [
                kind[0],
                kind[1],
                str(kind[2]),
                *(
                    f"{cell:.3f}" if n != "E[x e]" else f"{1e3 * cell:+.2f}e-3"
                    for n, cell in zip(GRADIENT_COLUMNS, cells, strict=True)
                ),
            ]
