"""What every format loses on numbers of three shapes: docs/results/formats.md and formats.png.

Run ``make experiments``, or ``python experiments/formats.py`` where lowbit and matplotlib are installed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lowbit as lb
from lowbit._compare import ComparisonRow

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
NUMBERS = 1 << 18
#: None: one scale for the array, or the format's own block.
BLOCKS = (None, 256, 128, 64, 32, 16)

Draw = Callable[[np.random.Generator, int], NDArray[Any]]
SHAPES: dict[str, Draw] = {
    "Gaussian": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "lognormal": lambda rng, n: rng.lognormal(size=n) * rng.choice([-1.0, 1.0], n),
}


@dataclass(frozen=True)
class Measured:
    """One format on numbers of one shape."""

    default: ComparisonRow
    best: ComparisonRow


def cost(row: ComparisonRow) -> float:
    """Squared error times 4^bits: what is left when a bit more has to divide the squared error by four."""
    return row.error * 4**row.bits_per_number


#: Beside radix4 and luq4: which base is best, and whether a zero is worth its code.
BASES = [lb.radix_format(2, 3), lb.radix_format(8, 3), lb.radix_format(4, 3, zero=False)]


def names() -> list[str]:
    """List the formats that have a sign, as the numbers do."""
    return [name for name in lb.formats() if lb.get_format(name).signed] + [fmt.name for fmt in BASES]


def ways(fmt: lb.Format) -> list[dict[str, Any]]:
    """List the rules and block sizes that a format can be tried with."""
    blocks = (None,) if fmt.scale_format else BLOCKS
    # A scale of 1 is the same in every block.
    return [
        {"scale": rule, "block_size": size}
        for rule in fmt.scale_rules
        for size in blocks
        if rule != "one" or size is None
    ]


def measure(n: int = NUMBERS) -> dict[str, dict[str, Measured]]:
    """Try every format on every shape: ``result[shape][format]``."""
    results: dict[str, dict[str, Measured]] = {}
    for seed, (shape, draw) in enumerate(SHAPES.items()):
        x = draw(np.random.default_rng(seed), n).astype(np.float32)
        defaults = lb.compare(x, names())
        results[shape] = {}
        for name, default in zip(names(), defaults, strict=True):
            tried = lb.compare(x, [(name, way) for way in ways(lb.get_format(name))])
            results[shape][name] = Measured(default, min(tried, key=cost))
    return results


INTRODUCTION = """# Formats: what they lose

Made by `make experiments` (`experiments/formats.py`; seconds). {n:,} independent numbers of each shape:
Gaussian, Laplace, and lognormal with a random sign (the exponential of a Gaussian: a few numbers are far larger than
the rest, as in gradients). The error is relative and squared, sum (y - x)^2 / sum x^2, of rounding to nearest. Bits
count codes and scales.

![Grids of formats, and the relative error of numbers of each magnitude](formats.png)

On the left all grids are in units of their own scale; on the right in units of their largest value, to which the rule
`amax` brings the largest number. Integers are fine near the top and have nothing far below; floats lose the same
share of every number until they underflow.
"""

DEFAULT = """
## At the format's own rule

| format | scale | block | bits | Gaussian | Laplace | lognormal |
|---|---|---|---|---|---|---|
"""

BEST = """
## At the rule and block that pay best

Smaller blocks lose less and cost more. A bit more divides the squared error of a good quantizer by about four, so
each format is shown at the rule and the block ({blocks} numbers, or one scale for all) of least error x 4^bits. No
code for independent Gaussian numbers brings that below 1 (Shannon's limit): the last column is log4 of it, the bits
for each number that the format spends above the limit.

| format | Gaussian | Laplace | lognormal | bits above the limit, Gaussian |
|---|---|---|---|---|
"""


def shown(row: ComparisonRow) -> str:
    """Write an error, and the rule, block and bits that gave it."""
    shared = "" if row.block == "array" else f", {row.block}"
    return f"{row.error:.2e} ({row.scale}{shared}; {row.bits_per_number:.4g})"


def report(results: dict[str, dict[str, Measured]]) -> str:
    """Write the page."""
    text = INTRODUCTION.format(n=NUMBERS) + remarks(results) + DEFAULT
    for name in names():
        rows = [results[shape][name].default for shape in SHAPES]
        errors = " | ".join(f"{row.error:.2e}" for row in rows)
        text += f"| `{name}` | {rows[0].scale} | {rows[0].block} | {rows[0].bits_per_number:.4g} | {errors} |\n"
    text += BEST.format(blocks=", ".join(str(size) for size in BLOCKS if size))
    for name in names():
        rows = [results[shape][name].best for shape in SHAPES]
        cells = [*map(shown, rows), f"{math.log(cost(rows[0]), 4):.2f}"]
        text += f"| `{name}` | {' | '.join(cells)} |\n"
    return text


REMARKS = """
* One scale for all Gaussian numbers: `int4` by `amax` loses {int4}, since few numbers are near the largest. `sawb`
  clips some and loses {int4_best}; blocks do as much for any format, at a price in bits.
* Where a few numbers are far larger (lognormal), `int4` with one scale loses {int4_wild}: nearly all becomes 0. An
  exponent in the format helps (`luq4` {luq4_wild}, `radix4`, coarser over twice the octaves, {radix4_wild}), and so do
  blocks: `nvfp4` loses {nvfp4} to {nvfp4_wild} of any of the three.
* In 8 bits `int8` loses {int8} of Gaussian numbers where `fp8_e4m3fn` loses {e4m3}, and {int8_wild} of lognormal ones
  where `fp8_e4m3fn` loses {e4m3_wild}: exponent bits pay where the range is wide.
* `four_over_six` takes {six:.0%} off the error of `nvfp4` on Gaussian numbers and {six_wild:.0%} on lognormal ones. For
  `mxfp4` the rule {mx} is better than `floor` with nearest rounding.
* `fp8_e5m2` is {e5m2:.2f} bits above the limit on Gaussian numbers: most of its exponents never occur.
"""


def remarks(results: dict[str, dict[str, Measured]]) -> str:
    """Say what the tables show, with their numbers."""
    plain, wild = results["Gaussian"], results["lognormal"]

    def percent(row: ComparisonRow) -> str:
        return f"{100 * row.error:.2g}%"

    def gain(results: dict[str, Measured]) -> float:
        return 1 - results["nvfp4"].best.error / results["nvfp4"].default.error

    assert plain["nvfp4"].best.scale == wild["nvfp4"].best.scale == "four_over_six"
    nvfp4 = sorted((results[shape]["nvfp4"].default for shape in SHAPES), key=lambda row: row.error)
    return REMARKS.format(
        int4=percent(plain["int4"].default),
        int4_best=percent(plain["int4"].best),
        int4_wild=percent(wild["int4"].default),
        luq4_wild=percent(wild["luq4"].default),
        radix4_wild=percent(wild["radix4"].default),
        nvfp4=percent(nvfp4[0]),
        nvfp4_wild=percent(nvfp4[-1]),
        int8=percent(plain["int8"].default),
        e4m3=percent(plain["fp8_e4m3fn"].default),
        int8_wild=percent(wild["int8"].default),
        e4m3_wild=percent(wild["fp8_e4m3fn"].default),
        six=gain(plain),
        six_wild=gain(wild),
        mx=f"`{plain['mxfp4'].best.scale}`",
        e5m2=math.log(cost(plain["fp8_e5m2"].best), 4),
    )


def draw() -> None:
    """Draw grids on a logarithmic scale beside errors against magnitudes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=(1, 1.15))
    lb.plot.logarithmic(["int4", "radix4", "luq4", "fp4_e2m1", "nf4", "int8", "fp8_e4m3fn", "fp8_e5m2"], ax=left)
    lb.plot.error(["int4", "radix4", "luq4", "fp4_e2m1", "int8", "fp8_e4m3fn"], octaves=18, ax=right)
    figure.savefig(RESULTS / "formats.png", dpi=110)


def main() -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    results = measure()
    draw()
    (RESULTS / "formats.md").write_text(report(results))
    print(f"{RESULTS / 'formats.md'}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
