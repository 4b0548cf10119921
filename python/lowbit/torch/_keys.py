"""Keys as tensors, so that graphs can carry them, and the stream (``docs/stream.md``) in torch operations.

A key is an int64 tensor of shape (2,): the words of `lowbit.Key`, read as two's complement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch.utils import _python_dispatch

from lowbit import _arguments
from lowbit._keys import Key, _label, _word

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit._arguments import Words

#: What operations take as `key`: a key, the seed of one, its two words, or a generator that two words are drawn from.
KeyLike: TypeAlias = "Key | int | Tensor | torch.Generator"

_GOLDEN = 0x9E3779B97F4A7C15


def signed(word: int) -> int:
    """Read 64 bits as two's complement."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


def _shifted(z: Tensor, n: int) -> Tensor:
    """Shift 64 bits right, zeros moving in (torch's ``>>`` moves the sign in)."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finalizer; int64 products wrap."""
    z = (z ^ _shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def draw(generator: torch.Generator | None = None) -> Tensor:
    """Draw a key from a generator, by default torch's own for CPUs (whose state checkpoints and forks keep)."""
    if generator is None:
        return torch.randint(-(1 << 63), (1 << 63) - 1, (2,), dtype=torch.int64, device="cpu")
    return torch.randint(-(1 << 63), (1 << 63) - 1, (2,), generator=generator, device=generator.device).cpu()


def pack(words: Words) -> Tensor:
    """Give the tensor of a key's two words."""
    if torch.compiler.is_compiling():
        return torch.tensor([signed(words[0]), signed(words[1])], dtype=torch.int64, device="cpu")
    return torch.from_numpy(np.array(words, np.uint64).view(np.int64))


def words(key: Tensor) -> Words:
    """Give the two words of a key's tensor."""
    k0, k1 = key.tolist()
    return k0 % (1 << 64), k1 % (1 << 64)


def of(key: KeyLike | None, *, private: bool) -> Tensor | None:
    """Give the tensor of a key; generators serve noise that is `private` only.

    Raises
    ------
    TypeError
        `key` is none of `KeyLike`.
    lowbit.Error
        A tensor has not two words, or an int is out of range.
    """
    if key is None:
        return None
    if isinstance(key, torch.Tensor):
        if key.dtype is not torch.int64 or key.shape != (2,):
            shape = tuple(key.shape)
            raise TypeError(f"key: expected an int64 tensor of shape (2,), its words, got {key.dtype} of shape {shape}")
        return key
    if isinstance(key, torch.Generator):
        if not private:
            raise TypeError("key: a Generator serves only noise that nobody else must know; give a Key or an int")
        return draw(key)
    if isinstance(key, Key):
        return pack(key.words)
    found = _arguments.words(key, private=private)
    assert found is not None
    return pack(found)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _numbers(parts: tuple[int | str, ...]) -> list[int]:
    """Give the integers that parts of a fold stand for, as two's complement of G (i + 1)."""
    numbers = [n for part in parts for n in (_label(part) if isinstance(part, str) else (_word(part, "fold"),))]
    return [signed((_GOLDEN * (n + 1)) % (1 << 64)) for n in numbers]


def watched() -> bool:
    """Whether graphs, modes or transforms look at what runs, which must then be operators."""
    return (
        torch.compiler.is_compiling()
        or _python_dispatch.is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def fold(key: Tensor, *parts: int | str) -> Tensor:
    """Derive a child key, as `lowbit.Key.fold` does."""
    if type(key) is torch.Tensor and key.device.type == "cpu" and not watched():
        return pack(Key.from_words(*words(key)).fold(*parts).words)
    return folded(key, *parts)


def folded(key: Tensor, *parts: int | str) -> Tensor:
    """`fold` in operations on tensors, which graphs can carry and other devices can do."""
    k0, k1 = key.unbind()
    for step in _numbers(parts):
        k0 = _mix(k0 + step)
        k1 = _mix(k1 ^ k0)
    return torch.stack((k0, k1))


def identity(key: Tensor) -> Tensor:
    """Tell a key from others: the word, an int64 of no dimensions, whose eight bytes are NumPy's `key_id`."""
    return fold(key, "key id")[1].clone()


def random_bits(key: Tensor, n: int) -> Tensor:
    """Read the first `n` words of a key's stream: int64, each from 0 to 2**32 - 1, on the key's device."""
    k0, k1 = key.unbind()
    step = k1 | 1
    changes = step ^ _shifted(step, 1)
    count = ((changes >> torch.arange(64, device=key.device)) & 1).sum()
    step = torch.where(count < 24, step ^ signed(0xAAAAAAAAAAAAAAAA), step)
    word = _mix(k0 + torch.arange(1, n // 2 + 2, device=key.device) * step)
    return torch.stack((word & 0xFFFFFFFF, _shifted(word, 32)), -1).flatten()[:n]
