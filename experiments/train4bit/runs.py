"""Train once for every (task, recipe, seed), a line of JSON for each run that is finished; none is ever run twice.

Runs of one seed share split, first weights and the order of the examples, whatever the recipe. A task's learning rate
is that of float32 (`rates.py`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import recipes
import torch
from tasks import TASKS, batches, tests
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import lowbit as lb

WARM_UP = 0.05
LAST = 0.2  # the share of the steps over which the train loss is averaged
QUICK = 0.1


@dataclass(frozen=True)
class Run:
    """What makes one run: a name of `TASKS`, a name of `recipes.find` or "float32", a seed.

    `rate` is a learning rate in place of the task's own.
    """

    task: str
    recipe: str
    seed: int
    rate: float | None = None


def rate_at(step: int, steps: int) -> float:
    """Give the share of the highest rate: a straight climb, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))


def train(run: Run, *, quick: bool = False) -> dict[str, Any]:
    """Train and test one network.

    Parameters
    ----------
    run : Run
    quick : bool
        Stop after a tenth of the steps.

    Returns
    -------
    dict
        Ready for JSON: `nll` and `accuracy` (of 1) on the test, `train_loss` over the last fifth of the steps (of
        batches, as trained), `seconds` of training, `grad_scales` (log2, one per quantized product), `means` (the
        largest running mean of each batch norm), `batch_nll` (the test's with the statistics of its own batches, if
        there are batch norms). Numbers of a run that left the finite ones are None.
    """
    torch.set_num_threads(1)
    lb.set_num_threads(1)
    task = TASKS[run.task]
    if run.rate is not None:
        task = replace(task, rate=run.rate)
    steps = max(2, round(task.steps * QUICK)) if quick else task.steps
    data = task.data(run.seed)
    torch.manual_seed(run.seed)
    model, groups = recipes.prepared(task.model(data.classes), run.recipe, task.decay)
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups, task.rate) if task.adam else torch.optim.SGD(groups, task.rate, momentum=0.9)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    losses, start = [], time.perf_counter()
    for x, y in batches(task, data, steps, run.seed):
        loss = cross_entropy(model(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
    seconds = time.perf_counter() - start
    last = losses[-round(LAST * steps) :] if len(losses) == steps else [math.nan]
    nll, accuracy = evaluate(model, tests(task, data))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    record = {
        **vars(run),
        "nll": finite(nll),
        "accuracy": accuracy,
        "train_loss": finite(float(np.mean(last))),
        "seconds": round(seconds, 2),
        "grad_scales": [math.log2(b.item()) for n, b in model.named_buffers() if n.endswith(".grad_scale")],
        "means": [finite(m.running_mean.abs().max().item()) for m in norms],
        "batch_nll": None,
    }
    if norms:
        for norm in norms:
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = None
        record["batch_nll"] = finite(evaluate(model, tests(task, data))[0])
    return record


def finite(x: float) -> float | None:
    """Give None for what JSON cannot say."""
    return x if math.isfinite(x) else None


@torch.no_grad()
def evaluate(model: nn.Module, pieces: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Give the mean negative log-likelihood, in nats, and the share of right answers."""
    model.eval()
    total = right = count = 0.0
    for x, y in pieces:
        scores, labels = model(x).flatten(0, -2), y.flatten()
        total += cross_entropy(scores, labels, reduction="sum").item()
        right += (scores.argmax(1) == labels).sum().item()
        count += len(labels)
    return total / count, right / count


class Records:
    """The finished runs, in a file of one JSON object a line.

    Parameters
    ----------
    path : pathlib.Path
        The file, which need not exist.
    quick : bool
        Whether new runs stop after a tenth of the steps.
    """

    def __init__(self, path: Path, *, quick: bool = False) -> None:
        self.path, self.quick = path, quick
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = {Run(*(row[k] for k in ("task", "recipe", "seed", "rate"))): row for row in map(json.loads, lines)}

    def add(self, run: Run, row: dict[str, Any]) -> None:
        """Write a record down at once."""
        self.rows[run] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, task: str, recipe: str) -> dict[int, dict[str, Any]]:
        """Give the records of a task and a recipe by their seeds, at the task's own rate."""
        return {run.seed: row for run, row in self.rows.items() if run == Run(task, recipe, run.seed)}


def run_all(runs: Iterable[Run], records: Records, jobs: int, title: str) -> None:
    """Train what has no record yet, `jobs` at a time, and record each run as it ends."""
    left = [run for run in dict.fromkeys(runs) if run not in records.rows]
    # A process that was forked would inherit torch's threads; each gets one core.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool, tqdm(total=len(left), desc=title) as bar:
        waiting = {pool.submit(train, run, quick=records.quick): run for run in left}
        try:
            for future in as_completed(waiting):
                run = waiting[future]
                records.add(run, future.result())
                bar.set_postfix_str(f"{run.task}, {run.recipe}, seed {run.seed}")
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
