"""Processes that are the ranks of a gloo group, kept from one run to the next, and the records of their runs."""

from __future__ import annotations

import datetime
import json
import tempfile
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.distributed as dist

from .plan import Run

#: A collective, and a run, that takes longer ends with an error: seconds.
WAIT, MOST = 120, 900


def _work(rank: int, size: int, store: str, pipe: Connection) -> None:
    """Be one rank: call what comes through the pipe, and send back what it returned or how it failed."""
    import lowbit as lb

    torch.set_num_threads(1)
    lb.set_num_threads(1)
    wait = datetime.timedelta(seconds=WAIT)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size, timeout=wait)
    pipe.send((True, None))
    while (call := pipe.recv()) is not None:
        function, arguments = call
        try:
            pipe.send((True, function(rank, *arguments)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Crew:
    """So many processes, each a rank of one group; a context manager.

    Parameters
    ----------
    size : int
        How many.
    """

    def __init__(self, size: int) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        store = str(Path(self.folder.name) / "store")
        self.pipes, self.processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(rank, size, store, there), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)
        self._collect()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call ``function(rank, *arguments)`` on every rank, and give what they return.

        Raises
        ------
        RuntimeError
            A rank failed or was too late; the processes are ended.
        """
        for pipe in self.pipes:
            pipe.send((function, arguments))
        return self._collect()

    def _collect(self) -> list[Any]:
        results = []
        for rank, pipe in enumerate(self.pipes):
            try:
                good, result = pipe.recv() if pipe.poll(MOST) else (False, f"no answer in {MOST} s")
            except EOFError:
                good, result = False, "the process ended"
            if not good:
                self.close()
                raise RuntimeError(f"rank {rank}: {result}")
            results.append(result)
        return results

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Records:
    """The finished runs, in a file of one JSON object a line.

    Parameters
    ----------
    path : pathlib.Path
        The file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        rows = map(json.loads, lines)
        self.rows = {Run(row["task"], row["way"], row["size"], row["seed"]): row for row in rows}

    def add(self, run: Run, ranks: list[dict[str, Any]]) -> None:
        """Write down at once what the ranks of a run gave: the busiest link, the mean of processor times."""
        row = ranks[0] | {
            "received": max(rank["received"] for rank in ranks),
            "cpu": float(f"{fmean(rank['cpu'] for rank in ranks):.4g}"),
        }
        self.rows[run] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, task: str, way: str, size: int = 4) -> dict[int, dict[str, Any]]:
        """Give the records of a task and a way by their seeds."""
        return {run.seed: row for run, row in self.rows.items() if run == Run(task, way, size, run.seed)}


def missing(runs: Iterable[Run], records: Records) -> list[Run]:
    """List what has no record yet, once."""
    return [run for run in dict.fromkeys(runs) if run not in records.rows]
