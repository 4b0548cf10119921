"""A server and its clients in one process: Flower's messages, apps, mods and strategies without its engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray

from lowbit.flower import compression_mod
from lowbit.flower._records import read_arrays, write_arrays

Arrays = dict[str, NDArray[Any]]
#: Every node learns a vector of its own, so that means tell who took part.
NODES = (11, 12, 2**63 + 13)


def model(scale: float = 1.0) -> Arrays:
    """Make a model with all that models have: matrices, a small vector, a counter, a float64, a scalar."""
    rng = np.random.default_rng(7)
    return {
        "w": (scale * rng.normal(size=(60, 50))).astype(np.float32),
        "half": (scale * rng.normal(size=2048)).astype(np.float16),
        "b": (scale * rng.normal(size=50)).astype(np.float32),
        "steps": np.array(3, np.int64),
        "mask": np.array([True, False]),
        "t": np.array(0.5 * scale, np.float64),
    }


def lesson(node: int, arrays: Arrays) -> Arrays:
    """Learn: what node and model alone decide, near a tenth for every number."""
    rng = np.random.default_rng(node)
    learned = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            learned[name] = np.asarray(array + (0.1 * rng.normal(1, 1, array.shape))).astype(array.dtype)
        else:
            learned[name] = array + node % 10 if array.dtype.kind == "i" else ~array
    return learned


def app(mods: Iterable[Any] = (compression_mod,), learn: Callable[[int, Arrays], Arrays] = lesson) -> ClientApp:
    """Make a ClientApp that trains by `learn`, and answers evaluation with the sum of what it was given."""
    made = ClientApp(mods=list(mods))

    @made.train()
    def train(message: Message, context: Context) -> Message:
        assert list(message.content) == ["arrays", "config"], "the app sees what Flower's strategies send"
        arrays = learn(context.node_id, read_arrays(message.content["arrays"]))
        content = {"arrays": write_arrays(arrays), "metrics": MetricRecord({"num-examples": context.node_id % 10})}
        return Message(RecordDict(content), reply_to=message)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        arrays = read_arrays(message.content["arrays"])
        total = float(sum(array.astype(np.float64).sum() for array in arrays.values()))
        return Message(RecordDict({"metrics": MetricRecord({"total": total, "num-examples": 1})}), reply_to=message)

    return made


class Wire:
    """A grid whose nodes run in this process; `damage` may change or drop answers on their way, `harm` what is sent."""

    def __init__(self, client: ClientApp | None = None, nodes: Iterable[int] = NODES) -> None:
        self.client = app() if client is None else client
        self.contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in nodes}
        self.damage: Callable[[Message], Iterable[Message]] = lambda reply: [reply]
        self.harm: Callable[[Message], None] = lambda message: None
        self.sent: list[Message] = []
        self.errors: dict[int, str] = {}

    def get_node_ids(self) -> list[int]:
        """Give all nodes."""
        return list(self.contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Let every client answer at once."""
        replies: list[Message] = []
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"{len(self.sent)}-{number}"
            self.sent.append(message)
            node = message.metadata.dst_node_id
            # What a client gets is a copy, as from a network.
            copy = Message(RecordDict(dict(message.content)), node, message.metadata.message_type)
            copy.metadata.__dict__["_message_id"] = message.metadata.message_id
            self.harm(copy)
            try:
                reply = self.client(copy, self.contexts[node])
            except Exception as error:
                reply = Message(Error(2, str(error)), reply_to=copy)
            if reply.has_error():
                self.errors[node] = str(reply.error.reason)
            replies += self.damage(reply)
        return replies


def average(**options: Any) -> FedAvg:
    """Make FedAvg that asks everyone."""
    return FedAvg(**{"min_train_nodes": 2, "min_evaluate_nodes": 2, **options})


def rounds(strategy: Strategy, wire: Wire, arrays: Arrays, number: int = 1) -> Arrays:
    """Train for some rounds; give the model of the last, or the one given if all failed."""
    # Flower draws clients by this; an order of answers decides ties between them.
    random.seed(5)
    result = strategy.start(wire, write_arrays(arrays), num_rounds=number)  # type: ignore[arg-type]
    return read_arrays(result.arrays) if result.arrays is not None and result.arrays else arrays


def reply_to(content: dict[str, Any], instruction: Message) -> Message:
    return Message(RecordDict(content), reply_to=instruction)


def closeness(found: Arrays, exact: Arrays, base: Arrays) -> float:
    """Squared error of the change in all floats, relative to the change's squared norm."""
    error = norm = 0.0
    for name, array in exact.items():
        if array.dtype.kind == "f" and array.size >= 1024:
            change = array.astype(np.float64) - base[name]
            error += float(np.sum((found[name].astype(np.float64) - array) ** 2))
            norm += float(np.sum(change**2))
    return error / norm


__all__ = ["NODES", "ArrayRecord", "Arrays", "ConfigRecord", "Wire", "app", "average", "closeness", "lesson", "model"]
