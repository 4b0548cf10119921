"""What is recorded while a model trains, and that watching changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.torch import prepare, recipes
from lowbit.torch._site import Site
from lowbit.torch._watch import Watch, watch


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def network() -> nn.Module:
    layers: list[nn.Module] = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()]
    return prepare(nn.Sequential(*layers, nn.Linear(12, 3)), recipes.sun2020())


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, n: int) -> Iterator[int]:
    """Train, and stop before each step of the optimizer."""
    for i in range(n):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        yield i
        optimizer.step()


def trained(net: nn.Module, *, watched: int | None) -> tuple[dict[str, Tensor], Watch | None]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    seen = None if watched is None else watch(net, every=watched)
    for _ in steps(net, optimizer, 6):
        pass
    if seen is not None:
        seen.close()
    return net.state_dict(), seen


def test_rows_are_what_the_layers_saw() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    site, norm = net[3].site, net[1]
    want = []
    with watch(net) as seen:
        for _ in steps(net, optimizer, 5):
            record = dict(zip(Site.SLOTS, site.record.tolist(), strict=True))
            state = {"clip": float(site.clip.detach()), "grad_scale": float(site.grad_scale), "peak": record["peak"]}
            largest = float(norm.running_mean.abs().max())
            want.append(record | state | {"running_mean": largest, "scale_of_gradient": record["grad_scale"]})
    layers, norms = ([row for row in seen.rows if row["layer"] == name] for name in ("3", "1"))
    assert len(seen.rows) == len(layers) + len(norms) == 10
    for i, (row, averages, expected) in enumerate(zip(layers, norms, want, strict=True)):
        assert row["step"] == averages["step"] == i
        for key in ("input_scale", "input_clipped", "weight_scale", "weight_zeros", "clip", "grad_scale", "peak"):
            assert row[key] == expected[key], key
        assert row["gradient_scale"] == expected["scale_of_gradient"] == 1 / row["grad_scale"]
        assert averages["running_mean"] == expected["running_mean"] > 0
        assert row["peak"] > 0
    # GradScale starts at 1, far below these gradients' inverse: it doubles.
    assert [row["grad_scale"] for row in layers] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert layers[0]["gradient_zeros"] > layers[-1]["gradient_zeros"]


def test_watching_changes_nothing() -> None:
    net = network()
    alone, _ = trained(copy.deepcopy(net), watched=None)
    for every in (1, 3):
        beside, seen = trained(copy.deepcopy(net), watched=every)
        assert all(torch.equal(alone[name], beside[name]) for name in alone)
        assert seen is not None
        assert sorted({row["step"] for row in seen.rows}) == list(range(0, 6, every))
        assert all(row["input_scale"] > 0 for row in seen.rows if row["layer"] == "3")


def test_it_looks_only_when_it_records_and_leaves_no_hook() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    site = net[3].site
    seen = watch(net, every=2)
    looked = [site.recording for _ in steps(net, optimizer, 4)]
    assert looked == [True, False, True, False]
    site.recording = True
    seen.close()
    assert not site.recording
    for _ in steps(net, optimizer, 2):
        pass
    assert seen.step == 4
    with pytest.raises(ZeroDivisionError), watch(net) as again:
        1 / 0  # noqa: B018
    assert not site.recording
    assert again.rows == []


def test_other_models_optimizers_are_not_its_steps() -> None:
    net, other = network(), network()
    seen = watch(net)
    for _ in steps(other, torch.optim.SGD(other.parameters(), lr=0.1), 2):
        pass
    assert seen.step == 0
    with pytest.raises(lb.Error, match="nothing was recorded yet"):
        seen.plot()
    seen.close()


def test_pictures_and_tensorboard(tmp_path) -> None:
    _, seen = trained(network(), watched=1)
    assert seen is not None
    figure = seen.plot()
    assert [ax.get_title() for ax in figure.axes][:2] == [
        "GradScale (by what gradients are multiplied)",
        "clip of PACT",
    ]
    line = figure.axes[0].get_lines()[0]
    assert line.get_label() == "3"
    assert list(line.get_ydata()) == [row["grad_scale"] for row in seen.rows if row["layer"] == "3"]
    figure.savefig(tmp_path / "watch.png", dpi=40)

    class Writer:
        """What TensorBoard's writer has."""

        scalars: list[tuple[str, float, int]]

        def __init__(self) -> None:
            self.scalars = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.scalars.append((tag, value, step))

    writer = Writer()
    seen.to_tensorboard(writer)
    assert ("3/grad_scale", 4.0, 2) in writer.scalars
    assert len(writer.scalars) == sum(len(row) - 2 for row in seen.rows)


def test_float_models_have_batch_norms_to_watch() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False))
    with watch(net) as seen:
        for _ in steps(net, torch.optim.Adam(net.parameters()), 2):
            pass
    assert [row["layer"] for row in seen.rows] == ["1", "1"]
    assert seen.rows[0].keys() == {"step", "layer", "running_mean", "running_var"}
    assert repr(seen) == "Watch(0 products, 1 batch norms, 2 steps, 2 rows)"


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got int"):
        watch(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="every: expected an int, got float"):
        watch(network(), every=2.0)  # type: ignore[arg-type]
    with pytest.raises(lb.Error, match="every: 0 is not 1 or more"):
        watch(network(), every=0)
    with pytest.raises(lb.Error, match="there is nothing to watch; prepare it first"):
        watch(nn.Linear(2, 2))
