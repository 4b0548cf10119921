"""`lowbit.torch.qtorch` in training: quantizers' gradients, `OptimLP`, lowered models, and scripts of QPyTorch's."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lowbit as lb
import lowbit.torch.qtorch as package
from lowbit.torch.qtorch import BlockFloatingPoint, FixedPoint, FloatingPoint
from lowbit.torch.qtorch.auto_low import lower, sequential_lower
from lowbit.torch.qtorch.optim import OptimLP
from lowbit.torch.qtorch.quant import Quantizer, quantizer
from support import normal

F32 = np.float32


def nearest(number: Any) -> Any:
    return quantizer(number, forward_rounding="nearest")


def test_forward_and_backward_numbers() -> None:
    x = torch.from_numpy(normal(1000)).requires_grad_()
    grad = torch.from_numpy(normal(1000, 1))
    forward, backward = FixedPoint(8, 4), FloatingPoint(4, 3)
    for first, second in ((forward, backward), (forward, None), (None, backward), (None, None)):
        x.grad = None
        y = Quantizer(first, second, "nearest", "nearest")(x)
        y.backward(grad)
        want = x.detach() if first is None else first.quantize(x, "nearest")
        assert torch.equal(y.detach(), want)
        assert x.grad is not None
        assert torch.equal(x.grad, grad if second is None else second.quantize(grad, "nearest"))


def test_both_ways_are_seeded() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(4)
        x = torch.from_numpy(normal(1000)).requires_grad_()
        y = quantizer(FixedPoint(8, 4), FloatingPoint(4, 3))(x)
        y.backward(torch.from_numpy(normal(1000, 1)))
        assert x.grad is not None
        found.append((y.detach(), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backward", [None, FloatingPoint(8, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamped_numbers_have_no_gradient(dtype: torch.dtype, backward: FloatingPoint | None) -> None:
    """WAGE: a number whose rounding lies beyond an end; 1.9 rounds to 2, and the end is 1.75."""
    x = torch.tensor([-3.0, -2.0, 0.3, 1.75, 1.8, 1.9, 3.0, float("nan")]).to(dtype).requires_grad_()
    y = quantizer(FixedPoint(4, 2), backward, "nearest", "nearest", clamping_grad_zero=True)(x)
    y.backward(torch.full_like(x, 0.75))
    assert y[:-1].tolist() == [-2, -2, 0.25, 1.75, 1.75, 1.75, 1.75]
    assert y.dtype is dtype
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0.75, 0.75, 0.75, 0.75, 0, 0, 0.75]


def test_hooks_come_before_the_rounding_in_order() -> None:
    x = torch.ones(3, requires_grad=True)
    hooks = (lambda g: g + 1, lambda g: g * 100)
    for clamps in (False, True):
        x.grad = None
        number = FixedPoint(8, 4)
        quantizer(number, number, clamping_grad_zero=clamps, backward_hooks=iter(hooks))(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [127 / 16] * 3


def test_gradients_of_gradients_pass_straight_through() -> None:
    x = torch.tensor([0.3, 0.7], requires_grad=True)
    y = quantizer(FixedPoint(8, 4), FixedPoint(8, 4), "nearest", "nearest")(x * x)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    assert second.tolist() == [2, 2]


def test_quantizers_pickle_copy_and_checkpoint() -> None:
    module = Quantizer(FixedPoint(8, 4), BlockFloatingPoint(8, 0))
    x = torch.from_numpy(normal(64)).reshape(8, 8)
    torch.manual_seed(1)
    want = module(x)
    for other in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        torch.manual_seed(1)
        assert torch.equal(other(x), want)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(2)
        leaf = x.clone().requires_grad_()
        layers = nn.Sequential(Quantizer(FixedPoint(8, 4)), nn.Tanh())
        run = (
            (lambda t, layers=layers: torch.utils.checkpoint.checkpoint(layers, t, use_reentrant=False))
            if checkpointed
            else layers
        )
        run(leaf).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("number", [FixedPoint(8, 4), FloatingPoint(4, 3), BlockFloatingPoint(8, 0)], ids=repr)
def test_quantizers_compile_in_one_graph(number: Any) -> None:
    both = quantizer(number, number)
    found = []
    for run in (both, torch.compile(both, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(5)
        x = torch.from_numpy(normal(60)).reshape(6, 10).requires_grad_()
        y = run(x)
        y.backward(torch.from_numpy(normal(60, 1)).reshape(6, 10))
        found.append((y.detach(), x.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def fixed(x: np.ndarray, wl: int, fl: int) -> np.ndarray:
    """Ties to even; numbers of few bits, so that no sum rounds."""
    half = 2.0 ** (wl - 1)
    return np.clip(np.rint(x.astype(np.float64) * 2.0**fl), -half, half - 1) / 2.0**fl


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sgd_is_the_twin(momentum: float, accumulate: bool) -> None:
    """50 steps in float64; learning rate and momentum are powers of two, so that float32 is exact."""
    weight = nn.Parameter(torch.from_numpy(normal(64)))
    optimizer = OptimLP(
        torch.optim.SGD([weight], lr=0.125, momentum=momentum),
        weight_quant=nearest(FixedPoint(6, 3)),
        grad_scaling=4.0,
        grad_quant=nearest(FixedPoint(8, 4)),
        momentum_quant=nearest(FixedPoint(8, 4)),
        acc_quant=nearest(FixedPoint(12, 8)) if accumulate else None,
    )
    w = weight.detach().numpy().astype(np.float64)
    target, acc, velocity = normal(64, 1), w.copy(), None
    for step in range(50):
        weight.grad = (weight.detach() - torch.from_numpy(target)) * 0.25
        g = fixed(((w.astype(F32) - target) * F32(0.25)) * F32(4), 8, 4)
        point = acc if accumulate else w
        velocity = g if velocity is None else momentum * velocity + g
        point = point - 0.125 * (velocity if momentum else g)
        acc = fixed(point, 12, 8) if accumulate else point
        w = fixed(acc, 6, 3)
        velocity = fixed(velocity, 8, 4)
        optimizer.step()
        np.testing.assert_array_equal(weight.detach().numpy(), w, str(step))
        if momentum:
            np.testing.assert_array_equal(optimizer.state[weight]["momentum_buffer"].numpy(), velocity, str(step))
        if accumulate:
            np.testing.assert_array_equal(optimizer.weight_acc[weight].numpy(), acc, str(step))


def test_adam_is_the_twin() -> None:
    """50 steps in float64, each from where the optimizer stands; where float32's error decides, nothing is claimed."""
    weight = nn.Parameter(torch.from_numpy(normal(64)))
    formats = {"w": (10, 7), "acc": (16, 12), "m": (14, 11), "v": (14, 11)}
    rounding = {name: nearest(FixedPoint(*bits)) for name, bits in formats.items()}
    optimizer = OptimLP(
        torch.optim.Adam([weight], lr=0.05),
        weight_quant=rounding["w"],
        momentum_quant=rounding["m"],
        acc_quant=rounding["acc"],
    )
    w = acc = weight.detach().numpy().astype(np.float64)
    target, m, v, claims = normal(64, 1), np.zeros(64), np.zeros(64), 0
    for t in range(1, 51):
        weight.grad = weight.detach() - torch.from_numpy(target)
        g = (w.astype(F32) - target).astype(np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        acc = acc - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        optimizer.step()
        state = optimizer.state[weight]
        stands = {"acc": optimizer.weight_acc[weight], "m": state["exp_avg"], "v": state["exp_avg_sq"]}
        for name, want in (("acc", acc), ("m", m), ("v", v)):
            sure = np.abs(want * 2.0 ** formats[name][1] % 1 - 0.5) > 0.01
            np.testing.assert_array_equal(stands[name].numpy()[sure], fixed(want, *formats[name])[sure], f"{name} {t}")
            claims += int(sure.sum())
        acc, m, v = (stands[name].numpy().astype(np.float64) for name in ("acc", "m", "v"))
        w = fixed(acc, *formats["w"])
        np.testing.assert_array_equal(weight.detach().numpy(), w, str(t))
    assert claims > 0.95 * 50 * 3 * 64


def test_states_of_any_optimizer_are_found() -> None:
    for make in (
        lambda p: torch.optim.Adam(p, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
        torch.optim.Adagrad,
        torch.optim.NAdam,
    ):
        # Without dimensions, so that counters have its shape.
        weights = [
            nn.Parameter(torch.tensor(0.37)),
            nn.Parameter(torch.from_numpy(normal(6))),
            nn.Parameter(torch.ones(2)),
        ]
        optimizer = OptimLP(make(weights), momentum_quant=nearest(FixedPoint(20, 8)))
        for _ in range(3):
            for p in weights[:2]:
                p.grad = torch.full_like(p, 1.37)
            optimizer.step()
        state = optimizer.state[weights[1]]
        rounded = [value for value in state.values() if isinstance(value, torch.Tensor) and value.dim()]
        assert len(rounded) >= 1
        assert all(torch.equal(value * 256, (value * 256).round()) for value in rounded)
        assert float(optimizer.state[weights[0]]["step"]) == 3
        assert torch.equal(weights[2], torch.ones(2))


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_closure_is_called_on_rounded_weights_and_its_gradients_are_rounded(accumulate: bool) -> None:
    grid = FixedPoint(8, 4)
    weight = nn.Parameter(grid.quantize(torch.from_numpy(normal(8)), "nearest"))
    seen: list[torch.Tensor] = []
    optimizer = OptimLP(
        torch.optim.LBFGS([weight], lr=0.5, max_iter=4),
        weight_quant=nearest(grid),
        grad_quant=nearest(FixedPoint(12, 6)),
        acc_quant=nearest(FixedPoint(20, 12)) if accumulate else None,
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (weight - 0.3).square().sum()
        loss.backward()
        seen.append(weight.detach().clone())
        return loss

    memory, before = weight.data_ptr(), (weight - 0.3).square().sum().item()
    assert optimizer.step(closure).item() == before
    assert weight.data_ptr() == memory
    assert len(seen) > 1
    on_grid = [torch.equal(w * 16, (w * 16).round()) for w in seen]
    assert all(on_grid) if accumulate else on_grid[0]
    assert torch.equal(weight * 16, (weight * 16).round())
    assert weight.grad is not None
    assert torch.equal(weight.grad * 64, (weight.grad * 64).round())
    assert closure().item() < before


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def trained(steps: int, resume: dict[str, Any] | None = None) -> tuple[nn.Sequential, dict[str, Any]]:
    """Train with everything rounded stochastically; a checkpoint has the model, the optimizer and torch's generator."""
    model = network()
    optimizer = OptimLP(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        weight_quant=quantizer(FixedPoint(8, 6)),
        grad_quant=quantizer(FloatingPoint(5, 2)),
        momentum_quant=quantizer(BlockFloatingPoint(8)),
        acc_quant=quantizer(FixedPoint(16, 12)),
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        scheduler.load_state_dict(resume["scheduler"])
        torch.set_rng_state(resume["generator"])
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    return model, copy.deepcopy(state | {"generator": torch.get_rng_state()})


def test_resuming_is_exact() -> None:
    _, half = trained(5)
    (whole, _), (resumed, _) = trained(10), trained(5, half)
    for want, got in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(got, want)
    assert len(half["optimizer"]["accumulators"]) == 4
    half["optimizer"]["accumulators"].pop()
    with pytest.raises(lb.Error, match="3 accumulators for 4"):
        trained(1, half)


def test_parameters_added_later() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = OptimLP(torch.optim.SGD([first], lr=0.1), acc_quant=nearest(FixedPoint(12, 8)))
    optimizer.add_param_group({"params": [second], "lr": 1.0})
    assert optimizer.param_groups is optimizer.optim.param_groups
    first.grad, second.grad = torch.ones(2), torch.ones(3)
    optimizer.step()
    assert second.tolist() == [0] * 3
    assert len(optimizer.state_dict()["accumulators"]) == 2


def test_optimizers_refuse() -> None:
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="optim"):
        OptimLP([weight])  # type: ignore[arg-type]
    with pytest.raises(lb.Error, match="grad_scaling"):
        OptimLP(torch.optim.SGD([weight]), grad_scaling=0.0)


OPTIONS: dict[str, Any] = {"forward_number": FixedPoint(8, 4), "forward_rounding": "nearest"}


def test_lowered_models() -> None:
    x, model = torch.from_numpy(normal(32)).reshape(4, 8), network()
    hidden = FixedPoint(8, 4).quantize(model[0](x), "nearest").relu()
    want = FixedPoint(8, 4).quantize(model[2](hidden), "nearest")
    copied = sequential_lower(model, ["linear"], **OPTIONS)
    assert torch.equal(copied(x), want)
    assert list(copied.state_dict()) == ["0.0.weight", "0.0.bias", "2.0.weight", "2.0.bias"]
    assert not torch.equal(model(x), want)
    seen: list[torch.Tensor] = []
    model[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    lower(model, ["linear"], **OPTIONS)
    assert torch.equal(model(x), want)
    assert torch.equal(seen[0], want)
    clone = pickle.loads(pickle.dumps(network_lowered()))
    assert torch.equal(clone(x), want)
    with pytest.raises(lb.Error, match="layer_types"):
        lower(model, ["rnn"])


def network_lowered() -> nn.Sequential:
    model = network()
    lower(model, ["linear"], **OPTIONS)
    return model


def test_a_shared_layer_is_lowered_once_and_derived_classes_never() -> None:
    class Mine(nn.Linear):
        pass

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = self.again = nn.Linear(2, 2)
            self.inner = nn.ModuleDict({"mine": Mine(2, 2), "list": nn.ModuleList([nn.Linear(2, 2)])})
            self.nothing: nn.Module | None = None

    lowered = sequential_lower(Twice(), ["linear"], **OPTIONS)
    assert lowered.layer is lowered.again
    assert isinstance(lowered.layer, nn.Sequential)
    assert isinstance(lowered.layer[0], nn.Linear)
    assert type(lowered.inner["mine"]) is Mine
    assert isinstance(lowered.inner["list"][0], nn.Sequential)
    assert isinstance(sequential_lower(nn.Linear(2, 2), ["linear"], **OPTIONS), nn.Sequential)


SCRIPT = """
import lowbit.torch.qtorch
lowbit.torch.qtorch.install()

import qtorch
import torch
from qtorch import BlockFloatingPoint, FixedPoint, FloatingPoint, Number
from qtorch.auto_low import lower, sequential_lower
from qtorch.number import FixedPoint as Fixed
from qtorch.optim import OptimLP
from qtorch.optim.optim_low import OptimLP as Same
from qtorch.quant import Quantizer, block_quantize, fixed_point_quantize, float_quantize, quantizer
from qtorch.quant.quant_function import quantizer as same

assert OptimLP is Same and quantizer is same and Fixed is FixedPoint and qtorch.quant.quantizer is same
torch.manual_seed(0)
number = BlockFloatingPoint(wl=8, dim=0)
net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
net = sequential_lower(net, layer_types=["linear"], forward_number=number, backward_number=number)
rounding = quantizer(forward_number=number, forward_rounding="stochastic")
optimizer = OptimLP(
    torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    weight_quant=rounding,
    grad_quant=rounding,
    momentum_quant=rounding,
    acc_quant=quantizer(FloatingPoint(exp=8, man=23)),
)
x = torch.randn(256, 2)
y = x[:, :1] * x[:, 1:]
losses = []
for _ in range(200):
    optimizer.zero_grad()
    loss = (net(x) - y).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses[0] > 5 * losses[-1], FixedPoint(8, 4), FloatingPoint(5, 2), number)
"""


def test_a_script_that_imports_qtorch_runs() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    want = "True FixedPoint (wl=8, fl=4) FloatingPoint (exponent=5, mantissa=2) BlockFloatingPoint (wl=8, dim=0)\n"
    assert run.stdout == want


def test_install_and_uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "qtorch"]:
        monkeypatch.delitem(sys.modules, name)
    package.uninstall()
    package.install()
    package.install()
    assert sys.modules["qtorch"] is package
    package.uninstall()
    assert "qtorch" not in sys.modules
    assert "qtorch.quant" not in sys.modules
    theirs = {name: types.ModuleType(name) for name in ("qtorch", "qtorch.quant", "qtorch.more")}
    for name, module in theirs.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(lb.Error, match="force"):
        package.install()
    package.install(force=True)
    assert sys.modules["qtorch.quant"] is package.quant
    assert "qtorch.more" not in sys.modules
    package.uninstall()
    assert {name: sys.modules.get(name) for name in theirs} == theirs
