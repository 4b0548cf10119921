"""Catch what a layer's matrix products see, (x, W, dL/dy), at the start, the middle and the end of a float32 training.

Convolutions are caught as the matrix products they are: a row of `x` for every place of every image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import models
import recipes
import torch
from runs import rate_at
from tasks import TASKS, Task, batches
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, fold, unfold

MOMENTS = {"start": 0.0, "middle": 0.5, "end": 1.0}


@dataclass(frozen=True)
class Caught:
    """The operands of one layer: ``y = x @ w.T``.

    Attributes
    ----------
    name : str
        The layer's.
    x, w, dy : torch.Tensor
        Shapes (n, k), (m, k) and (n, m).
    back : callable
        Brings ``dy @ w`` of shape (n, k) to the shape of the layer's input, summing where patches overlap.
    """

    name: str
    x: Tensor
    w: Tensor
    dy: Tensor
    back: Callable[[Tensor], Tensor]


def same(dx: Tensor) -> Tensor:
    """Leave a layer's input gradient as it is."""
    return dx


def as_matrices(name: str, layer: nn.Module, x: Tensor, dy: Tensor) -> Caught:
    """Write the products of a linear layer or a convolution as products of matrices."""
    if isinstance(layer, nn.Linear):
        return Caught(name, x.reshape(-1, x.shape[-1]), layer.weight.detach(), dy.reshape(-1, dy.shape[-1]), same)
    assert isinstance(layer, nn.Conv2d)
    how: dict[str, Any] = {"kernel_size": layer.kernel_size, "padding": layer.padding, "stride": layer.stride}
    patches = unfold(x, **how).transpose(1, 2)

    def back(dx: Tensor) -> Tensor:
        return fold(dx.view(patches.shape).transpose(1, 2), x.shape[2:], **how)

    rows = dy.flatten(2).transpose(1, 2).reshape(-1, dy.shape[1])
    return Caught(name, patches.flatten(0, 1), layer.weight.detach().flatten(1), rows, back)


def from_modules(model: nn.Module, x: Tensor, y: Tensor) -> list[Caught]:
    """Catch every linear layer and convolution but the first and the last."""
    layers = {n: m for n, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}
    inputs: dict[str, Tensor] = {}
    caught: list[Caught] = []

    def remember(name: str) -> Callable[..., None]:
        return lambda _, args: inputs.__setitem__(name, args[0].detach())

    def catch(name: str, layer: nn.Module) -> Callable[..., None]:
        return lambda _, grads: caught.append(as_matrices(name, layer, inputs[name], grads[0]))

    hooks = []
    for name, layer in list(layers.items())[1:-1] if isinstance(model, nn.Sequential) else list(layers.items())[:-1]:
        hooks.append(layer.register_forward_pre_hook(remember(name)))
        hooks.append(layer.register_full_backward_pre_hook(catch(name, layer)))
    cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    return caught[::-1]


def from_lstm(model: models.Speech, x: Tensor, y: Tensor) -> list[Caught]:
    """Catch both products of both LSTM layers, which torch computes in one call: here step by step."""
    frames, present = x[..., :-1], x[..., -1:] > 0
    states = torch.relu(model.first(frames))
    kept: list[tuple[str, Tensor, Tensor, list[Tensor]]] = []
    for k in range(model.lstm.num_layers):
        w, u, b, c = (getattr(model.lstm, f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = cell = states.new_zeros(len(x), model.lstm.hidden_size)
        gates, hidden = [], []
        for t in range(states.shape[1]):
            hidden.append(h)
            gates.append(states[:, t] @ w.T + b + h @ u.T + c)
            i, f, g, o = gates[-1].chunk(4, dim=1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(cell)
        kept.append((f"lstm {k}, input", states.detach().transpose(0, 1).flatten(0, 1), w.detach(), gates))
        kept.append((f"lstm {k}, hidden", torch.cat(hidden).detach(), u.detach(), gates))
        states = torch.stack([*hidden[1:], h], dim=1)
    loss = cross_entropy(model.last((states * present).sum(1) / present.sum(1)), y)
    found = torch.autograd.grad(loss, [gate for *_, gates in kept[::2] for gate in gates])
    steps = x.shape[1]
    sums = [torch.cat(found[k * steps : (k + 1) * steps]) for k in range(model.lstm.num_layers)]
    return [Caught(name, x_in, w, sums[i // 2], same) for i, (name, x_in, w, _) in enumerate(kept)]


def moments(task: Task, seed: int) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """Train in float32 and stop at every moment, with the model and a batch."""
    torch.set_num_threads(1)
    data = task.data(seed)
    torch.manual_seed(seed)
    model, groups = recipes.prepared(task.model(data.classes), "float32", task.decay)
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups, task.rate) if task.adam else torch.optim.SGD(groups, task.rate, momentum=0.9)
    )
    stops = {round(share * task.steps): name for name, share in MOMENTS.items()}
    for step, (x, y) in enumerate(batches(task, data, task.steps + 1, seed)):
        if step in stops:
            yield stops[step], model, x, y
        for group in optimizer.param_groups:
            group["lr"] = task.rate * rate_at(step, task.steps)
        loss = cross_entropy(model(x).flatten(0, -2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def catch(name: str, seed: int = 0) -> Iterator[tuple[str, list[Caught]]]:
    """Give the layers of a task's network at every moment."""
    for moment, model, x, y in moments(TASKS[name], seed):
        yield moment, from_lstm(model, x, y) if isinstance(model, models.Speech) else from_modules(model, x, y)
