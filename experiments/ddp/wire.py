"""How many bytes a rank receives to average the gradients of a ResNet-50, by every way and on 2 and 4 ranks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import torch

from .averaging import FIRST, averaging
from .crew import Crew
from .plan import LOCAL, WAYS

BENCH = Path(__file__).resolve().parents[2] / "benches" / "ddp.py"
SIZES = (2, 4)


def keep(path: Path) -> None:
    """Count what has not been counted, and keep it."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for size in SIZES:
        left = [name for name in ways() if not any((row["way"], row["size"]) == (name, size) for row in rows)]
        if not left:
            continue
        with Crew(size) as crew:
            for name in left:
                ranks = crew.run(count, name)
                most = max(rank["received"] for rank in ranks)
                rows.append(ranks[0] | {"way": name, "size": size, "received": most})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def ways() -> list[str]:
    """List the ways whose bytes differ: how a network computes, and H, do not change a round."""
    return [name for name, way in WAYS.items() if way.recipe == "float32" and (way.kind != "local" or name == LOCAL)]


def count(rank: int, name: str) -> dict[str, float | None]:
    """Average normal gradients once, and count: bytes of a step (of local steps, of one in so many)."""
    spec = util.spec_from_file_location("bench_ddp", BENCH)
    assert spec is not None
    assert spec.loader is not None
    bench = util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    way, model = WAYS[name], bench.Given(rank)
    if way.kind == "local":
        way = replace(way, every=1)
    made = averaging(way, model, torch.optim.SGD(model.parameters(), 0.1), 0)
    before = 0.0
    for _ in range(FIRST + 1 if way.kind == "powersgd" else 1):  # whose first steps are exact
        before = made.received()
        made.optimizer.zero_grad()
        made.model().backward()
        made.optimizer.step()
    bits = made.message()
    return {
        "received": (made.received() - before) / WAYS[name].every,
        "bits": None if math.isnan(bits) else bits,
        "numbers": sum(p.numel() for p in model.parameters()),
    }
