"""The demo's network in torch: ``lowbit.torch.prepare`` and an ordinary training loop. Run it with ``make demo-torch``.

The images, the sizes, the rates and the order of the batches are those of ``experiments/demo``, which does the same in
plain NumPy; what that demo sends between workers is not repeated here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from lowbit.torch import Products, Recipe, Spec, prepare, recipes

sys.path.insert(0, str(Path(__file__).resolve().parent / "demo"))

import data
from network import batches
from table import WIDTH, rounding_errors, spread
from training import BATCH, HIDDEN, ROUNDS, count_epochs

SEEDS = 5


def everywhere(change: Callable[[Products], Products]) -> Recipe:
    """Change the article's recipe, which treats all layers alike."""
    recipe = recipes.int4_rescaled()
    products = change(recipe.inner)
    return replace(recipe, inner=products, first=products, last=products)


RECIPES = {
    "float32": recipes.float32(),
    "INT4 forward, float32 gradients": everywhere(partial(replace, grad_input=None, grad_weight=None)),
    "INT4, radix-4 gradients, one phase": everywhere(partial(replace, grad_weight=Spec("radix4", scale="gradscale"))),
    "INT4, radix-4 gradients, two phases": recipes.int4_rescaled(),
}


def new_network(inputs: int, seed: int) -> nn.Sequential:
    """Make a network of fully connected layers; weights start as He et al. (2015) have them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for rows, columns in pairwise((inputs, *HIDDEN, 10)):
        layer = nn.Linear(rows, columns)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train(images: data.Images, seed: int, recipe: Recipe, rounds: int = ROUNDS) -> float:
    """Train one network and give its accuracy on the held-out images, in per cent."""
    learn, test = images.split(seed)
    model = prepare(new_network(learn.pixels.shape[1], seed), recipe)
    epochs, per_epoch = count_epochs(len(learn.labels), rounds)
    optimizer = torch.optim.SGD(model.parameters(), lr=images.rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=epochs * per_epoch)
    x, y = tensors(learn)
    for rows in batches(len(y), BATCH, epochs, seed):
        loss = cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    x, y = tensors(test)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean() * 100)


def tensors(images: data.Images) -> tuple[Tensor, Tensor]:
    """Give pixels and labels as tensors."""
    return torch.from_numpy(images.pixels), torch.from_numpy(images.labels)


def report(images: data.Images, found: dict[str, NDArray[np.float64]]) -> str:
    """Write what fell out, as the demo does."""
    learn, test = images.split(0)
    shades = data.count_shades(images.pixels)
    even, odd, both = rounding_errors()
    base = found["float32"]
    lines = [
        f"{images.title}: {len(learn.labels):,} images to learn from, {len(test.labels):,} to test on; "
        f"{len(base)} paired seeds.",
        "Mean +- standard error; differences are taken seed by seed.",
        "",
        f"The images in INT4: {shades.before} shades become {shades.after}; "
        f"the error is at most {shades.largest_error:.1%} of the range, {shades.rms_error:.1%} rms.",
        "",
        f"{'One worker, in torch':{WIDTH}}{'accuracy, %':>14}{'minus float32':>16}",
    ]
    for name, accuracies in found.items():
        change = "" if name == "float32" else spread(accuracies - base, sign=True)
        lines.append(f"{name:{WIDTH}}{spread(accuracies):>14}{change:>16}")
    one, two = list(found.values())[2:]
    lines += [
        f"Two phases minus one: {spread(two - one, sign=True)} points.",
        "Relative squared error of one rounding to radix-4, evenly over octaves:",
        f"{even:.3f} in the even phase, {odd:.3f} in the odd, {both:.3f} for the mean of the two.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="demo_torch", description=__doc__)
    parser.add_argument("--data", choices=("digits", "mnist5k"), default="digits", help="the images [%(default)s]")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="paired runs of everything [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="2 seeds and a tenth of the training: a look, no result")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: a standard error needs at least 2")
    seeds, rounds = (2, 42) if options.quick else (options.seeds, ROUNDS)
    torch.set_num_threads(1)  # the matrices are small: a second thread would only wait for the first
    images, start = data.load(options.data), time.perf_counter()
    found: dict[str, list[float]] = {name: [] for name in RECIPES}
    with tqdm(total=seeds * len(RECIPES), unit=" runs") as bar:
        for name, recipe in RECIPES.items():
            bar.set_description_str(name)
            for seed in range(seeds):
                found[name].append(train(images, seed, recipe, rounds))
                bar.update()
    print(report(images, {name: np.array(values) for name, values in found.items()}))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
