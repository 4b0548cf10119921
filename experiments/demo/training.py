"""Train the network once for every recipe, channel and seed, and keep what the table and the picture need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from data import Images
from network import RECIPES, TWO_PHASE, Momentum, Network, Recipe, accuracy, batches, gradients, new_network
from workers import CHANNELS, WORKERS, Channel, work_together

import lowbit as lb

if TYPE_CHECKING:
    from tqdm import tqdm

HIDDEN = (64, 64)
BATCH = 64
ROUNDS = 420


@dataclass
class Run:
    """One training run.

    Attributes
    ----------
    accuracies : list of float
        On the held-out images, in per cent: before the first round, then after every epoch.
    sent : list of int
        Bytes that one worker had sent by then.
    scales : list of list of float
        Each layer's gradient scale in every round.
    errors : list of float
        Each round's mean squared error of a number sent, on a range of length 1.
    skipped : int
        Rounds that changed nothing because a gradient was not finite: the run has diverged.
    network : list of Layer
        The network at the end.
    """

    accuracies: list[float] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    scales: list[list[float]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    skipped: int = 0
    network: Network = field(default_factory=list)


@dataclass
class Results:
    """Every run: for each recipe of a single worker and each channel between workers, one per seed."""

    seeds: int
    rounds: int
    alone: dict[Recipe, list[Run]]
    together: dict[Channel, list[Run]]


def count_gradients(images: Images, seeds: int, rounds: int) -> int:
    """How many gradients `train_all` computes: what its progress is counted in."""
    epochs, per_epoch = count_epochs(len(images.split(0)[0].labels), rounds)
    return seeds * epochs * per_epoch * (len(RECIPES) + len(CHANNELS) * WORKERS)


def train_all(images: Images, seeds: int, rounds: int, bar: tqdm[Any]) -> Results:
    """Train with every recipe and channel; runs of the same seed share split, first weights and order.

    Parameters
    ----------
    images : Images
    seeds, rounds : int
        How many runs of each kind, and about how long.
    bar : tqdm.tqdm
        Shows what is being trained and how far it is.
    """

    def runs(name: str, **kind: Any) -> list[Run]:
        bar.set_description_str(name)
        return [train(images, seed, rounds=rounds, progress=bar.update, **kind) for seed in range(seeds)]

    alone = {recipe: runs(recipe.name, recipe=recipe) for recipe in RECIPES}
    together = {channel: runs(channel.name, channel=channel) for channel in CHANNELS}
    return Results(seeds, len(alone[TWO_PHASE][0].scales), alone, together)


@np.errstate(over="ignore", invalid="ignore")  # a run that diverges goes on to the end, for all to see
def train(
    images: Images,
    seed: int,
    *,
    rounds: int = ROUNDS,
    recipe: Recipe = TWO_PHASE,
    channel: Channel | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Run:
    """Train one network; `seed` alone decides the split, the first weights and the order of the images.

    Parameters
    ----------
    images : Images
        Split by `seed` into images to learn from and images to test on.
    seed : int
        Which split, first weights, order and coins.
    rounds : int, optional
        About how many batches; always a whole number of epochs.
    recipe : Recipe, optional
        What the matrix products see.
    channel : Channel, optional
        How the workers send their gradients; without one there is a single worker, who sends nothing.
    progress : callable, optional
        Called after every epoch with the number of gradients it took.
    """
    learn, test = images.split(seed)
    network = new_network((learn.pixels.shape[1], *HIDDEN, 10), seed)
    epochs, per_epoch = count_epochs(len(learn.labels), rounds)
    optimizer = Momentum(images.rate, steps=epochs * per_epoch)
    coins = lb.Key(seed).fold("round")
    run, sent = Run(network=network), 0

    def look() -> None:
        run.accuracies.append(accuracy(network, test.pixels, test.labels, recipe))
        run.sent.append(sent)

    look()
    for number, rows in enumerate(batches(len(learn.labels), BATCH, epochs, seed), start=1):
        x, labels = learn.pixels[rows], learn.labels[rows]
        run.scales.append([layer.grad_scale.scale for layer in network])
        if channel is None:
            grads, votes = gradients(network, x, labels, recipe)
        else:
            together = work_together(network, x, labels, recipe, channel=channel, key=coins.fold(number))
            grads, votes, sent = together.grads, together.votes, sent + together.sent
            run.errors.append(together.error)
        if all(np.isfinite(grad).all() for grad in grads):
            optimizer.update(network, grads, votes)
        else:
            run.skipped += 1
        if number % per_epoch == 0:
            look()
            progress(per_epoch * (1 if channel is None else WORKERS))
    return run


def count_epochs(images: int, rounds: int) -> tuple[int, int]:
    """Give the epochs nearest to so many rounds, at least one, and the rounds in an epoch."""
    per_epoch = images // BATCH
    return max(1, round(rounds / per_epoch)), per_epoch
