"""The learning rates: three or four for each task, on float32 alone, with seeds that no comparison uses.

A task that is another one for longer keeps its rate.
"""

from __future__ import annotations

from collections.abc import Iterator

import plan
from runs import Run
from tasks import TASKS

SEEDS = (1000, 1001)
DESCENT = (0.03, 0.1, 0.3)
ADAM = (0.003, 0.01, 0.03, 0.1)


def runs() -> Iterator[Run]:
    """List what to train."""
    for seed in SEEDS:
        for name, task in TASKS.items():
            if name == plan.LONGER:
                continue
            for rate in ADAM if task.adam else DESCENT:
                yield Run(name, "float32", seed, rate)
