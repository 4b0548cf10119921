"""Processes that are the ranks of a gloo group, kept from one test to the next.

Importing torch is what takes long: one process does it, and is forked for each rank.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

#: A collective that waits longer than this ends with an error.
WAIT = datetime.timedelta(seconds=20)


def _work(rank: int, size: int, store: str, pipe: Connection) -> None:
    """Be one rank: call what comes through the pipe, send back what it returned or how it failed."""
    import lowbit as lb

    torch.set_num_threads(1)
    lb.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size, timeout=WAIT)
    pipe.send((True, None))
    while (call := pipe.recv()) is not None:
        function, arguments = call
        torch.manual_seed(0)
        try:
            pipe.send((True, function(rank, *arguments)))
        except Exception as error:
            pipe.send((False, (type(error).__name__, str(error), traceback.format_exc())))
    dist.destroy_process_group()


class Failed(Exception):  # noqa: N818 - it is what happened to a rank
    """A rank raised: ``kind``, ``text`` and ``trace`` say what."""

    def __init__(self, rank: int, kind: str, text: str, trace: str) -> None:
        super().__init__(f"rank {rank}: {trace}")
        self.kind, self.text = kind, text


class Ranks:
    """So many processes, each a rank of the default group."""

    def __init__(self, size: int) -> None:
        context = torch.multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "pytest", "hypothesis", "lowbit.torch.ddp"])  # by one process, once
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self.pipes, self.processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(rank, size, store, there), daemon=True)
            process.start()
            there.close()  # so that the end of the process is the end of the pipe
            self.pipes.append(here)
            self.processes.append(process)
        self._collect(60)

    def _collect(self, seconds: float) -> list[Any]:
        """Give what every rank returned, or the `Failed` it became."""
        until = time.monotonic() + seconds
        results: list[Any] = []
        for rank, pipe in enumerate(self.pipes):
            try:
                if not pipe.poll(max(until - time.monotonic(), 0)):
                    self.close()
                    raise AssertionError(f"rank {rank} of {self.size} did not answer in {seconds} s")
                good, result = pipe.recv()
                results.append(result if good else Failed(rank, *result))
            except (EOFError, ConnectionResetError):
                results.append(Failed(rank, "Died", "", "the process ended"))
        return results

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float = 40) -> list[Any]:
        """Call ``function(rank, *arguments)`` on every rank; a rank's error is in place of its result."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        return self._collect(seconds)

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float = 40) -> list[Any]:
        """`call`, in which no rank may fail."""
        results = self.call(function, *arguments, seconds=seconds)
        failed = [result for result in results if isinstance(result, Failed)]
        if failed:
            self.close()  # others may wait for one that has given up
            raise failed[0]
        return results

    @property
    def alive(self) -> bool:
        """Whether all processes run."""
        return bool(self.processes) and all(process.is_alive() for process in self.processes)

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            process.kill()
            process.join()
            pipe.close()
        self.pipes, self.processes = [], []
        self._folder.cleanup()


def printed_by(rank: int, text: str) -> str:
    """Run a script whose group there is already, and give what it prints."""
    begin, end = dist.init_process_group, dist.destroy_process_group
    dist.init_process_group = dist.destroy_process_group = lambda *_: None
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(text, {})
    finally:
        dist.init_process_group, dist.destroy_process_group = begin, end
    return printed.getvalue()


_KEPT: dict[int, Ranks] = {}


def ranks(size: int) -> Ranks:
    """Give `size` ranks, those of the test before if they live."""
    if size not in _KEPT or not _KEPT[size].alive:
        _KEPT[size] = Ranks(size)
    return _KEPT[size]


def end_all() -> None:
    """Let all kept processes go."""
    for kept in _KEPT.values():
        kept.close()
    _KEPT.clear()
