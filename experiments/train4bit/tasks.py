"""What is learnt: data, network, optimizer and length of training, the same for every recipe.

Learning rates were chosen among `RATES` (`rates.py`) on float32 alone, and kept for every recipe.
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

#: Characters in one row of a text, and rows in a batch.
LENGTH = 32
ROWS = 32


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
        How many images or recordings, or rows of `LENGTH` characters.
    text : bool
        Whether it learns to tell the next character.
    """

    title: str
    data: Callable[[int], Data]
    model: Callable[[int], nn.Module]
    adam: bool
    rate: float
    decay: float
    steps: int
    batch: int = 64
    text: bool = False


DEPTHS = (6, 12, 20)
_image = partial(Task, data=datasets.mnist, adam=False, decay=5e-4, steps=250)
_language = partial(Task, data=datasets.text, adam=True, decay=0.01, batch=ROWS, text=True)

TASKS = {
    "mnist": _image("MNIST-5k, residual network", model=models.vision, rate=0.1),
    "fashion": _image("Fashion-MNIST 20k, residual network", data=datasets.fashion, model=models.vision, rate=0.1, steps=300),
    "speech": Task(
        "spoken digits, LSTM", datasets.speech, models.Speech, adam=True, rate=5e-3, decay=0.01, steps=300
    ),
    "transformer": _language("characters, transformer", model=partial(models.Transformer, length=LENGTH), rate=5e-3, steps=300),
    "lstm": _language("characters, LSTM", model=models.LanguageLSTM, rate=1e-2, steps=250),
} | {
    f"depth{depth}{'' if norm else '-plain'}": _image(
        f"MNIST-5k, {depth} layers {'with' if norm else 'without'} batch norm",
        model=partial(models.deep, depth=depth, norm=norm),
        rate=0.1 if norm else 0.03,
    )
    for norm in (True, False)
    for depth in DEPTHS
}


def batches(task: Task, data: Data, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give `steps` batches in an order that depends on the seed alone."""
    order = torch.Generator().manual_seed(seed)
    if task.text:
        for _ in range(steps):
            starts = torch.randint(len(data.x) - LENGTH, (task.batch, 1), generator=order)
            rows = data.x[starts + torch.arange(LENGTH + 1)]
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
    if task.text:
        whole = (len(x) - 1) // LENGTH * LENGTH
        x, y = x[:whole].view(-1, LENGTH), x[1 : whole + 1].view(-1, LENGTH)
    yield from zip(x.split(250), y.split(250), strict=True)
