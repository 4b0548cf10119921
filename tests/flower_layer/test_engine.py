"""Flower's own simulation engine: clients in other processes, their contexts kept between rounds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

import lowbit as lb
from flower_layer.flower_support import app, average, model, read_arrays, write_arrays
from lowbit.flower import Compressed, compression_mod
from lowbit.flower._records import RECORD

# Ray has warnings of its own, of files that it leaves open.
pytestmark = pytest.mark.filterwarnings("ignore")

BASE = {"w": model()["w"], "b": model()["b"]}


def partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def faulty() -> ClientApp:
    """Make clients of which the first raises in round 2, and the second answers with garbage in round 3."""

    def troubled(message: Message, context: Context, call_next: Any) -> Message:
        training = message.metadata.message_type == "train"
        number = message.content[RECORD]["round"] if training else 0
        if number == 2 and partition(context) == 0:
            raise RuntimeError("out of memory")
        reply = call_next(message, context)
        if number == 3 and partition(context) == 1:
            reply.content["arrays"]["message"].data = b"garbage"
        return reply

    return app(mods=(troubled, compression_mod))


@pytest.fixture
def simulate() -> Iterator[Any]:
    """Give a function that trains in the engine and returns the models of the strategies, one after the other."""

    def run(strategies: list[tuple[Any, int]], client: ClientApp, nodes: int = 3) -> list[Any]:
        results: list[Any] = []
        server = ServerApp()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            for strategy, rounds in strategies:
                result = strategy.start(grid, write_arrays(BASE), num_rounds=rounds, timeout=600)
                results.append(result)

        config: Any = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2, "log_to_driver": False}}
        run_simulation(server, client, num_supernodes=nodes, backend_config=config)
        return results

    logging.getLogger("flwr").setLevel(logging.WARNING)
    yield run
    logging.getLogger("flwr").setLevel(logging.INFO)


def test_training_in_the_engine(simulate: Any) -> None:
    """One run: the identity codec, one bit both ways with clients that fail, and a server that starts again."""
    everyone = {"min_train_nodes": 3, "min_available_nodes": 3, "min_evaluate_nodes": 3}
    exact = Compressed(average(**everyone), lb.Float32(), downlink=lb.Float32())
    troubled = Compressed(average(**everyone), lb.Sign(), downlink=lb.Eden(1, "min_error"), seed=1)
    again = Compressed(average(**everyone), lb.Eden(1), downlink=lb.Eden(1, "min_error"), seed=1)
    same, late, anew = simulate([(exact, 1), (troubled, 4), (again, 2)], faulty())

    # Flower's mean of what three clients of number-dependent weight learn is one of theirs, up to rounding.
    learned = read_arrays(same.arrays)["w"] - BASE["w"]
    assert 0.05 < learned.mean() < 0.15
    assert same.evaluate_metrics_clientapp[1]["total"] == pytest.approx(
        float(sum(array.astype(np.float64).sum() for array in read_arrays(same.arrays).values())), rel=1e-3
    )
    assert [(row.accepted, row.refused) for row in exact.traffic] == [(3, 0)]
    # Its first rounds count on: round 2 lacks a client, round 3 refuses one, and both come back.
    assert [(row.accepted, row.refused) for row in troubled.traffic] == [(3, 0), (2, 1), (2, 1), (3, 0)]
    assert list(late.evaluate_metrics_clientapp) == [1, 2, 3, 4]
    assert [(row.accepted, row.refused) for row in again.traffic] == [(3, 0), (2, 1)]
    assert read_arrays(anew.arrays)["w"].shape == (60, 50)
