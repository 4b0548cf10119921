"""E5: HALP beside SGD, LP-SGD, SVRG and LP-SVRG, by lowbit.convex."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import plan
from records import Cell

from lowbit import convex, theory

L2 = 1e-3


@lru_cache
def problem(name: str) -> convex.LeastSquares | convex.Logistic:
    """Make a problem: its rows scaled so that the longest has the length 1."""
    if name == "synthetic":
        rng = np.random.default_rng(0)
        x = rng.standard_normal((1000, 100))
        x /= np.linalg.norm(x, axis=1).max()
        y = x @ rng.uniform(-1, 1, 100) + 0.05 * rng.standard_normal(1000)
        return convex.LeastSquares(x, y)
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    x = (data.data - data.data.mean(0)) / data.data.std(0)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    x /= np.linalg.norm(x, axis=1).max()
    if name == "breast_cancer":
        return convex.Logistic(x, data.target, l2=L2)
    return convex.LeastSquares(x, (data.target - data.target.mean()) / data.target.std(), l2=L2)


@lru_cache
def minimum(name: str) -> Any:
    """Find the optimum once."""
    return problem(name).minimum()


def delta(name: str, bits: int) -> float:
    """Give the step of a fixed grid whose range is the first power of two beyond 1.25 times the largest of w*."""
    return 2.0 ** (math.ceil(math.log2(1.25 * np.abs(minimum(name).w).max())) + 1 - bits)


Method = Callable[..., Any]


def _median(name: str, run: Callable[[int], Any], keys: int) -> dict[str, Any]:
    """Run with several keys; the median gap at each point."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Which bits the theory covers is what is being looked at.
        warnings.simplefilter("ignore", convex.TheoryWarning)
        found = [run(key) for key in range(keys)]
    gaps = [np.where(np.isfinite(r.values), r.values - minimum(name).value, np.inf) for r in found]
    gaps = [np.pad(g, (0, max(map(len, gaps)) - len(g)), constant_values=np.inf) for g in gaps]
    return {"steps": np.asarray(found[0].steps), "gaps": np.maximum(np.median(gaps, 0), 0.0)}


def _runs(name: str) -> Iterator[tuple[str, Callable[[int, int], Any]]]:
    """Name the methods, each as a function of a key and of what steps are divided by."""
    p = problem(name)
    lr, mu = 0.25 / p.smoothness, p.strong_convexity
    epochs = math.ceil(plan.OUTERS * plan.INNER / p.shape[0])

    def loops(less: int) -> dict[str, Any]:
        return {"lr": lr, "outers": plan.OUTERS, "inner": max(1, plan.INNER // less)}

    yield "SGD", lambda key, less: convex.sgd(p, lr=lr, epochs=max(1, epochs // less), key=key)
    yield "SVRG", lambda key, less: convex.svrg(p, **loops(less), key=key)
    for bits in plan.BITS:
        step = delta(name, bits)
        yield (
            f"LP-SGD {bits}",
            lambda key, less, bits=bits, step=step: convex.lp_sgd(
                p, lr=lr, epochs=max(1, epochs // less), bits=bits, delta=step, key=key
            ),
        )
        yield (
            f"LP-SVRG {bits}",
            lambda key, less, bits=bits, step=step: convex.lp_svrg(p, **loops(less), bits=bits, delta=step, key=key),
        )
        for factor in plan.FACTORS:
            yield (
                f"HALP {bits}, {factor} mu",
                lambda key, less, bits=bits, factor=factor: convex.halp(
                    p, **loops(less), mu=factor * mu, bits=bits, rows="float", key=key
                ),
            )
        yield (
            f"HALP {bits}, 3 mu, integers",
            lambda key, less, bits=bits: convex.halp(p, **loops(less), mu=3 * mu, bits=bits, rows="rounded", key=key),
        )


def theorem() -> dict[str, Any]:
    """Give the settings under which HALP's theorem promises the rate gamma on the synthetic problem."""
    p = problem("synthetic")
    d, kappa = p.shape[1], p.smoothness / p.strong_convexity
    bits = max(16, math.ceil(theory.bits_halp(kappa, d, plan.GAMMA)))
    inner = math.ceil(theory.halp_inner(kappa, d, bits, plan.GAMMA))
    return {"lr": float(theory.halp_lr(p.smoothness, plan.GAMMA)), "inner": inner, "bits": bits}


def _as_proved(less: int) -> dict[str, Any]:
    p, how = problem("synthetic"), theorem()
    kept = {**how, "inner": max(1, how["inner"] // less)}
    run = lambda key: convex.halp(p, **kept, outers=plan.OUTERS, mu=p.strong_convexity, rows="float", key=key)  # noqa: E731
    return {**how, **_median("synthetic", run, plan.KEYS)}


def cells() -> Iterator[Cell]:
    """Every method on every problem, and HALP by the letter of its theorem."""
    for name in plan.PROBLEMS:
        for method, run in _runs(name):
            yield Cell(
                f"{name}, {method}",
                lambda less, name=name, run=run: _median(
                    name, lambda key: run(key, less), 1 if less > 1 else plan.KEYS
                ),
            )
    yield Cell("synthetic, HALP as the theorem says", _as_proved)


PARTS = {"centering": cells}
