"""Nothing is reported to anyone, and what Flower imports may warn of its own imports."""

from __future__ import annotations

import logging
import os
import warnings

import pytest

# Both are read when they are imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import flwr.client.mod
    import flwr.clientapp
    import flwr.serverapp.strategy
    import flwr.simulation  # noqa: F401
    from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(autouse=True)
def identified() -> None:
    """Say who sends: messages are made by a task of a run, as in a ServerApp."""
    logging.getLogger("flwr").setLevel(logging.INFO)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
