"""Time the hook of ``lowbit.torch.ddp`` on the parameters of a ResNet-50, and add the traffic that links would take.

``benches/README.md`` tells what is measured; lowbit and torch must be importable.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lowbit as lb
from lowbit import _core
from lowbit.torch import ddp

#: What takes part: codec, and the strategy's options.
WAYS: list[tuple[lb.Codec, dict[str, Any]]] = [
    (lb.Eden(1), {"strategy": "all_gather"}),
    (lb.Eden(1), {"strategy": "two_phase", "second_codec": lb.Eden(4)}),
    (lb.Eden(0.5), {"strategy": "all_gather"}),
    (lb.Eden(4), {"strategy": "all_gather"}),
    (lb.Sign(), {"strategy": "all_gather"}),
    (lb.QuicFl(1), {"strategy": "all_gather"}),
    (lb.Summable(4), {}),
]
LINKS = {"100 Mbit": 1e8, "1 Gbit": 1e9, "10 Gbit": 1e10, "100 Gbit": 1e11}
#: The hook and modelled traffic together, in shares of the traffic alone of a bfloat16 ring: one bit and 4 ranks.
GOALS = {"100 Mbit": 0.2, "1 Gbit": 0.7}
#: Encoding and decoding of one bit at 2 ranks, ns for each number.
GOAL_NS = 12.0


def resnet50() -> list[tuple[int, ...]]:
    """Give the shapes of the 161 parameters of a ResNet-50 (K. He et al., 2016): 25.6 million numbers."""
    shapes: list[tuple[int, ...]] = []

    def convolution(into: int, out: int, size: int) -> None:
        shapes.extend([(out, into, size, size), (out,), (out,)])  # with a batch norm

    convolution(3, 64, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolution(channels, width, 1)
            convolution(width, width, 3)
            convolution(width, 4 * width, 1)
            if not block:
                convolution(channels, 4 * width, 1)
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


class Given(nn.Module):
    """Parameters whose gradients are given normal numbers."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(rank)
        self.weights = nn.ParameterList([torch.zeros(shape) for shape in resnet50()])
        self.gradients = [torch.randn(shape, generator=generator) for shape in resnet50()]

    def forward(self) -> Tensor:
        """Give a loss."""
        products = [(w * g).sum() for w, g in zip(self.weights, self.gradients, strict=True)]
        return torch.stack(products).sum()


def work(rank: int, size: int, steps: int, store: str, results: Any) -> None:
    """Be one rank: the CPU time of its hook in each step, for every way, waiting not counted."""
    torch.set_num_threads(1)
    lb.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)
    for codec, options in WAYS:
        model = DistributedDataParallel(Given(rank))
        state = ddp.State(model, codec, start_step=1, **options)
        times = [0.0]

        def timed(state: ddp.State, bucket: Any, times: list[float] = times) -> torch.futures.Future[Tensor]:
            start = time.thread_time()
            future = ddp.hook(state, bucket)
            times[-1] += time.thread_time() - start
            return future

        timed.__annotations__.clear()  # DDP compares them with its own
        model.register_comm_hook(state, timed)
        for _ in range(2 + steps):  # the first is exact, the second warms up
            times.append(0.0)
            model().backward()
        stats = state.stats
        received, numbers = stats.received / stats.steps, stats.numbers / stats.steps
        results.put((repr(codec), stats.strategy, min(times[3:]), received, numbers))
    dist.destroy_process_group()


def measure(size: int, steps: int) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Give, for every way, seconds of the hook (the median rank's best step), bytes received, and numbers."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [context.Process(target=work, args=(r, size, steps, store, results)) for r in range(size)]
        for process in processes:
            process.start()
        found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
        for _ in range(size * len(WAYS)):
            codec, strategy, *figures = results.get(timeout=600)
            found.setdefault((codec, strategy), []).append(tuple(figures))
        for process in processes:
            process.join()
    return {
        way: (statistics.median(row[0] for row in rows), max(row[1] for row in rows), rows[0][2])
        for way, rows in found.items()
    }


def main() -> None:
    """Print a table for each number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, CPU level {_core.cpu_level()}, one thread for each rank; load {load:.1f}")
    goals: list[str] = []
    for size in arguments.ranks:
        print(f"\n{size} ranks: the hook, and (hook + traffic) / (traffic of a bfloat16 ring alone)\n")
        print("| codec | strategy | hook, ns a number | MB received |", *(f"{link} |" for link in LINKS))
        print("|---|---|---|---|" + "---|" * len(LINKS))
        for (codec, strategy), (seconds, received, numbers) in measure(size, arguments.steps).items():
            ring = 4 * (size - 1) / size * numbers
            shares = [(seconds + 8 * received / rate) / (8 * ring / rate) for rate in LINKS.values()]
            ns = 1e9 * seconds / numbers
            row = [f"`{codec}`", strategy, f"{ns:.1f}", f"{received / 1e6:.1f}", *(f"{share:.3g}" for share in shares)]
            print("|", " | ".join(row), "|", flush=True)
            if (codec, strategy) == (repr(lb.Eden(1)), "all_gather"):
                reached = dict(zip(LINKS, shares, strict=True))
                if size == 2:
                    goals.append(f"{ns:.1f} of {GOAL_NS} ns")
                if size == 4:
                    goals += [f"{reached[link]:.2f} of {goal} at {link}/s" for link, goal in GOALS.items()]
    print(f"\n{lb.Eden(1)}, against its goals: {'; '.join(goals)}")


if __name__ == "__main__":
    main()
