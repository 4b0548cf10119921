"""The table at the end of the run: what fell out, with its standard error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from data import Images, count_shades
from network import FLOAT32, ONE_PHASE, TWO_PHASE, Array
from training import Results, Run
from workers import CHANNELS, WORKERS

import lowbit as lb

WIDTH = 37


def report(images: Images, results: Results) -> str:
    """Write the whole table as text."""
    learn, test = images.split(0)
    shades = count_shades(images.pixels)
    even, odd, both = rounding_errors()
    lines = [
        f"{images.title}: {len(learn.labels):,} images to learn from, {len(test.labels):,} to test on; "
        f"{results.seeds} paired seeds, {results.rounds} rounds.",
        "Mean +- standard error; differences are taken seed by seed.",
        "",
        f"The images in INT4: {shades.before} shades become {shades.after}; "
        f"the error is at most {shades.largest_error:.1%} of the range, {shades.rms_error:.1%} rms.",
        "",
        f"{'One worker':{WIDTH}}{'accuracy, %':>14}{'minus float32':>16}",
    ]
    for recipe, runs in results.alone.items():
        change = "" if recipe is FLOAT32 else spread(paired(runs, results.alone[FLOAT32]), sign=True)
        lines.append(f"{recipe.name:{WIDTH}}{spread(final(runs)):>14}{change:>16}")
    lines += [
        compare_phases(results),
        "Relative squared error of one rounding to radix-4, evenly over octaves:",
        f"{even:.3f} in the even phase, {odd:.3f} in the odd, {both:.3f} for the mean of the two.",
        "",
        f"{f'{WORKERS} workers, INT4 and radix-4 inside':{WIDTH}}{'accuracy, %':>14}{'minus float32':>16}"
        f"{'each sent':>14}{'squared error':>16}{'(exact)':>10}",
    ]
    base = results.together[CHANNELS[0]]
    for channel, runs in results.together.items():
        line = f"{channel.name:{WIDTH}}{spread(final(runs)):>14}"
        if channel.scheme is not None:
            exact = float(lb.onebit.squared_error(0.5, channel.scheme))
            line += f"{spread(paired(runs, base), sign=True):>16}"
            line += f"{runs[0].sent[-1]:>12,} B{np.nanmean([run.errors for run in runs]):>16.4f}{exact:>10.4f}"
        else:
            line += f"{'':16}{runs[0].sent[-1]:>12,} B{0:>16}{0:>10}"
        lines.append(line)
    lines.append("Squared error: of one number sent, on a range of length 1; exact: for the middle of the range.")
    for kind, runs in (results.alone | results.together).items():
        diverged = sum(run.skipped > 0 for run in runs)
        if diverged:
            lines.append(f"Diverged: {kind.name}, {diverged} of {results.seeds} runs.")
    return "\n".join(line.rstrip() for line in lines)


def compare_phases(results: Results) -> str:
    """Say what the second phase changed, and whether the run can tell."""
    change = paired(results.alone[TWO_PHASE], results.alone[ONE_PHASE])
    clear = abs(change.mean()) > 3 * change.std(ddof=1) / len(change) ** 0.5
    verdict = "more than 3 standard errors" if clear else "within 3 standard errors, this run cannot tell them apart"
    return f"Two phases minus one: {spread(change, sign=True)} points; {verdict}."


def final(runs: Sequence[Run]) -> Array:
    """Accuracy at the end of each run, in per cent."""
    return np.array([run.accuracies[-1] for run in runs])


def paired(runs: Sequence[Run], base: Sequence[Run]) -> Array:
    """Difference of each run from the run of the same seed, in points."""
    return final(runs) - final(base)


def spread(values: Array, *, sign: bool = False) -> str:
    """Write the mean and its standard error."""
    error = values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():{'+' if sign else ''}.2f} +- {error:.2f}"


def rounding_errors() -> tuple[float, float, float]:
    """Measure the squared relative error of each phase, and of the mean of both, evenly over three factors of 4."""
    x = 4 ** np.linspace(-1.5, 1.5, 3 * 2**16, endpoint=False, dtype=np.float32)
    even, odd = (lb.fake_quantize(x, grid, scale=1) for grid in ("radix4", "radix4_odd"))
    errors = [float(np.mean(np.square(q / x - 1, dtype=np.float64))) for q in (even, odd, (even + odd) / 2)]
    return errors[0], errors[1], errors[2]
