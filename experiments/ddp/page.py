"""Write the page, docs/results/distributed.md, of what there is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from intervals import verdict
from tables import table

import lowbit as lb

from . import figures, plan
from .crew import Records, missing
from .figures import Curve

HERE = Path(__file__).resolve().parent
SAID = {"as good": "**within**", "worse": "**beyond**", "undecided": "undecided"}
#: What `wire.keep` wrote, by way and number of ranks.
Wire = dict[tuple[str, int], dict[str, Any]]
PICTURED = ("mnist", "speech", "lstm")


def write(out: Path, records: Records) -> Path:
    """Write the page and its pictures."""
    out.mkdir(parents=True, exist_ok=True)
    resnet = counted(out / "distributed-wire.json")
    text = [introduction(records), margins(records, resnet)]
    drawn = tuple(task for task in PICTURED if Curve(records, task, plan.FLOAT32))
    if len(drawn) > 1:
        figures.at_equal_bytes(out / "distributed-bytes.png", records, drawn)
        figures.on_links(out / "distributed-links.png", records, drawn)
        text += [(HERE / "pictures.md").read_text()]
    text += [*samples(records), *near(records), *links(records), wire(records, resnet)]
    page = out / "distributed.md"
    page.write_text("\n\n".join(part.strip() for part in text if part) + "\n")
    return page


def introduction(records: Records) -> str:
    """Say what was run; what was found is written by hand about the runs that are committed."""
    full = any(row["steps"] >= plan.TASKS[task].steps for task in plan.TASKS for row in _rows(records, task))
    hours = sum(row["wall"] for row in records.rows.values()) / 3600
    facts = {"runs": len(records.rows), "hours": hours, "torch": torch.__version__, "lowbit": lb.__version__}
    left = len(missing((run for part in plan.PARTS for run in plan.runs(part)), records))
    facts["left"] = f"; {left} more of the plan's are left to be run" if left else ""
    text = (HERE / "introduction.md").read_text().format(**facts, min_numel=plan.MIN_NUMEL)
    return text + (HERE / "findings.md").read_text() if full else text


def _rows(records: Records, task: str) -> Iterator[dict[str, Any]]:
    return (row for run, row in records.rows.items() if run.task == task)


def margins(records: Records, resnet: Wire) -> str:
    """Hold the runs against the plan's margins."""
    rows = [
        *(line for task in plan.TASKS for line in accuracy_margin(records, task)),
        *(line for task in plan.TASKS for way in (plan.HALF, plan.QUARTER) for line in convergence(records, task, way)),
        *(line for task in (*plan.TASKS, *plan.LONG) for line in local_margin(records, task)),
        *(line for task in plan.TASKS for line in message_size(records, task)),
        *([size_row("ResNet-50's gradients", 1, resnet[plan.ONE, 4]["bits"])] if (plan.ONE, 4) in resnet else []),
    ]
    text = "## The margins\n\nWritten before the first run (`experiments/ddp/plan.py`): 4 ranks, gradient descent.\n"
    text += "The runs five times as long were added after a pilot's, and before the first of local steps.\n\n"
    return text + table(["margin", "task", "seeds", "seen", "verdict"], rows)


def accuracy_margin(records: Records, task: str) -> Iterator[list[str]]:
    """Hold one unbiased bit against float32's accuracy."""
    curve = Curve(records, task, plan.ONE)
    change = curve.change("accuracy")
    if change is not None:
        said = verdict(change, plan.POINTS / 100, more_is_better=True)
        name = f"`Eden(1)`: {plan.POINTS} points"
        yield [name, task, str(len(curve.rows)), f"{change.show()} points", SAID[said]]


def convergence(records: Records, task: str, way: str) -> Iterator[list[str]]:
    """Tell how far each run came of the way from guessing to where float32 ends."""
    curve = Curve(records, task, way)
    shares = list(converged(curve))
    if shares:
        met = "**converge**" if min(shares) >= plan.CONVERGED else "**do not**"
        if way == plan.QUARTER:
            met = f"({met.strip('*')})"
        seen = f"{min(shares):.1%} of the way, at the least"
        yield [f"`{way}`: {plan.CONVERGED:.0%} of the way", task, str(len(shares)), seen, met]


def converged(curve: Curve) -> Iterator[float]:
    """Give the shares; of a run with numbers that are not finite 0."""
    for seed, row in curve.rows.items():
        if seed not in curve.base:
            continue
        guess = math.log(plan.CLASSES[curve.task in plan.TEXTS])
        finite = row["nll"] is not None and all(None not in point for point in row["curve"])
        yield (guess - row["nll"]) / (guess - curve.base[seed]["nll"]) if finite else 0.0


def local_margin(records: Records, task: str) -> Iterator[list[str]]:
    """Hold local steps at one bit against float32 in every step."""
    curve = Curve(records, task, plan.LOCAL)
    name = "nll" if task in plan.TEXTS else "accuracy"
    change = curve.change(name, relative=True)
    if change is not None:
        said = SAID[verdict(change, plan.LOCAL_MARGIN, more_is_better=name == "accuracy")]
        enough = "" if curve.fewer >= plan.LOCAL_FEWER else f", under {plan.LOCAL_FEWER}"
        seen = f"{change.show()} % of {'NLL' if name == 'nll' else name}, {curve.fewer:.0f} times fewer bytes{enough}"
        margin = f"{plan.LOCAL}: {plan.LOCAL_MARGIN:.0%}, {plan.LOCAL_FEWER} times"
        yield [margin, task, str(len(curve.rows)), seen, said + (", **too many bytes**" if enough else "")]


def message_size(records: Records, task: str) -> Iterator[list[str]]:
    """Tell how much smaller than float32's numbers one-bit messages are."""
    curve = Curve(records, task, plan.ONE)
    if curve:
        yield size_row(task, len(curve.rows), curve.mean("bits"))


def size_row(name: str, runs: int, bits: float) -> list[str]:
    """Hold bits for each number against float32's."""
    met = "**within**" if 32 / bits >= plan.SMALLER else "**beyond**"
    return [f"1 bit: {plan.SMALLER} times smaller", name, str(runs), f"{32 / bits:.1f} times", met]


def samples(records: Records) -> Iterator[str]:
    """Table all ways at equal samples: 4 ranks, 2 ranks, AdamW."""
    yield (HERE / "samples.md").read_text()
    for size, tasks in ((4, plan.TASKS), (4, plan.LONG), (4, plan.ADAM), (2, plan.TASKS)):
        for task in tasks:
            curves = [Curve(records, task, way, size) for way in plan.WAYS]
            curves = [curve for curve in curves if curve]
            if curves:
                head = f"**{plan.EVERY[task].title}, {'AdamW, ' * (tasks is plan.ADAM)}{size} ranks**\n\n"
                yield head + table(
                    ["way", "seeds", "accuracy, %", "change", "NLL", "change, %", "train loss", "bits", "kB", "fewer"],
                    map(_sample, curves),
                )


def _sample(curve: Curve) -> list[str]:
    bits = curve.values("bits")[0]  # torch's ways, and sums of integers, have no messages
    lost = f" ({curve.lost} diverged)" if curve.lost else ""
    return [
        curve.way + lost,
        str(len(curve.rows)),
        f"{100 * curve.mean('accuracy'):.2f}",
        changed(curve, "accuracy"),
        f"{curve.mean('nll'):.4f}",
        changed(curve, "nll", 1),
        f"{curve.mean('train_loss'):.4f}",
        f"{bits:.2f}" if bits > 0 else "",
        f"{curve.bytes / 1e3:.3g}",
        _three(curve.fewer),
    ]


def changed(curve: Curve, name: str, digits: int = 2) -> str:
    """Write the change from float32: the interval, bold if it leaves out zero, or the mean alone of too few seeds."""
    relative = name == "nll"
    change = curve.change(name, relative=relative)
    if curve.way == plan.FLOAT32 or not curve.differences(name):
        return ""
    if change is None:
        return f"{100 * fmean(curve.differences(name, relative=relative)):+.{digits}f}"
    return f"**{change.show(digits)}**" if change.clear else change.show(digits)


def near(records: Records) -> Iterator[str]:
    """Table bytes and modelled time until a run is near float32's end."""
    text = (HERE / "near.md").read_text().format(near=100 * figures.NEAR)
    yield text
    for task in plan.TASKS:
        base = Curve(records, task, plan.FLOAT32)
        curves = [curve for way in plan.WAYS if (curve := Curve(records, task, way))] if base else []
        if len(curves) > 1:
            head = ["way", "examples" if task not in plan.TEXTS else "rows", "MB", *figures.LINKS]
            yield f"**{plan.EVERY[task].title}**\n\n" + table(head, _near(base, curves))


def _near(base: Curve, curves: Iterable[Curve]) -> Iterator[list[str]]:
    for curve in curves:
        steps = curve.near(figures.target(base))
        if steps is None:
            yield [curve.way, "-", "-", *["-"] * len(figures.LINKS)]
            continue
        seconds = [steps * curve.seconds(link) for link in figures.LINKS.values()]
        examples = steps * plan.EVERY[curve.task].batch
        yield [curve.way, f"{examples:.0f}", f"{steps * curve.bytes / 1e6:.3g}", *(f"{s:.3g}" for s in seconds)]


def links(records: Records) -> Iterator[str]:
    """Table the modelled time of a step."""
    yield (HERE / "links.md").read_text()
    for task in plan.TRIED:
        curves = [curve for way in plan.WAYS if (curve := Curve(records, task, way))]
        if curves:
            head = ["way", "computing", "beyond float32's", *figures.LINKS]
            base = Curve(records, task, plan.FLOAT32)
            rows = [[c.way, f"{1e3 * c.cpu:.1f}", coding(c, base), *map(_three, figures.links_of(c))] for c in curves]
            yield f"**{plan.EVERY[task].title}**\n\n" + table(head, rows)


def coding(curve: Curve, base: Curve) -> str:
    """Write the milliseconds that a way computes beyond float32's: encoding, decoding, and how its network computes."""
    return "" if curve.way == base.way or not base else f"{1e3 * (curve.cpu - base.cpu):+.1f}"


def _three(x: float) -> str:
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def counted(path: Path) -> Wire:
    """Read it."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return {(row["way"], row["size"]): row for row in rows}


def wire(records: Records, resnet: Wire) -> str:
    """Table what a rank receives in a step, by way, network and number of ranks."""
    head = ["way", "ResNet-50: bits", "MB, 2 ranks", "fewer", "MB, 4 ranks", "fewer"]
    head += [f"{task}, {size}" for size in (2, 4) for task in plan.TASKS if _any(records, task, size)]
    rows = []
    for way in plan.WAYS:
        cells = [way]
        for size in (2, 4):
            row = resnet.get((way, size))
            if size == 2:
                cells.append(f"{row['bits']:.3g}" if row and row["bits"] else "")
            cells += [f"{row['received'] / 1e6:.3g}", _three(_fewer(row))] if row else ["", ""]
        for size in (2, 4):
            for task in plan.TASKS:
                if _any(records, task, size):
                    curve = Curve(records, task, way, size)
                    cells.append(_three(curve.fewer) if curve else "")
        if any(cells[1:]):
            rows.append(cells)
    return (HERE / "wire.md").read_text() + "\n" + table(head, rows)


def _any(records: Records, task: str, size: int) -> bool:
    return bool(records.of(task, plan.FLOAT32, size))


def _fewer(row: dict[str, Any]) -> float:
    return 8 * (row["size"] - 1) / row["size"] * row["numbers"] / row["received"]
