"""Train in Flower's simulation engine, and count every byte that its messages take."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import task
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.simulation import run_simulation
from plan import Way

from lowbit.flower import Compressed, compression_mod


def orders(message: Message) -> ConfigRecord:
    return message.content.config_records["config"]


def only_if_asked(message: Message, context: Context, call_next: Any) -> Message:
    """Leave messages of Flower's own strategy to the app: one run holds both."""
    return compression_mod(message, context, call_next) if orders(message)["coded"] else call_next(message, context)


def clients() -> ClientApp:
    """Make the ClientApp."""
    app = ClientApp(mods=[only_if_asked])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        config = orders(message)
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        name, seed, number = str(config["data"]), int(config["seed"]), int(config["server-round"])
        arrays, images = task.train(arrays, name, seed, int(context.node_config["partition-id"]), number)
        content = {"arrays": record(arrays), "metrics": MetricRecord({"num-examples": images})}
        return Message(RecordDict(content), reply_to=message)

    return app


def record(arrays: task.Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def nbytes(message: Message) -> int:
    """Count what Flower moves for a message: itself and, by the same bytes, everything in it."""
    if message.has_error():
        return len(message.deflate())
    parts: list[Any] = [message, message.content, *message.content.values()]
    for held in message.content.array_records.values():
        for array in held.values():
            parts += [array, *(chunk for _, chunk in array.slice_array())]
    return sum(len(part.deflate()) for part in parts)


class Counting:
    """A grid that counts the bytes of every round."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.rows: list[dict[str, int]] = []

    def get_node_ids(self) -> Iterable[int]:
        """Give the nodes."""
        return self._grid.get_node_ids()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send and receive, and count; an answer that is missing or an error ends the run."""
        sent = list(messages)
        if not sent:
            return []
        down = sum(map(nbytes, sent))
        received = list(self._grid.send_and_receive(sent, timeout=timeout))
        errors = [reply.error.reason for reply in received if reply.has_error()]
        if errors or len(received) < len(sent):
            raise RuntimeError(f"{len(received)} answers of {len(sent)}, with errors {errors}")
        self.rows.append({"asked": len(sent), "down": down, "up": sum(map(nbytes, received))})
        return received


def strategy_of(way: Way, seed: int) -> Strategy:
    asked = max(1, round(way.asked * task.CLIENTS))
    average = FedAvg(
        fraction_train=way.asked, fraction_evaluate=0.0, min_train_nodes=asked, min_available_nodes=task.CLIENTS
    )
    return average if way.up is None else Compressed(average, way.up, downlink=way.down, seed=seed)


def run(ways: Iterable[Way], name: str, seed: int, rounds: int, cores: int) -> dict[str, list[dict[str, float]]]:
    """Train all ways from one model in one run of the engine.

    Returns
    -------
    dict
        By the way's name, a row for each round: accuracy in per cent, clients asked, bytes down and up.
    """
    results: dict[str, list[dict[str, float]]] = {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        start = task.new_model(name, seed)
        for way in ways:
            # By this Flower draws who is asked.
            random.seed(seed)
            counting, accuracies = Counting(grid), []

            def evaluate(_: int, arrays: ArrayRecord, into: list[float] = accuracies) -> None:
                into.append(task.accuracy({key: array.numpy() for key, array in arrays.items()}, name, seed))

            config = ConfigRecord({"data": name, "seed": seed, "coded": way.up is not None})
            strategy_of(way, seed).start(
                counting,  # type: ignore[arg-type]
                record(start),
                num_rounds=rounds,
                timeout=3600,
                train_config=config,
                evaluate_fn=evaluate,
            )
            results[way.name] = [
                {"accuracy": accuracy, **row} for accuracy, row in zip(accuracies[1:], counting.rows, strict=True)
            ]

    config: Any = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": cores, "log_to_driver": False}}
    run_simulation(server, clients(), num_supernodes=task.CLIENTS, backend_config=config)
    return results
