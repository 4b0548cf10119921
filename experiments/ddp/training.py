"""One run: what every rank does."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict
from functools import lru_cache
from itertools import pairwise
from typing import Any

import recipes
import torch
import torch.distributed as dist
from datasets import Data
from runs import finite, rate_at
from tasks import Task, batches, tests
from torch import nn
from torch.nn.functional import cross_entropy

from .averaging import averaging
from .plan import EVERY, TESTS, WAYS, Run

#: The share of the steps over which the train loss at the end is averaged.
LAST = 0.1
#: Tests on the way look at so many of the test's batches of 250.
PIECES = 2


@lru_cache(maxsize=2)
def _data(task: str, seed: int) -> Data:
    return EVERY[task].data(seed)


def train(rank: int, run: Run, steps: int | None = None) -> dict[str, Any]:
    """Train and test a network on all ranks.

    Parameters
    ----------
    rank : int
    run : Run
    steps : int, optional
        In place of the task's.

    Returns
    -------
    dict
        Ready for JSON, the same on every rank but for `cpu` (seconds of this process in training, for each step) and
        `received` (bytes of this rank): `nll` and `accuracy` (of 1) on the whole test at the end, `train_loss`, the
        mean of the last tenth; `steps`; `bits` of a message for each number; `numbers` of the model; `curve`: step,
        train loss since the point before, and negative log-likelihood and accuracy on a part of the test. Numbers that
        are not finite are None.
    """
    torch.set_num_threads(1)
    task, way, size = EVERY[run.task], WAYS[run.way], dist.get_world_size()
    steps = steps or task.steps
    data = _data(run.task, run.seed)
    torch.manual_seed(run.seed)
    model, groups = recipes.prepared(task.model(data.classes), way.recipe, task.decay)
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups, task.rate) if task.adam else torch.optim.SGD(groups, task.rate, momentum=0.9)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    losses, curve, cpu = [], [], 0.0
    with warnings.catch_warnings():
        # A round that is skipped shows in the losses.
        warnings.simplefilter("ignore", UserWarning)
        made = averaging(way, model, optimizer, run.seed)
        begun, start = time.perf_counter(), time.process_time()
        for step, (x, y) in enumerate(batches(task, data, steps, run.seed), 1):
            loss = cross_entropy(made.model(x[rank::size]).flatten(0, -2), y[rank::size].flatten())
            made.optimizer.zero_grad()
            loss.backward()
            made.optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            if step % max(steps // TESTS, 1) == 0:
                cpu += time.process_time() - start
                curve.append([step, *scored(task, model, data, PIECES)])
                start = time.process_time()
    wall = time.perf_counter() - begun
    nll, accuracy = scored(task, model, data, None)
    means = torch.stack(losses)
    dist.all_reduce(means)
    means /= size
    behind = [0, *(point[0] for point in curve)]
    since = [means[a:b].mean().item() for a, b in pairwise(behind)]
    return {
        **asdict(run),
        "steps": steps,
        "nll": finite(nll),
        "accuracy": accuracy,
        "train_loss": finite(means[-max(round(LAST * steps), 1) :].mean().item()),
        "numbers": sum(p.numel() for p in model.parameters()),
        "received": made.received(),
        "bits": finite(made.message()),
        "cpu": cpu / steps,
        "wall": round(wall, 2),
        "curve": [[p[0], *map(_short, (mean, *p[1:]))] for p, mean in zip(curve, since, strict=True)],
    }


def _short(x: float) -> float | None:
    """Four digits are enough for a picture."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


@torch.no_grad()
def scored(task: Task, model: nn.Module, data: Data, pieces: int | None) -> tuple[float, float]:
    """Give mean negative log-likelihood, in nats, and the share of right answers, every rank testing its part.

    Statistics of batch norms become their mean over ranks.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer.div_(size)
    model.eval()
    total = torch.zeros(3, dtype=torch.float64)
    for x, y in list(tests(task, data))[:pieces][rank::size]:
        scores, labels = model(x).flatten(0, -2), y.flatten()
        loss = cross_entropy(scores, labels, reduction="sum").double()
        total += torch.stack([loss, (scores.argmax(1) == labels).sum().double(), torch.tensor(float(len(labels)))])
    model.train()
    dist.all_reduce(total)
    return (total[0] / total[2]).item(), (total[1] / total[2]).item()
