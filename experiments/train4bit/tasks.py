"""What is learnt: data, network, optimizer and length of training, the same for every recipe.

Learning rates are the best of those that `rates.py` tries, on float32 alone, and are kept for every recipe. The
networks of different depth share the rate that is best for the deepest. The transformer has the second best: at the
best, float32's own seeds lay 2 % apart, more than what is to be compared (this was seen, and changed, after the first
two seeds of all recipes; their records are kept, with their rate).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import datasets
import models
import torch
from datasets import Data
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes
    ----------
    title : str
        What tables call it.
    data : callable
        The data of a seed.
    model : callable
        A fresh network for so many classes.
    adam : bool
        AdamW; otherwise gradient descent with momentum 0.9.
    rate : float
        The highest learning rate: the first twentieth of the steps climbs to it, a cosine falls from it to zero.
    decay : float
        The weight decay, and that of PACT's clips.
    steps : int
        How many batches.
    batch : int
        How many images, recordings or rows of text.
    length : int
        How many characters there are in a row of text, where the task is to tell the next one; else 0.
    """

    title: str
    data: Callable[[int], Data]
    model: Callable[[int], nn.Module]
    adam: bool
    rate: float
    decay: float
    steps: int
    batch: int = 64
    length: int = 0


DEPTHS = (6, 12, 20)
_image = partial(Task, adam=False, decay=5e-4)
_language = partial(Task, adam=True, decay=0.01)

TASKS = {
    "mnist": _image("MNIST-5k, residual network", datasets.mnist, models.vision, rate=0.3, steps=400),
    "fashion": _image("Fashion-MNIST, residual network", datasets.fashion, models.vision, rate=0.03, steps=400),
    "fashion-long": _image(
        "Fashion-MNIST, residual network, four times as long", datasets.fashion, models.vision, rate=0.03, steps=1600
    ),
    "speech": Task("spoken digits, LSTM", datasets.speech, models.Speech, adam=True, rate=0.01, decay=0.01, steps=200),
    "transformer": _language(
        "text, transformer",
        datasets.text,
        partial(models.Transformer, length=32),
        rate=0.01,
        steps=250,
        batch=32,
        length=32,
    ),
    "lstm": _language("text, LSTM", datasets.text, models.LanguageLSTM, rate=0.03, steps=200, batch=64, length=16),
} | {
    f"depth{depth}{'' if norm else '-plain'}": _image(
        f"MNIST-5k, {depth} layers {'with' if norm else 'without'} batch norm",
        datasets.mnist,
        partial(models.deep, depth=depth, norm=norm),
        rate=0.03,
        steps=200,
    )
    for norm in (True, False)
    for depth in DEPTHS
}


def batches(task: Task, data: Data, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give `steps` batches in an order that depends on the seed alone."""
    order = torch.Generator().manual_seed(seed)
    if task.length:
        for _ in range(steps):
            starts = torch.randint(len(data.x) - task.length, (task.batch, 1), generator=order)
            rows = data.x[starts + torch.arange(task.length + 1)]
            yield rows[:, :-1], rows[:, 1:]
        return
    rows = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(rows) < task.batch:  # a new epoch; a short last batch is left out
            rows = torch.randperm(len(data.y), generator=order)
        now, rows = rows[: task.batch], rows[task.batch :]
        yield data.x[now], data.y[now]


def tests(task: Task, data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """Give what is tested on, in batches."""
    x, y = data.test_x, data.test_y
    if task.length:
        whole = (len(x) - 1) // task.length * task.length
        x, y = x[:whole].view(-1, task.length), x[1 : whole + 1].view(-1, task.length)
    yield from zip(x.split(250), y.split(250), strict=True)
