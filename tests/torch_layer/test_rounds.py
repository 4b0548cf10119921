"""Averages of a group by messages are those that one process computes, for every strategy; failures reach all ranks."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import lowbit as lb
from lowbit.torch import _exchange, _rounds, _sums
from lowbit.torch._rounds import Rounds
from torch_layer.ranks import Failed, ranks

KEY = lb.Key(2024).fold("round", 3)
#: One above a block, one that two ranks cannot halve, one to be padded, small ones, none.
SHAPES = {"w": (70_000,), "layer.weight": (37, 211), "odd": (1025,), "bias": (211,), "one": (), "none": (0, 3)}

ALL = [
    (lb.Eden(1), "all_gather", None),
    (lb.Eden(0.5), "all_gather", None),
    (lb.QuicFl(2), "all_gather", None),
    (lb.Eden(1, entropy_coded=True), "two_phase", None),
    (lb.Eden(1), "two_phase", lb.Eden(4)),
    (lb.TernGrad(), "two_phase", None),
    (lb.Sign(), "all_gather", None),
    (lb.Sign(), "two_phase", None),
    (lb.Summable(4), "all_gather", None),
    (lb.Summable(1), "sum", None),
    (lb.Summable(4), "sum", None),
    (lb.Summable(8), "sum", None),
]


def vectors(rank: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a rank has: another size for every tensor, and something in common with the other ranks."""
    tensors = {}
    for k, (name, shape) in enumerate(SHAPES.items()):
        shared = np.random.default_rng([seed, k]).standard_normal(shape)
        own = np.random.default_rng([seed, k, rank + 1]).standard_normal(shape)
        tensors[name] = torch.from_numpy(np.asarray((shared + own) * 10.0**-k, np.float32))
    return tensors


def parts_of(name: str, d: int, size: int) -> list[tuple[int, int, int]]:
    """Where the parts of "two_phase" begin and end, and who owns them."""
    width = max(-(-d // (size * 4096)), 1) * 4096
    return [(at, min(at + width, d), (zlib.crc32(name.encode()) + j) % size) for j, at in enumerate(range(0, d, width))]


def expected(
    tensors: Sequence[dict[str, torch.Tensor]], codec: lb.Codec, strategy: str, second: lb.Codec | None
) -> dict[str, np.ndarray]:
    """The averages, by NumPy's functions alone."""
    size, means = len(tensors), {}
    for name, shape in SHAPES.items():
        xs = [t[name].numpy().reshape(-1) for t in tensors]
        if xs[0].size < 1024:
            total = np.full(xs[0].shape, -0.0, np.float32)
            for x in xs:
                total = total + (x / np.float32(size) if strategy == "sum" else x)
            means[name] = (total if strategy == "sum" else total * np.float32(1 / size)).reshape(shape)
            continue

        def first(x: np.ndarray, rank: int, key: lb.Key) -> bytes:
            return lb.encode(x, codec, key=key, sender=rank)

        if strategy == "all_gather":
            key = KEY.fold("first", name, 0)
            y = lb.decode_mean([first(x, rank, key) for rank, x in enumerate(xs)], key=key)
        elif strategy == "sum":
            assert isinstance(codec, lb.Summable)
            key = KEY.fold("first", name, 0)
            norms = np.maximum.reduce([codec.norms(x) for x in xs])
            total = np.add.reduce([codec.integers(x, norms, key=key, sender=r) for r, x in enumerate(xs)])
            y = codec.decode_sum(total, norms, xs[0].size, key=key, senders=range(size)) * np.float32(1 / size)
        else:
            y = np.empty_like(xs[0])
            for j, (start, stop, _) in enumerate(parts_of(name, xs[0].size, size)):
                key = KEY.fold("first", name, j)
                part = lb.decode_mean([first(x[start:stop], rank, key) for rank, x in enumerate(xs)], key=key)
                key = KEY.fold("second", name, j)
                y[start:stop] = lb.decode(lb.encode(part, second or codec, key=key, sender=j), key=key)
        means[name] = y.reshape(shape)
    return means


def _average(rank: int, codec: lb.Codec, strategy: Any, second: lb.Codec | None) -> Any:
    rounds = Rounds(codec, strategy=strategy, second_codec=second)
    tensors = vectors(rank)
    assert rounds.average(tensors, KEY)
    return {name: t.numpy() for name, t in tensors.items()}, rounds.traffic


@pytest.mark.parametrize("size", [2, 3])
def test_averages_are_those_of_one_process(size: int) -> None:
    for codec, strategy, second in ALL:
        want = expected([vectors(rank) for rank in range(size)], codec, strategy, second)
        for got, _ in ranks(size).run(_average, codec, strategy, second):
            for name, mean in want.items():
                same = np.array_equal(got[name].view(np.uint32), mean.view(np.uint32))
                # A sum by all_reduce has an order of its own from three ranks on.
                near = strategy == "sum" and mean.size < 1024 and np.allclose(got[name], mean, rtol=1e-6)
                assert same or near, (codec, strategy, name)


def _bytes_of(codec: lb.Codec, d: int) -> int:
    return round(codec.bits_per_element(d) * d / 8)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_bytes_are_counted_as_they_are(size: int) -> None:
    coded = {name: int(np.prod(shape)) for name, shape in SHAPES.items() if np.prod(shape) >= 1024}
    exact = _bytes_of(lb.Float32(), 212)
    everything = sum(coded.values()) + 212
    codec = lb.Eden(1)

    own = sum(_bytes_of(codec, d) for d in coded.values()) + exact
    for _, traffic in ranks(size).run(_average, codec, "all_gather", None):
        assert (traffic.numbers, traffic.message) == (everything, own)
        sent = traffic.sent_payload + traffic.sent_overhead
        assert sent == traffic.received_payload + traffic.received_overhead == (size - 1) * own
        header = (
            _bytes_of(codec, 1024) - _payload(codec, 1024),
            _bytes_of(lb.Float32(), 212) - _payload(lb.Float32(), 212),
        )
        assert traffic.sent_overhead == (size - 1) * (3 * header[0] + header[1])

    parts = [(stop - start, owner) for name, d in coded.items() for start, stop, owner in parts_of(name, d, size)]
    lengths = [(_bytes_of(codec, d), owner) for d, owner in parts]
    lengths += [(exact, owner) for _, _, owner in parts_of("small tensors", 212, size)]
    owned = [sum(length for length, owner in lengths if owner == rank) for rank in range(size)]
    for rank, (_, traffic) in enumerate(ranks(size).run(_average, codec, "two_phase", None)):
        back = (size - 1) * max(owned)  # parcels are padded to the longest
        assert traffic.sent_payload + traffic.sent_overhead == sum(owned) - owned[rank] + back
        assert traffic.received_payload + traffic.received_overhead == (size - 1) * owned[rank] + back

    summable = lb.Summable(1)
    width = _sums.width_of(summable, size)
    assert width == {2: 2, 3: 2, 4: 4}[size]
    integers = sum(-(-d // 128) * 128 for d in coded.values())
    blocks = sum(len(summable.norms(np.zeros(d, np.float32))) for d in coded.values())
    for _, traffic in ranks(size).run(_average, summable, "sum", None):
        each = [4 * 212, 4 * blocks, integers * width // 8]
        assert traffic.sent_payload == sum(round(2 * (size - 1) / size * n) for n in each)


def _payload(codec: lb.Codec, d: int) -> int:
    message = lb.encode(np.ones(d, np.float32), codec, key=0)
    return int.from_bytes(message[24:32], "little")


def test_one_bit_is_thirty_times_less() -> None:
    """Of a model's size: messages 30x smaller than float32; four ranks receive 16x and 32x less than a ring's."""
    d, size = 25_000_000, 4
    own = _bytes_of(lb.Eden(1), d)
    assert 4 * d / own > 30
    ring = 2 * (size - 1) / size * 4 * d
    assert 15.9 < ring / ((size - 1) * own) < 16.1
    assert 31.8 < ring / (2 * (size - 1) / size * own) < 32.1


@pytest.mark.parametrize("most", range(1, 9))
def test_fields_hold_their_sums(most: int) -> None:
    for size in (1, 2, 3, 4, 15, 16, 17, 85, 86, 255, 256, 10_000):
        codec = lb.Summable(most)
        assert size * (2**most - 1) < 2 ** _sums.width_of(codec, size)


@pytest.mark.parametrize("codec", [codec for codec, _, _ in ALL] + [lb.Float32(), lb.Qsgd(7), lb.Packed("int4")])
def test_slots_are_as_long_as_messages(codec: lb.Codec) -> None:
    for d in (1, 127, 129, 1024, 70_001):
        slot = _exchange.slot_of(codec, d)
        for x in (np.zeros(d), np.random.default_rng(0).standard_normal(d), np.eye(1, d)[0], np.full(d, np.inf)):
            length = len(lb.encode(x.astype(np.float32), codec, key=1))
            assert length == slot.length or (slot.length is None and length <= slot.limit)


def _mean_over_keys(rank: int, codec: lb.Codec, strategy: Any, count: int) -> np.ndarray:
    rounds, total = Rounds(codec, strategy=strategy), np.zeros(4096)
    for k in range(count):
        tensors = {"x": vectors(rank)["w"][:4096].clone()}
        rounds.average(tensors, KEY.fold(k))
        total += tensors["x"].numpy()
    return total / count


@pytest.mark.parametrize(("strategy", "stages"), [("all_gather", 1), ("two_phase", 2)])
def test_the_mean_over_keys_is_exact(strategy: str, stages: int) -> None:
    count, xs = 100, [vectors(rank)["w"][:4096].double().numpy() for rank in range(2)]
    mean, v = np.mean(xs, axis=0), lb.Eden(1).expected_error(4096)
    first = v * sum(x @ x for x in xs) / 4
    allowed = first if stages == 1 else first + v * (mean @ mean + first)
    for got in ranks(2).run(_mean_over_keys, lb.Eden(1), strategy, count):
        error = (got - mean) @ (got - mean)
        # The sum of 4096 squares of nearly normal errors varies by 2 %; a bias of 2 % of the norm would be seen.
        assert 0.8 * allowed / count < error < 1.2 * allowed / count


def _other_layouts(rank: int, strategy: Any) -> list[Any]:
    codec = lb.Summable(8) if strategy == "sum" else lb.Float32()
    rounds = Rounds(codec, strategy=strategy, min_numel=0 if strategy != "sum" else 1)
    base = vectors(rank)["w"][:4096].view(64, 64)
    tensors = {
        "transposed": base.clone().t(),
        "strided": base.clone()[:, ::2],
        "bfloat16": base.bfloat16(),
        "float16": base.half(),
        "float64": base.double(),
        "single": base[0, :1].clone(),
        "scalar": base[0, 0].clone(),
        "empty": base[:0].clone(),
    }
    assert rounds.average(tensors, KEY)
    return [(t.dtype, t.shape, t.double()) for t in tensors.values()]


@pytest.mark.parametrize("strategy", ["all_gather", "two_phase", "sum"])
def test_layouts_and_dtypes(strategy: str) -> None:
    xs = [vectors(rank)["w"][:4096].view(64, 64) for rank in range(2)]
    mean = (xs[0] + xs[1]) / 2
    low = (xs[0].bfloat16().float() + xs[1].bfloat16().float()) / 2, (xs[0].half().float() + xs[1].half().float()) / 2
    want = mean.t(), mean[:, ::2], low[0].bfloat16(), low[1].half(), mean.double(), mean[0, :1], mean[0, 0], mean[:0]
    for got in ranks(2).run(_other_layouts, strategy):
        for (dtype, shape, t), w in zip(got, want, strict=True):
            assert (dtype, shape) == (w.dtype, w.shape)
            if strategy == "sum":
                # What is clipped is 2.8e-4 of the energy on average; single numbers are blocks of their own.
                assert (t - w).square().sum() <= (0.02 if t.numel() == 1 else 1e-3) * w.double().square().sum()
            else:
                assert torch.equal(t, w.double())


def _not_finite(rank: int, codec: lb.Codec, strategy: Any, bad: float, where: str) -> Any:
    rounds = Rounds(codec, strategy=strategy)
    rounds.average(vectors(rank), KEY.fold("before"))
    before = rounds.memories.state_dict()["errors"]
    tensors = vectors(rank)
    if rank == 1:
        tensors[where].view(-1)[5] = bad
    finite = rounds.average(tensors, KEY)
    after = rounds.memories.state_dict()["errors"]
    kept = before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert rounds.average(vectors(rank), KEY.fold("after"))
    return finite, kept, len(before), {name: bool(t.isnan().any() or t.isinf().any()) for name, t in tensors.items()}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_seen_by_all(bad: float) -> None:
    for codec, strategy, _ in ALL:
        for where in ("layer.weight", "bias"):
            for finite, kept, memories, broken in ranks(2).run(_not_finite, codec, strategy, bad, where):
                assert not finite
                assert kept
                assert (memories > 0) == (codec == lb.Sign())
                assert broken == {name: name == where for name in SHAPES}


def _memory(rank: int, strategy: Any) -> Any:
    """What was sent, and what is remembered, is what was given."""
    rounds, total, given = Rounds(lb.Sign(), strategy=strategy), torch.zeros(8000), torch.zeros(8000)
    for k in range(30):
        x = vectors(rank, seed=k)["w"][:8000]
        given += x
        tensors = {"x": x}
        rounds.average(tensors, KEY.fold(k))
        total += tensors["x"]
    return total, given, rounds.memories.state_dict()


def test_error_feedback_loses_nothing() -> None:
    (total, given, state), (_, other, more) = ranks(2).run(_memory, "all_gather")
    left = (state["errors"]["first x[0]"] + more["errors"]["first x[0]"]) / 2
    assert torch.allclose(total + left, (given + other) / 2, atol=1e-4)

    (total, given, state), (_, other, more) = ranks(2).run(_memory, "two_phase")
    errors = state["errors"], more["errors"]
    first = torch.cat([(errors[0][f"first x[{j}]"] + errors[1][f"first x[{j}]"]) / 2 for j in range(2)])
    second = torch.cat([next(e[name] for e in errors if name in e) for name in ("second x[0]", "second x[1]")])
    assert torch.allclose(total + first + second, (given + other) / 2, atol=1e-4)


def _arguments_differ(rank: int) -> None:
    Rounds(lb.Eden(1 + rank))


def test_other_arguments_on_another_rank_are_found_at_once() -> None:
    for failed in ranks(2).call(_arguments_differ):
        assert isinstance(failed, Failed)
        assert failed.kind == "Error"
        assert failed.text.startswith("codec: ranks [1] were given another than rank 0; on rank")


def _fails_to_encode(rank: int, strategy: Any) -> Any:
    codec = lb.OneBit("optimal_unbiased", -9, 9)
    rounds = Rounds(codec, strategy=strategy)
    tensors = {"x": torch.full((5000,), 10.0 if rank == 1 else 1.0)}
    try:
        rounds.average(tensors, KEY)
    except lb.Error as error:
        # And the next round works.
        assert rounds.average({"x": torch.ones(5000)}, KEY.fold(1))
        return type(error).__name__, str(error)


@pytest.mark.parametrize("strategy", ["all_gather", "two_phase"])
def test_a_failure_to_encode_is_raised_on_all(strategy: str) -> None:
    for kind, text in ranks(3).run(_fails_to_encode, strategy):
        assert kind == "DecodeError"
        assert "on rank 1: 'x' could not be encoded" in text
        assert "on rank 0: the message of rank 1 of 'x' could not be decoded: it sent no message" in text


def _hostile(rank: int, codec: lb.Codec, strategy: Any, deed: str) -> str:
    """Rank 1 sends what it should not."""
    rounds = Rounds(codec, strategy=strategy)
    honest = lb.encode

    def encode(x: Any, codec: lb.Codec, *, key: Any, sender: int) -> bytes:
        if deed == "wrong key":
            key = lb.Key(0)
        if deed == "another sender":
            sender = 0
        if deed == "a stranger":
            sender = 77
        if deed == "another codec":
            codec = lb.Eden(1, "min_error") if isinstance(codec, lb.Eden) else lb.QuicFl(2)
        if deed == "other shape":
            x = np.concatenate([x, x])
        message = bytearray(honest(x, codec, key=key, sender=sender))
        if deed == "damaged":
            message[len(message) // 2] ^= 16
        if deed == "oversized":
            message += bytes(1 << 24)
        return bytes(message)

    if rank == 1:
        _rounds.lb.encode = encode
    try:
        rounds.average({"x": torch.ones(5000)}, KEY)
    except lb.DecodeError as error:
        return str(error)
    finally:
        _rounds.lb.encode = honest
    return "nothing was noticed"


@pytest.mark.parametrize("codec", [lb.Eden(1), lb.QuicFl(1)])
@pytest.mark.parametrize("strategy", ["all_gather", "two_phase"])
def test_bad_messages_are_refused_on_all_ranks(codec: lb.Codec, strategy: str) -> None:
    for deed in ("damaged", "wrong key", "other shape", "oversized", "another sender", "a stranger", "another codec"):
        if deed == "oversized" and codec == lb.Eden(1):
            continue  # its slot is as long as its message: what is beyond is not sent
        texts = ranks(2).run(_hostile, codec, strategy, deed)
        assert "the message" in texts[0], (deed, texts)
        assert "of 'x' could not be decoded" in texts[0], (deed, texts)
        assert "the message of rank 1" in texts[0], (deed, texts)
        assert [text == texts[0] for text in texts] == [True, True]


def _lies_about_failing(rank: int, row: list[int]) -> str:
    """Rank 1 says nonsense with the last word."""
    rounds = Rounds(lb.Eden(1))
    gathered = rounds.exchange.gathered
    if rank == 1:
        rounds.exchange.gathered = lambda own: gathered(row if len(own) == 4 else [2**40 - 7] * len(own))
    try:
        rounds.average({"x": torch.ones(5000)}, KEY)
    except lb.Error as error:
        return str(error)
    return "nothing was noticed"


@pytest.mark.parametrize("row", [[2**40, 0, 0, 0], [-5, 1, 0, 0]])
def test_a_lie_about_a_failure_takes_no_memory(row: list[int]) -> None:
    for text in ranks(2).run(_lies_about_failing, row):
        assert text.startswith("the round failed on rank 1: ")
        assert len(text) < 3000


def _beyond_float16(rank: int, codec: lb.Codec, strategy: Any) -> Any:
    """The mean of numbers just below 65504, to which noise or memory is added."""
    rounds = Rounds(codec, strategy=strategy)
    numbers = torch.full((4096,), 3e4)
    numbers[:64] = 6.5e4
    for k in range(9):
        before = rounds.memories.state_dict()["errors"]
        tensors = {"x": numbers.half()}
        finite = rounds.average(tensors, KEY.fold(k))
        assert finite == bool(tensors["x"].isfinite().all())
        after = rounds.memories.state_dict()["errors"]
        if not finite:
            return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    return "all was finite"


@pytest.mark.parametrize(
    ("codec", "strategy"),
    [(lb.Eden(1), "all_gather"), (lb.Eden(1, "min_error"), "two_phase"), (lb.Summable(1), "sum")],
)
def test_a_mean_beyond_float16_is_seen_by_all(codec: lb.Codec, strategy: str) -> None:
    """It is infinite in the gradients, and GradScaler skips the step: so must memories."""
    assert ranks(2).run(_beyond_float16, codec, strategy) == [True, True]


def _one_alone_fails(rank: int) -> str:
    """Only rank 2 fails to decode what all have received; in the next round all is well."""
    rounds = Rounds(lb.Eden(1))
    honest = lb.decode_mean

    def fails(*_: Any, **__: Any) -> Any:
        raise MemoryError("no memory left")

    if rank == 2:
        _rounds.lb.decode_mean = fails
    try:
        rounds.average({"x": torch.ones(5000)}, KEY)
    except lb.Error as error:
        _rounds.lb.decode_mean = honest
        assert rounds.average({"x": torch.ones(5000)}, KEY)
        return str(error)
    return "nothing was noticed"


def test_a_failure_of_one_rank_is_raised_on_all() -> None:
    for text in ranks(3).run(_one_alone_fails):
        want = "on rank 2: the message of 'x' could not be decoded: MemoryError: no memory left"
        assert text == f"the round failed {want}"


def _sub_group(rank: int) -> Any:
    group = dist.new_group([0, 2])
    if rank == 1:
        return None
    rounds = Rounds(lb.Float32(), group=group)
    tensors = vectors(rank)
    rounds.average(tensors, KEY)
    return rounds.rank, rounds.size, tensors["w"]


def test_a_sub_group_averages_among_itself() -> None:
    first, nothing, last = ranks(3).run(_sub_group)
    assert nothing is None
    assert (first[:2], last[:2]) == ((0, 2), (1, 2))
    want = (vectors(0)["w"] + vectors(2)["w"]) / 2
    assert torch.equal(first[2], want)
    assert torch.equal(last[2], want)


def _no_member(rank: int) -> str:
    group = dist.new_group([0, 1])
    if rank < 2:
        return ""
    with pytest.raises(lb.Error, match="group: this process is no member of it"):
        Rounds(lb.Eden(1), group=group)
    with pytest.raises(TypeError, match="group: expected a ProcessGroup or None, got list"):
        Rounds(lb.Eden(1), group=[0, 1])  # type: ignore[arg-type]
    return "refused"


def test_a_group_that_is_none_is_refused() -> None:
    assert ranks(3).run(_no_member) == ["", "", "refused"]


def _no_floats(rank: int) -> str:
    with pytest.raises(TypeError, match=r"tensors\['n'\]: expected floats, got torch.int64"):
        Rounds(lb.Eden(1)).average({"n": torch.ones(3, dtype=torch.int64)}, KEY)
    return "refused"


def test_what_is_no_float_is_refused() -> None:
    assert ranks(2).run(_no_floats) == ["refused"] * 2


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ({"codec": lb.Eden}, "codec: expected a codec"),
        ({"codec": lb.Eden(1), "strategy": "ring"}, "strategy"),
        ({"codec": lb.Eden(1), "strategy": "sum"}, "strategy: the integers of Eden"),
        ({"codec": lb.Eden(1), "min_numel": -1}, "min_numel"),
        ({"codec": lb.Eden(1), "min_numel": 1.5}, "min_numel"),
        ({"codec": lb.Eden(1), "error_feedback": True}, "error_feedback=False"),
        ({"codec": lb.Eden(1), "error_feedback": 1}, "error_feedback: expected"),
        ({"codec": lb.OneBit("deterministic", -1, 1)}, "error_feedback=False"),
        ({"codec": lb.Summable(4), "error_feedback": True}, 'error_feedback: "sum" has none'),
        ({"codec": lb.Eden(1), "strategy": "all_gather", "second_codec": lb.Eden(4)}, "second_codec"),
        ({"codec": lb.Eden(1), "strategy": "two_phase", "second_codec": 4}, "codec: expected a codec"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], what: str) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises((TypeError, lb.Error)) as caught:
            Rounds(**arguments)
    finally:
        dist.destroy_process_group()
    assert what in str(caught.value)


def test_without_a_group_it_says_what_to_do() -> None:
    with pytest.raises(lb.Error, match="init_process_group"):
        Rounds(lb.Eden(1))
