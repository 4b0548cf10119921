"""Norms and ReLU that keep little: torch's forward pass, honest gradients, and the bytes that really wait."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lowbit.torch import _bits, ops, prepare, recipes
from lowbit.torch._compress import compress


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def twin(module: nn.Module) -> nn.Module:
    """Give a compressed copy with parameters of its own."""
    made = copy.deepcopy(module)
    compress(made)
    return made


def affine(norm: nn.Module) -> nn.Module:
    """Give weight and bias values that tell channels apart."""
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(torch.int32)


def near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether two tensors agree: integers exactly, floats by the norm of their difference."""
    a, b = a.detach().double(), b.detach().double()
    return bool((a - b).norm() <= tolerance * a.norm())


def some_gradient(y: Tensor) -> Tensor:
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)


def both(module: nn.Module, x: Tensor, grad: Tensor | None = None) -> list[tuple[Tensor, ...]]:
    """Run torch's module and its twin; give result, dL/dx and the parameters' gradients of each."""
    results = []
    module.zero_grad()
    for one in (module, twin(module)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = one(leaf)
        y.backward(some_gradient(y) if grad is None else grad)
        assert leaf.grad is not None
        results.append((y, leaf.grad, *(p.grad for p in one.parameters()), *(b.clone() for b in one.buffers())))
    return results


NORMS: list[Callable[[], nn.Module]] = [
    lambda: nn.BatchNorm2d(6),
    lambda: nn.BatchNorm2d(6, momentum=None),
    lambda: nn.BatchNorm2d(6, affine=False),
    lambda: nn.BatchNorm2d(6, track_running_stats=False),
    lambda: nn.BatchNorm2d(6, eps=0.1, momentum=0.7).eval(),
    lambda: nn.BatchNorm2d(6, track_running_stats=False).eval(),
    lambda: nn.LayerNorm((7, 5)),
    lambda: nn.LayerNorm(5, bias=False),
    lambda: nn.LayerNorm(5, elementwise_affine=False),
]


@pytest.mark.parametrize("make", NORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norms_compute_what_torch_computes(make: Callable[[], nn.Module], layout: torch.memory_format) -> None:
    norm = affine(make())
    x = (3 * torch.randn(16, 6, 7, 5) + 10).to(memory_format=layout)
    for _ in range(2):  # running averages depend on how many came before
        theirs, ours = both(norm, x)
    assert torch.equal(bits(theirs[0]), bits(ours[0]))
    averages = len(list(norm.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(theirs[-averages:], ours[-averages:], strict=True) if averages)
    assert theirs[0].stride() == ours[0].stride()
    for a, b in zip(theirs[1:], ours[1:], strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        # 8 bits: a step of 1/40 of a deviation, in sums of many.
        assert near(a, b, 0.02)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [(nn.BatchNorm1d(6), (16, 6)), (nn.BatchNorm1d(6), (16, 6, 9)), (nn.BatchNorm3d(6), (8, 6, 4, 3, 2))],
)
def test_batch_norms_of_other_dimensions(norm: nn.Module, shape: tuple[int, ...]) -> None:
    theirs, ours = both(norm, torch.randn(shape))
    for a, b in zip(theirs, ours, strict=True):
        assert near(a, b, 0.02)


def outcome(call: Callable[[], Tensor]) -> tuple[str, str]:
    try:
        return "shape", str(tuple(call().shape))
    except (ValueError, RuntimeError) as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm2d(6), (1, 6, 1, 1)),
        (nn.BatchNorm1d(6), (1, 6)),
        (nn.BatchNorm2d(6), (4, 6)),
        (nn.BatchNorm2d(6), (4, 5, 2, 2)),
        (nn.BatchNorm2d(6), (0, 6, 2, 2)),
        (nn.BatchNorm2d(6).eval(), (0, 6, 2, 2)),
        (nn.LayerNorm(6), (0, 6)),
        (nn.LayerNorm(6), (3, 5)),
        (nn.ReLU(), (0, 3)),
        (nn.ReLU(), ()),
    ],
)
def test_odd_inputs_end_as_in_torch(norm: nn.Module, shape: tuple[int, ...]) -> None:
    made = twin(norm)
    x = torch.randn(shape, requires_grad=True)
    assert outcome(lambda: made(x)) == outcome(lambda: norm(x))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.LayerNorm(12), nn.BatchNorm1d(4).eval()])
def test_gradients_are_unbiased(norm: nn.Module) -> None:
    """Over many roundings the mean gradient comes as near to torch's as its standard error says."""
    norm, x = affine(norm), torch.randn(5, 4, 12)
    grad = torch.randn_like(x)
    theirs, _ = both(norm, x, grad)
    draws = [both(norm, x, grad)[1][1:4] for _ in range(300)]
    for place, exact in enumerate(theirs[1:4]):
        sample = torch.stack([draw[place] for draw in draws]).double()
        error, spread = sample.mean(0) - exact, sample.std(0) / len(draws) ** 0.5
        # The bias of dL/dx that the module's notes bound, and what float32 rounds.
        allowed = 6 * spread + 2e-5 * exact.abs().max()
        assert (error.abs() <= allowed).all(), (place, (error.abs() / allowed).max())
    # and it is an estimate: without noise there would be nothing to see
    if norm.training:
        assert torch.stack([draw[1] for draw in draws]).std(0).min() > 0


def test_relu_is_torchs_bit_for_bit() -> None:
    x = torch.randn(3, 5, 4, 7)
    x.view(-1)[:8] = torch.tensor([0.0, -0.0, float("nan"), -float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45])
    grad = torch.randn_like(x)
    grad.view(-1)[-4:] = torch.tensor([float("nan"), float("inf"), -0.0, float("nan")])
    for layout in (torch.contiguous_format, torch.channels_last):
        theirs, ours = both(nn.ReLU(), x.to(memory_format=layout), grad.to(memory_format=layout))
        for a, b in zip(theirs, ours, strict=True):
            assert torch.equal(bits(a), bits(b))
            assert a.stride() == b.stride()
    # What is not dense, and a gradient that is laid out in another way than the result.
    theirs, ours = both(nn.ReLU(), x[:, ::2, :, 1::2], grad[:, 1:4, :, :3].transpose(0, 1).transpose(0, 1))
    assert torch.equal(bits(theirs[1]), bits(ours[1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    x = torch.randn(16, 6, 5, 4).to(dtype)
    theirs, ours = both(nn.ReLU(), x)
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))
    for norm in (nn.BatchNorm2d(6).to(dtype), nn.LayerNorm(4).to(dtype)):
        theirs, ours = both(norm, x)
        assert torch.equal(theirs[0], ours[0])
        for a, b in zip(theirs[1:], ours[1:], strict=True):
            assert a.dtype == b.dtype
            assert near(a, b, 0.03)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.LayerNorm(5)])
def test_autocast(norm: nn.Module) -> None:
    """A norm under autocast sees bfloat16 and has float32 parameters."""
    layers = [nn.Conv2d(3, 6, 3, bias=False), norm, nn.ReLU()]
    x, results = torch.randn(4, 3, 7, 7), []
    for net in (nn.Sequential(*layers), nn.Sequential(layers[0], *map(twin, layers[1:]))):
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = net(x)
        y.float().backward(some_gradient(y.float()))
        results.append([y, *(p.grad for p in net.parameters())])
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert near(a, b, 0.05)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_goes_through(bad: float) -> None:
    """No error, NaN where torch has NaN (blocks may spread it), so that a loss scaler sees it."""
    x = torch.randn(4, 3, 10, 10)
    x[1, 2, 3, 4] = bad
    for norm in (nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval(), nn.LayerNorm(10)):
        theirs, ours = both(norm, x)
        assert torch.equal(bits(theirs[0]), bits(ours[0]))
        for a, b in zip(theirs[1:4], ours[1:4], strict=True):
            assert b[a.isnan()].isnan().all()
            assert a.isfinite().all() or not b.isfinite().all()


def test_relu_in_place() -> None:
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    ours, theirs = twin(nn.ReLU(inplace=True)), nn.ReLU(inplace=True)
    grads = []
    for relu in (theirs, ours):
        inner = 2 * x
        y = relu(inner)
        assert y.data_ptr() == inner.data_ptr()
        grads += torch.autograd.grad(y.square().sum(), x)
        part = 2 * x
        relu(part[:, 2:4])  # a view: the whole knows
        grads += torch.autograd.grad(part.square().sum(), x)
        needed = x.sigmoid()
        relu(needed)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            needed.sum().backward()
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            relu(x)
    assert torch.equal(grads[0], grads[2])
    assert torch.equal(grads[1], grads[3])


def test_twins_are_torchs_modules() -> None:
    calls = []
    for module in (nn.ReLU(True), nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.LayerNorm(3)):
        module.register_forward_hook(lambda *_: calls.append(1))
        kind, text, state, parameters = type(module), repr(module), module.state_dict(), list(module.parameters())
        compress(module.eval())
        compress(module)  # a second time changes nothing
        assert type(module).__module__ == "lowbit.torch._compress"
        assert isinstance(module, kind)
        assert not module.training
        assert repr(module) == text
        assert module.state_dict().keys() == state.keys()
        assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
        module(torch.randn(2, 3, *{nn.BatchNorm2d: (4, 4), nn.BatchNorm3d: (2, 2, 2)}.get(kind, ())))
    assert len(calls) == 5

    class Own(nn.BatchNorm2d):
        """May compute something else."""

    own = Own(3)
    compress(own)
    assert type(own) is Own


def test_nothing_is_kept_without_a_backward_pass_nor_drawn_in_evaluation() -> None:
    norm, relu, x = twin(nn.BatchNorm2d(3)), twin(nn.ReLU()), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert relu(norm(x)).grad_fn is None
    norm.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        norm(x)
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_of_gradients_are_refused() -> None:
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    for module in (nn.BatchNorm2d(3), nn.ReLU(), nn.LayerNorm(5)):
        (grad,) = torch.autograd.grad(twin(module)(x).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def test_seeds_checkpoints_and_compile() -> None:
    net = twin(network())
    x = torch.randn(4, 3, 9, 9)

    def gradients(run: Callable[[Tensor], Tensor], seed: int = 1) -> list[Tensor]:
        torch.manual_seed(seed)
        return list(torch.autograd.grad(run(x).square().sum(), list(net.parameters())))

    def checkpointed(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)

    eager = gradients(net)
    assert all(map(torch.equal, eager, gradients(net)))
    assert not all(map(torch.equal, eager, gradients(net, seed=2)))
    assert all(map(torch.equal, eager, gradients(checkpointed)))
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True, dynamic=True)
    assert all(map(torch.equal, eager, gradients(compiled)))


def test_operators() -> None:
    mask = torch.rand(3, 7) < 0.5
    packed = _bits.pack_bits(mask)
    assert torch.equal(_bits.unpack_bits(packed, mask.shape).bool(), mask)
    y, key = torch.randn(1000), torch.tensor([1, -2])
    assert torch.equal(_bits.unpack_bits(_bits.pack_positive(y), y.shape).bool(), y > 0)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.lowbit.pack_bits.default, (mask,), test_utils=tests)
    torch.library.opcheck(torch.ops.lowbit.pack_positive.default, (y,), test_utils=tests)
    torch.library.opcheck(torch.ops.lowbit.unpack_bits.default, (packed, [3, 7]), test_utils=tests)
    torch.library.opcheck(torch.ops.lowbit.compress.default, (y, key), test_utils=tests)
    codes, scale = torch.ops.lowbit.compress(y, key)
    torch.library.opcheck(torch.ops.lowbit.decompress.default, (codes, scale), test_utils=tests)
    assert codes.nbytes + scale.nbytes == 1000 + 4 * 4
    assert (torch.ops.lowbit.decompress(codes, scale) - y).abs().max() <= scale.max()


@pytest.mark.parametrize("n", [0, 1, 8, 9, 63])
def test_bits_of_other_devices_are_the_same(n: int) -> None:
    mask = torch.rand(n) < 0.5
    packed = _bits.pack_bits(mask)
    assert torch.equal(_bits.packed_plain(mask), packed)
    assert torch.equal(_bits._unpacked_plain(packed, [n]), _bits.unpack_bits(packed, [n]))


def test_torchs_operations_compress_to_the_same_bits() -> None:
    n, key = torch.randn(1000), torch.tensor([3, -4])
    n[300] = float("nan")
    kept = torch.ops.lowbit.compress(n, key)
    ops.use_plain(True)
    try:
        plain = torch.ops.lowbit.compress(n, key)
        back = torch.ops.lowbit.decompress(*plain)
    finally:
        ops.use_plain(False)
    assert torch.equal(plain[0], kept[0])
    assert torch.equal(bits(plain[1]), bits(kept[1]))
    assert torch.equal(back.nan_to_num(), torch.ops.lowbit.decompress(*kept).nan_to_num())
    assert torch.equal(back.isnan(), torch.arange(1000).div(256, rounding_mode="floor") == 1)


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps: every storage once, parameters not."""
    seen: dict[int, Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            seen[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        assert module(x).requires_grad
    return sum(x.untyped_storage().nbytes() for x in seen.values())


def test_bytes_that_wait_for_the_backward_pass() -> None:
    x = torch.randn(8, 16, 16, 16, requires_grad=True)
    for module, most in ((nn.BatchNorm2d(16), 0.26), (nn.ReLU(), 1 / 32), (nn.LayerNorm(16), 0.32)):
        assert saved_bytes(module, 2 * x) >= x.nbytes
        assert saved_bytes(twin(module), 2 * x) <= most * x.nbytes


def residual_free(channels: int = 16, blocks: int = 6) -> nn.Sequential:
    """Conv-BN-ReLU, as in a plain vision network, with a linear head."""
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers += [nn.Conv2d(channels if i else 3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


@pytest.mark.parametrize(("compressed", "least", "most"), [(True, 0.15, 0.35), (False, 1.0, 1.1)])
def test_bytes_of_a_quantized_network(compressed: bool, least: float, most: float) -> None:
    """Norms and ReLUs keep float32 by themselves: what convolutions save is then not seen, as ReLU keeps it anyway."""
    x = torch.randn(8, 3, 16, 16)
    theirs = residual_free()
    ours = prepare(copy.deepcopy(theirs), recipes.sun2020(), compress_activations=compressed)
    assert least <= saved_bytes(ours, x) / saved_bytes(theirs, x) <= most


RESIDENT = """
import sys, torch
from torch import nn
from lowbit.torch._compress import compress

torch.set_num_threads(1)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def grown(net):
    x = torch.randn(16, 16, 56, 56)
    net(x[:1].clone()).sum().backward()
    before = resident()
    y = net(x)
    return (resident() - before) / y.nbytes

net = nn.Sequential(*(layer for _ in range(4) for layer in (nn.BatchNorm2d(16), nn.ReLU())))
theirs = grown(net)
compress(net)
print(theirs, grown(net))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_process_grows_by_as_little() -> None:
    """Pages that a forward pass leaves behind, in units of one activation; large tensors are pages of their own."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, "-c", RESIDENT], env=environment, capture_output=True, text=True, check=True)
    theirs, ours = map(float, run.stdout.split())
    # torch: each norm keeps its input, each ReLU its result, which is the next norm's input.
    assert abs(theirs - 4) < 0.2
    # 4 norms at 8.125 bits, 4 ReLUs at 1, and the result; less where pages of before are taken again.
    assert 1 <= ours < 4 * (8.125 + 1) / 32 + 1 + 0.2
