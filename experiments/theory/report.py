"""Write the page, docs/results/theory.md, of what there is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import averages as averages_of
import centering
import figures
import numpy as np
import plan
import streams
from records import Records

import lowbit as lb
from lowbit import theory

HERE = Path(__file__).resolve().parent
Rows = dict[str, dict[str, Any]]


def table(head: Sequence[str], body: Iterable[Sequence[object]]) -> str:
    """Write a table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in body)]) + "\n"


def write(out: Path, records: Records) -> Path:
    """Write the page and its figures: of parts that are not finished nothing."""
    seconds = sum(row["seconds"] for row in records.rows.values())
    text = (
        (HERE / "introduction.md")
        .read_text()
        .format(cells=len(records.rows), minutes=seconds / 60, lowbit=lb.__version__, numpy=np.__version__)
    )
    if not records.quick:
        text += "\n" + (HERE / "findings.md").read_text()
    text += "\n## What was asked for\n\nWritten down before the runs, in `experiments/theory/plan.py`.\n\n"
    claims = plan.claims(records)
    text += table(
        ["", "claim", "seen", ""], ((c.part, c.text, c.seen, "met" if c.met else "**missed**") for c in claims)
    )
    for part, section in SECTIONS.items():
        rows = records.of(part)
        if all(cell.name in rows for cell in CELLS[part]()):
            text += "\n" + section(rows, out / "theory")
    page = out / "theory.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text)
    return page


def head(title: str, part: str) -> str:
    """Begin a section, with the command that makes it."""
    return f"## {title}\n\n`python experiments/theory {part}`. "


def measured(row: dict[str, Any]) -> str:
    """Write a gap with its standard error."""
    return f"{row['gap']:.3g} ± {row['error']:.1g}"


def dimension(rows: Rows, folder: Path) -> str:
    """Write E1."""
    figures.dimension(rows, folder / "dimension.png")
    text = head("E1. The gap does not grow with the dimension", "dimension") + (HERE / "e1.md").read_text()
    body = []
    for d in plan.DIMENSIONS:
        line: list[object] = [d]
        for sparse in (True, False):
            l1 = plan.x_l1(d, sparse=sparse)
            limit = plan.bound({"delta": plan.E1_DELTA}, lr=plan.E1_LR, noise=plan.E1_NOISE, x_l1=l1)
            gap = plan.expected(plan.E1_DELTA, l1, plan.E1_NOISE)
            line += [measured(rows[f"{'sparse' if sparse else 'dense'} {d}"]), f"{gap:.3g}", f"{limit:.3g}"]
        body.append(line)
    return text + table(["d", "sparse", "Gaussian", "T3", "dense", "Gaussian", "T3"], body)


def grids(rows: Rows, folder: Path) -> str:
    """Write E2."""
    figures.grids(rows, folder / "grids.png")
    text = head("E2. Steps that grow with the number", "grids") + (HERE / "e2.md").read_text()
    body = []
    for power in (None, *plan.E2_ZETAS):
        name = "equal steps" if power is None else f"zeta 2^-{power}"
        zeta, delta = plan.steps_of(power)
        limit = plan.bound(
            {"zeta": zeta, "delta": delta},
            lr=plan.E2_LR,
            noise=plan.E2_NOISE,
            x_l1=math.sqrt(plan.NONZERO),
            weights=figures.WEIGHTS,
        )
        body.append(
            [name, f"{delta:.2g}", *(measured(rows[f"d {d}, {name}"]) for d in plan.E2_DIMENSIONS), f"{limit:.2g}"]
        )
    return text + table(["grid", "delta", *(f"d = {d}" for d in plan.E2_DIMENSIONS), "T3 with zeta"], body)


def slope(rows: Rows, folder: Path) -> str:
    """Write E3."""
    figures.slope(rows, folder / "slope.png")
    text = head("E3. The gap against the step", "slope") + (HERE / "e3.md").read_text()
    body, l1 = [], math.sqrt(plan.NONZERO)
    for k in plan.E3_POWERS:
        row = rows[f"delta 2^-{k}"]
        limit = plan.bound(row, lr=plan.E3_LR, noise=plan.E1_NOISE, x_l1=l1)
        gaussian = plan.expected(row["delta"], l1, plan.E1_NOISE)
        body.append([f"2^-{k}", row["bits"], measured(row), f"{gaussian:.3g}", f"{limit:.3g}"])
    return text + table(["delta", "bits", "gap", "Gaussian", "T3"], body)


def exponents(rows: Rows, folder: Path) -> str:
    """Write E4."""
    figures.exponents(rows, folder / "exponents.png")
    text = head("E4. Bits for the exponent", "exponents") + (HERE / "e4.md").read_text()
    most = max(shares[-1] for shares in plan.E4_BITS.values())
    body = [
        [
            bits,
            *(measured(rows[f"{bits} bits, {e} for the exponent"]) if e in shares else "" for e in range(1, most + 1)),
        ]
        for bits, shares in plan.E4_BITS.items()
    ]
    return text + table(["bits", *(f"{e}" for e in range(1, most + 1))], body)


def gap_text(value: float | None) -> str:
    """Write a gap."""
    return "diverged" if value is None or value > 1e6 else "< 1e-15" if value < 1e-15 else f"{value:.0e}"


def centering_section(rows: Rows, folder: Path) -> str:
    """Write E5."""
    figures.loops(rows, folder / "loops.png")
    figures.bits(rows, folder / "bits.png")
    text = head("E5. HALP", "centering")
    how = centering.theorem()
    text += (HERE / "e5.md").read_text().format(**how, gamma=plan.GAMMA)
    sizes = []
    for name in plan.PROBLEMS:
        p = centering.problem(name)
        c = theory.constants(p)
        kappa = p.smoothness / p.strong_convexity
        sizes.append([name, *p.shape, f"{kappa:.0f}", f"{c.radius:.2g}", f"{centering.delta(name, 8):.3g}"])
        sizes[-1].append(theory.bits_halp(kappa, p.shape[1], 1.0))
    heads = ["problem", "n", "d", "L/mu", "max of w*", "delta at 8 bits", "bits that the theorem asks for"]
    text += table(heads, sizes) + "\n"
    for name in plan.PROBLEMS:
        text += f"**{name}**: f - f* at the end (start: {gap_text(rows[f'{name}, SVRG']['gaps'][0])}; "
        text += (
            f"SGD {gap_text(rows[f'{name}, SGD']['gaps'][-1])}, SVRG {gap_text(rows[f'{name}, SVRG']['gaps'][-1])})\n\n"
        )
        kinds = ["LP-SGD {}", "LP-SVRG {}", *(f"HALP {{}}, {factor} mu" for factor in plan.FACTORS)]
        kinds.append("HALP {}, 3 mu, integers")
        body = [
            [
                kind.format("").replace(" ,", ",").strip(),
                *(gap_text(rows[f"{name}, {kind.format(b)}"]["gaps"][-1]) for b in plan.BITS),
            ]
            for kind in kinds
        ]
        text += table(["", *(f"{b} bits" for b in plan.BITS)], body) + "\n"
    after = range(0, plan.OUTERS + 1, 2)
    text += "**synthetic**: f - f* after outer loops\n\n"
    shown = ["SVRG", "LP-SVRG 8", "HALP 6, 3 mu", "HALP 8, 1 mu", "HALP 8, 3 mu", "HALP 10, 3 mu", "HALP 16, 3 mu"]
    body = [[name, *(gap_text(rows[f"synthetic, {name}"]["gaps"][k]) for k in after)] for name in shown]
    return text + table(["", *map(str, after)], body)


def averages(rows: Rows, folder: Path) -> str:
    """Write E6."""
    figures.averages(rows, folder / "averages.png")
    text = head("E6. SWALP: averages below the grid's step", "averages") + (HERE / "e6.md").read_text()
    body = []
    for name in (*(f"delta 2^-{k}" for k in plan.E6_POWERS), "no rounding"):
        row = rows[f"least squares, {name}"]
        nearest = f"{row['delta'] ** 2 / 12:.1e}" if row["delta"] else ""
        body.append([name, f"{row['iterate']:.1e}", nearest, f"{row['average'][-1]:.1e}"])
    text += table(["least squares", "weights", "w* to nearest", "averages"], body) + "\n"
    body = []
    for k in sorted({*plan.E6_LOGISTIC, *plan.E6_LONGER}):
        short, longer = rows.get(f"logistic, delta 2^-{k}"), rows.get(f"longer, delta 2^-{k}")
        cells = ["", ""] if short is None else [f"{short['iterate']:.1e}", f"{short['average']:.1e}"]
        cells += [""] * 3 if longer is None else [f"{longer[kind]:.1e}" for kind in ("average", "together")]
        cells += [] if longer is None else [f"{figures.bias(longer):.1e}"]
        body.append([f"delta 2^-{k}", *cells])
    heads = ["logistic, f - f*", "weights", "averages", "8 times as long", "and of all runs", "bias"]
    return text + table(heads, body)


CELLS = {**streams.PARTS, **centering.PARTS, **averages_of.PARTS}
SECTIONS: dict[str, Callable[[Rows, Path], str]] = {
    "dimension": dimension,
    "grids": grids,
    "slope": slope,
    "exponents": exponents,
    "centering": centering_section,
    "averages": averages,
}
