"""Training goes on where it was saved, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from lowbit.torch import prepare, recipes
from torch_layer.layer_support import RECIPES, equal_models, normal

T = torch.nn


class Net(T.Module):
    """A convolution, an LSTM and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = T.Conv1d(3, 8, 3, padding=1)
        self.norm = T.BatchNorm1d(8)
        self.conv = T.Conv1d(8, 8, 3, padding=1)
        self.lstm = T.LSTM(8, 8, num_layers=2, dropout=0.25)
        self.mix = T.Linear(8, 8)
        self.last = T.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 3, time) -> two classes."""
        x = self.conv(self.norm(self.first(x)).relu()).relu()
        x = self.lstm(x.permute(2, 0, 1))[0].mean(0)
        return self.last(self.mix(x).relu())


Trainer = tuple[T.Module, torch.optim.Optimizer]


def start(recipe: str) -> Trainer:
    torch.manual_seed(0)
    model = prepare(Net(), RECIPES[recipe]())
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


def train(model: T.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for k in range(first, last):
        optimizer.zero_grad()
        for half in (0, 1):  # accumulated over two passes
            x = normal(6, 3, 4, seed=2 * k + half)
            T.functional.cross_entropy(model(x), torch.arange(6) % 2).backward()
        optimizer.step()


@pytest.mark.parametrize("recipe", ["sun2020", "luq", "luq, in hindsight", "nvfp4"])
def test_ten_steps_are_five_and_five(recipe: str, tmp_path: Path) -> None:
    whole, optimizer = start(recipe)
    train(whole, optimizer, 0, 5)
    torch.save(whole.state_dict(), tmp_path / "model.pt")
    safetensors.torch.save_file(whole.state_dict(), tmp_path / "model.safetensors")
    torch.save({"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, tmp_path / "rest.pt")
    train(whole, optimizer, 5, 10)

    by_torch = torch.load(tmp_path / "model.pt", weights_only=True)
    for state in (by_torch, safetensors.torch.load_file(tmp_path / "model.safetensors")):
        resumed, optimizer = start(recipe)  # as another process would
        resumed.load_state_dict(state)
        rest = torch.load(tmp_path / "rest.pt", weights_only=True)
        optimizer.load_state_dict(rest["optimizer"])
        torch.set_rng_state(rest["rng"])
        train(resumed, optimizer, 5, 10)
        equal_models(resumed, whole)


def test_every_kind_of_state_has_moved(tmp_path: Path) -> None:
    """Else the test above would prove nothing."""
    fresh, _ = start("sun2020")
    model, optimizer = start("sun2020")
    train(model, optimizer, 0, 5)
    for kind in ("clip", "grad_scale"):
        names = [name for name in model.state_dict() if name.endswith(kind)]
        assert len(names) == 2 + 4
        assert any(not torch.equal(model.state_dict()[name], fresh.state_dict()[name]) for name in names), kind


def test_a_saved_sign_is_loaded_before_the_first_batch() -> None:
    """PACT's choice of format belongs to the state: loading must not choose again."""
    for first in (normal(4, 8), normal(4, 8).relu()):
        trained = prepare(T.Linear(8, 4), recipes.sun2020())
        trained(first)
        fresh = prepare(T.Linear(8, 4), recipes.sun2020())
        fresh.load_state_dict(trained.state_dict())
        for x in (normal(5, 8, seed=3).relu(), normal(5, 8, seed=4)):
            assert torch.equal(fresh(x), trained(x))
            assert torch.equal(fresh.site.clip, trained.site.clip)


@pytest.mark.parametrize("recipe", ["sun2020", "luq", "nvfp4", "ternary"])
def test_names_are_the_float_models_and_sites(recipe: str) -> None:
    plain = Net().state_dict()
    state = prepare(Net(), RECIPES[recipe]()).state_dict()
    assert plain.keys() <= state.keys()
    assert all(".site." in f".{name}" or "site" in name for name in state.keys() - plain.keys())


def test_a_float_checkpoint_is_loaded_without_strict() -> None:
    plain = Net()
    model = prepare(Net(), recipes.sun2020())
    found = model.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert torch.equal(model.conv.weight, plain.conv.weight)
    with pytest.raises(RuntimeError, match="site"):
        model.load_state_dict(plain.state_dict())


def test_loading_into_the_float_model_names_what_it_does_not_know() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Net().load_state_dict(prepare(Net(), recipes.sun2020()).state_dict())


def test_a_copy_trains_as_the_original() -> None:
    model, optimizer = start("luq")
    train(model, optimizer, 0, 3)
    twin = copy.deepcopy(model)
    own = torch.optim.AdamW(twin.parameters(), lr=3e-3)
    own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for trainer in ((model, optimizer), (twin, own)):
        torch.manual_seed(7)
        train(*trainer, 3, 6)
    equal_models(model, twin)
