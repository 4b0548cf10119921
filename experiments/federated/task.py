"""What is learned: handwritten digits, dealt to clients so that most have seen two or three of them."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

import data
import network

Arrays = dict[str, NDArray[np.float32]]

#: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
#: arXiv:1602.05629, section 3: the "2NN" of 199,210 parameters, batches of 10, and the pathological partition, for
#: which images are sorted by their label, cut into two shards for each client, and dealt.
HIDDEN = (200, 200)
BATCH = 10
SHARDS = 2
CLIENTS = 10
#: Local epochs; the rate that was best for float32 of 0.01, 0.02, 0.05, 0.1, 0.2, on a seed that is not measured.
EPOCHS = 2
RATE = 0.2


@lru_cache(maxsize=1)
def images(name: str, seed: int) -> tuple[data.Images, data.Images]:
    """Load the images and keep a quarter for testing."""
    return data.load(name).split(seed)


@lru_cache(maxsize=1)
def shares(name: str, seed: int) -> list[NDArray[np.int64]]:
    """Deal the training images: row numbers for each client."""
    labels = images(name, seed)[0].labels
    rng = np.random.default_rng([seed, 1])
    # Equal labels in random order.
    order = rng.permutation(len(labels))
    shards = np.array_split(order[np.argsort(labels[order], kind="stable")], SHARDS * CLIENTS)
    dealt = rng.permutation(len(shards)).reshape(CLIENTS, SHARDS)
    return [np.concatenate([shards[shard] for shard in mine]) for mine in dealt]


def new_model(name: str, seed: int) -> Arrays:
    """Draw the model that all start from."""
    pixels = images(name, seed)[0].pixels.shape[1]
    return _named(network.new_network((pixels, *HIDDEN, 10), seed))


def _named(net: network.Network) -> Arrays:
    named = ({f"w{i}": layer.weight, f"b{i}": layer.bias} for i, layer in enumerate(net))
    return {name: array for layer in named for name, array in layer.items()}


def _network(arrays: Arrays) -> network.Network:
    layers = len(HIDDEN) + 1
    return [network.Layer(arrays[f"w{i}"].copy(), arrays[f"b{i}"].copy()) for i in range(layers)]


def train(arrays: Arrays, name: str, seed: int, client: int, number: int) -> tuple[Arrays, int]:
    """Train on a client's images; also give how many there are."""
    net, learn = _network(arrays), images(name, seed)[0]
    mine = shares(name, seed)[client]
    # Batches of this seed, round and client: the same for every way of sending.
    order = int(np.random.SeedSequence([seed, number, client]).generate_state(1)[0])
    for rows in network.batches(len(mine), BATCH, EPOCHS, order):
        chosen = mine[rows]
        grads, _ = network.gradients(net, learn.pixels[chosen], learn.labels[chosen], network.FLOAT32)
        for parameter, grad in zip(network.parameters(net), grads, strict=True):
            parameter[...] -= np.float32(RATE) * grad
    return _named(net), len(mine)


def accuracy(arrays: Arrays, name: str, seed: int) -> float:
    """Measure the share of test images that are told right, in per cent."""
    test = images(name, seed)[1]
    return network.accuracy(_network(arrays), test.pixels, test.labels, network.FLOAT32)
