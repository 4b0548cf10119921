"""Clients that are lost, late, broken or hostile: each is named, and the others' mean is what it would have been."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import flwr.serverapp.strategy as strategies
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client.mod import secaggplus_mod

import lowbit as lb
from flower_layer.flower_support import NODES, Wire, app, average, lesson, model, read_arrays, rounds, write_arrays
from lowbit.flower import Compressed, compression_mod

BAD = NODES[0]
BASE = {"w": model()["w"], "b": model()["b"]}


def without(node: int, **options: Any) -> dict[str, Any]:
    """Train one round of the clients but one."""
    wire = Wire()
    wire.damage = lambda reply: [] if reply.metadata.src_node_id == node else [reply]
    return rounds(Compressed(average(), lb.Eden(1), seed=1, **options), wire, BASE)


class Watched(logging.Handler):
    """Keeps what Flower logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.lines.append(record.getMessage())


@pytest.fixture
def log() -> Iterator[list[str]]:
    handler = Watched()
    logging.getLogger("flwr").addHandler(handler)
    yield handler.lines
    logging.getLogger("flwr").removeHandler(handler)


def forged(message: bytes, change: Callable[[bytearray], None]) -> bytes:
    data = bytearray(message)
    change(data)
    return bytes(data)


def content(reply: Message, **records: Any) -> list[Message]:
    """Change records of an answer; None takes one away."""
    kept = {**reply.content, **records}
    reply.content = RecordDict({name: record for name, record in kept.items() if record is not None})
    return [reply]


def message(data: bytes, **names: Any) -> ArrayRecord:
    return ArrayRecord({"message": Array("uint8", (len(data),), "lowbit.message", data), **names})


def encoded(**options: Any) -> bytes:
    """Make a message as a client would, but for `options`."""
    key = lb.Key(1).fold("flower").fold("up").fold(1)
    known: dict[str, Any] = {"key": key, "sender": BAD, "codec": lb.Eden(1), "x": BASE}
    return lb.encode(**{**known, **options})


def nan(arrays: dict[str, Any], hide: bool) -> bytes:
    """Encode NaN; hidden, the header says that all is finite."""
    broken = {**arrays, "w": np.full_like(arrays["w"], np.nan)}
    data = encoded(x=broken)
    if not hide:
        return data

    def lie(header: bytearray) -> None:
        header[12] &= ~1
        size = int.from_bytes(header[56:60], "little")
        header[size - 4 : size] = crc32c(bytes(header[: size - 4])).to_bytes(4, "little")

    return forged(data, lie)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


METRICS = MetricRecord({"num-examples": 1})
DAMAGE: dict[str, tuple[Callable[[Message], list[Message]], str]] = {
    "no message": (lambda m: content(m, arrays=write_arrays({"w": BASE["w"]})), "expected a message"),
    "not by the mod": (lambda m: content(m, lowbit=None, arrays=write_arrays(BASE)), "put compression_mod first"),
    "garbage": (lambda m: content(m, arrays=message(b"garbage")), "refused: "),
    "empty": (lambda m: content(m, arrays=message(b"")), "refused: "),
    "truncated": (lambda m: content(m, arrays=message(m.content["arrays"]["message"].data[:-5])), "refused: "),
    "a flipped bit of the payload": (
        lambda m: content(
            m, arrays=message(forged(m.content["arrays"]["message"].data, lambda d: d.__setitem__(-30, d[-30] ^ 4)))
        ),
        "checksum",
    ),
    "oversized": (lambda m: content(m, arrays=message(bytes(10**6))), "1000000 bytes"),
    "another key": (lambda m: content(m, arrays=message(encoded(key=lb.Key(2)))), "key"),
    "another sender": (lambda m: content(m, arrays=message(encoded(sender=NODES[1]))), f"sender {NODES[1]}"),
    "another codec": (lambda m: content(m, arrays=message(encoded(codec=lb.Eden(2)))), "bits=2.0"),
    "more numbers": (
        lambda m: content(m, arrays=message(encoded(x={**BASE, "w": np.zeros((1 << 14, 4), np.float32)}))),
        "other names, shapes",
    ),
    "other names": (lambda m: content(m, arrays=message(encoded(x={"w": BASE["w"]}))), "other names, shapes"),
    "not a mapping": (lambda m: content(m, arrays=message(encoded(x=BASE["w"]))), "other names, shapes"),
    "a quantized array": (
        lambda m: content(m, arrays=message(lb.quantize(BASE["w"], "int4").to_bytes())),
        "refused: its message is of sender 0",
    ),
    "not finite": (lambda m: content(m, arrays=message(nan(BASE, hide=False))), "not finite"),
    "not finite, and denied": (lambda m: content(m, arrays=message(nan(BASE, hide=True))), "not finite"),
    "a second array": (
        lambda m: content(m, arrays=message(encoded(), more=Array(np.zeros(3)))),
        "expected one message, got 2",
    ),
    "a second record": (lambda m: content(m, more=write_arrays(BASE)), "expected one ArrayRecord"),
    "no arrays": (lambda m: content(m, arrays=None), "got none"),
    "another round": (lambda m: content(m, lowbit=ConfigRecord({"round": 7})), "of round 7, not 1"),
    "no round": (lambda m: content(m, lowbit=ConfigRecord()), "of round None"),
    "no metrics": (lambda m: content(m, metrics=None), "expected one MetricRecord, got 0"),
    "other metrics": (lambda m: content(m, metrics=MetricRecord({"num-examples": 1, "loss": 2.0})), "other names"),
    "no weight": (lambda m: content(m, metrics=MetricRecord({"loss": 1.0})), "None is not a weight"),
    "a negative weight": (lambda m: content(m, metrics=MetricRecord({"num-examples": -1})), "-1 is not a weight"),
    "a weight that is not a number": (
        lambda m: content(m, metrics=MetricRecord({"num-examples": float("nan")})),
        "nan is not a weight",
    ),
    "a list of weights": (lambda m: content(m, metrics=MetricRecord({"num-examples": [1, 2]})), "[1, 2] is not a"),
    "an enormous weight": (lambda m: content(m, metrics=MetricRecord({"num-examples": 1e300})), "weight"),
}


@pytest.mark.parametrize("trouble", DAMAGE)
@pytest.mark.parametrize("fused", [True, False], ids=["mean", "single"])
def test_a_bad_answer_is_named_and_harms_nobody(trouble: str, fused: bool, log: list[str]) -> None:
    damage, reason = DAMAGE[trouble]
    wire = Wire()
    wire.damage = lambda reply: damage(reply) if reply.metadata.src_node_id == BAD and reply.has_content() else [reply]
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Eden(1), seed=1, fused=fused)
    learned = rounds(strategy, wire, BASE)
    (line,) = [line for line in log if f"error in reply from node {BAD}" in line]
    assert reason in line
    assert (strategy.traffic[0].accepted, strategy.traffic[0].refused) == (2, 1)
    expected = without(BAD, fused=fused)
    for array, other in zip(learned.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(array, other)


def test_an_answer_given_twice_counts_once(log: list[str]) -> None:
    wire = Wire()
    wire.damage = lambda reply: [reply, reply] if reply.metadata.src_node_id == BAD else [reply]
    learned = rounds(Compressed(average(fraction_evaluate=0.0), lb.Eden(1), seed=1), wire, BASE)
    expected = rounds(Compressed(average(fraction_evaluate=0.0), lb.Eden(1), seed=1), Wire(), BASE)
    assert any(f"node {BAD}" in line and "answered twice" in line for line in log)
    for array, other in zip(learned.values(), expected.values(), strict=True):
        np.testing.assert_array_equal(array, other)


def test_who_was_not_asked_is_not_heard(log: list[str]) -> None:
    stranger = Message(RecordDict(), 99, "train")
    wire = Wire()
    wire.damage = lambda reply: [reply, Message(RecordDict({"metrics": METRICS}), reply_to=stranger)]
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Eden(1), seed=1)
    rounds(strategy, wire, BASE)
    assert any("node 99 answered and was not asked" in line for line in log)
    assert (strategy.traffic[0].accepted, strategy.traffic[0].refused) == (3, 0)


def test_a_message_of_an_earlier_round_is_refused(log: list[str]) -> None:
    """Replayed with this round's number on it: the key tells."""
    kept: list[ArrayRecord] = []

    def damage(reply: Message) -> list[Message]:
        if reply.metadata.src_node_id == BAD and "arrays" in reply.content:
            kept.append(reply.content["arrays"])
            return content(reply, arrays=kept[0])
        return [reply]

    wire = Wire()
    wire.damage = damage
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Eden(1), seed=1)
    rounds(strategy, wire, BASE, 2)
    assert [row.accepted for row in strategy.traffic] == [3, 2]
    assert any(f"node {BAD}: refused" in line and "key" in line for line in log)


@pytest.mark.parametrize("weight", [2.0**100, 2.0**101, 2.0**126])
def test_no_weights_end_the_server(weight: float, log: list[str]) -> None:
    """Two clients whose weights would add up to more than a mean takes."""
    wire = Wire()
    wire.damage = lambda reply: (
        [reply] if reply.metadata.src_node_id == BAD else content(reply, metrics=MetricRecord({"num-examples": weight}))
    )
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Eden(1), seed=1)
    rounds(strategy, wire, BASE, 2)
    accepted = 3 if weight <= 2.0**100 else 1
    assert [row.accepted for row in strategy.traffic] == [accepted] * 2
    assert sum("is not a weight" in line for line in log) == 2 * (3 - accepted)


def test_a_round_without_answers_keeps_the_model() -> None:
    wire = Wire()
    wire.damage = lambda reply: []
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Eden(1), downlink=lb.Sign())
    assert rounds(strategy, wire, BASE, 2) is BASE
    wire.damage = lambda reply: [reply]
    assert not np.array_equal(rounds(strategy, wire, BASE, 2)["w"], BASE["w"])


def test_a_dropped_client_comes_back() -> None:
    """Its answers are lost for two rounds; it still holds what it holds, and goes on with the others."""
    wire, lost = Wire(), 0

    def damage(reply: Message) -> list[Message]:
        nonlocal lost
        if reply.metadata.src_node_id == BAD and reply.content["lowbit"]["round"] in (2, 3):
            lost += 1
            return []
        return [reply]

    wire.damage = damage
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Sign(), downlink=lb.Sign(), seed=1)
    rounds(strategy, wire, BASE, 6)
    assert lost == 2
    assert not wire.errors
    assert [row.accepted for row in strategy.traffic] == [3, 2, 2, 3, 3, 3]
    models = [wire.contexts[node].state["lowbit.model"] for node in NODES]
    assert len({one["w"].data for one in models}) == 1


def test_what_a_lost_message_left_out_is_not_owed() -> None:
    """All that was used, and what the client remembers, is all that was learned in rounds that were used."""
    wire, used = Wire(nodes=[21, 22]), []

    def damage(reply: Message) -> list[Message]:
        number = reply.content["lowbit"]["round"]
        if reply.metadata.src_node_id == 21 and number == 3:
            return []
        if reply.metadata.src_node_id == 21:
            used.append(number)
        return [reply]

    wire.damage = damage
    messages: dict[int, list[bytes]] = {}
    inner = wire.damage

    def keep(reply: Message) -> list[Message]:
        kept = inner(reply)
        for each in kept:
            messages.setdefault(each.metadata.src_node_id, []).append(each.content["arrays"]["message"].data)
        return kept

    wire.damage = keep
    base = {"w": BASE["w"]}
    learn = lambda node, arrays: {"w": arrays["w"] + lesson(node, base)["w"] - base["w"]}  # noqa: E731
    wire.client = app(learn=learn)
    rounds(Compressed(average(fraction_evaluate=0.0), lb.Sign(), seed=1), wire, base, 5)
    assert used == [1, 2, 4, 5]
    given = sum(lb.decode(data)["w"].astype(float) for data in messages[21])
    left = read_arrays(wire.contexts[21].state["lowbit.pending"])["w"]
    step = lesson(21, base)["w"].astype(float) - base["w"]
    np.testing.assert_allclose(given + left, 4 * step, atol=1e-4)


def test_a_client_that_forgot_everything_gets_the_model(log: list[str]) -> None:
    wire = Wire()
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Sign(), downlink=lb.Sign(), seed=1)
    arrays = rounds(strategy, wire, BASE, 2)
    wire.contexts[BAD] = Context(1, BAD, {}, RecordDict(), {})
    arrays = rounds(strategy, wire, arrays, 1)
    assert "holds no model" in wire.errors.pop(BAD)
    assert strategy.traffic[-1].accepted == 2
    rounds(strategy, wire, arrays, 1)
    assert not wire.errors
    assert strategy.traffic[-1].accepted == 3


def test_a_model_damaged_on_its_way_is_refused() -> None:
    wire = Wire()

    def harm(message: Message) -> None:
        orders, record = message.content["lowbit"], message.content["arrays"]
        if message.metadata.dst_node_id == BAD and orders["round"] == 2:
            data = record["0"].data
            message.content["arrays"] = ArrayRecord(
                {"0": Array("uint8", (len(data),), "lowbit.message", forged(data, lambda d: d.__setitem__(-30, 1)))}
            )

    wire.harm = harm
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Eden(1), downlink=lb.Sign(), seed=1)
    rounds(strategy, wire, BASE, 3)
    assert "checksum" in wire.errors[BAD]
    assert [row.accepted for row in strategy.traffic] == [3, 2, 3]
    held = strategy._broadcast
    assert held is not None
    np.testing.assert_array_equal(read_arrays(wire.contexts[BAD].state["lowbit.model"])["w"], held.model["w"])


@pytest.mark.parametrize("resumed", [True, False])
def test_a_server_that_starts_again(resumed: bool) -> None:
    options: dict[str, Any] = {"downlink": lb.Eden(1, "min_error"), "seed": 4}
    codec = lb.Eden(2, "min_error")
    straight, wire = Compressed(average(fraction_evaluate=0.0), codec, **options), Wire()
    expected = rounds(straight, wire, BASE, 5)

    wire = Wire()
    first = Compressed(average(fraction_evaluate=0.0), codec, **options)
    arrays = rounds(first, wire, BASE, 3)
    second = Compressed(average(fraction_evaluate=0.0), codec, **options)
    if resumed:
        second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    arrays = rounds(second, wire, arrays, 2)
    assert not wire.errors
    assert [row.accepted for row in second.traffic] == [3, 3]
    if resumed:
        # As if it had never stopped, and no model was sent again.
        for array, other in zip(arrays.values(), expected.values(), strict=True):
            np.testing.assert_array_equal(array, other)
        assert second.traffic[0].down < 0.1 * second.traffic[0].plain_down
    else:
        assert second.traffic[0].down > second.traffic[0].plain_down


def test_secure_aggregation_is_refused() -> None:
    """Flower's adds what it rounds itself; whichever mod comes first."""
    stage = RecordDict({"secaggplus_configs": ConfigRecord({"stage": "setup"})})
    for mods in ((compression_mod, secaggplus_mod), (compression_mod,)):
        with pytest.raises(lb.Error, match=r"^mods: Flower's secure aggregation"):
            app(mods=mods)(Message(stage, 5, "train"), Context(1, 5, {}, RecordDict(), {}))


def test_a_mod_without_its_strategy_says_so() -> None:
    wire = Wire()
    assert rounds(average(fraction_evaluate=0.0), wire, BASE) is BASE
    assert all("not wrapped in lowbit.flower.Compressed" in reason for reason in wire.errors.values())
    assert len(wire.errors) == 3


def test_a_strategy_without_its_mod_says_so(log: list[str]) -> None:
    wire = Wire(app(mods=()))
    wire.client = _deaf()
    rounds(Compressed(average(fraction_evaluate=0.0), lb.Eden(1)), wire, BASE)
    assert sum("put compression_mod first" in line for line in log) == 3


def _deaf() -> Any:
    """Make a ClientApp that has never heard of orders."""
    from flwr.clientapp import ClientApp

    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": METRICS}), reply_to=message)

    return made


@pytest.mark.parametrize(
    ("orders", "reason"),
    [
        ({"protocol": 2}, "the server's is 2"),
        ({}, "the server's is None"),
        ({"protocol": 1}, "damaged"),
        ({"protocol": 1, "session": "text"}, "damaged"),
        ({"protocol": 1, "session": b"s", "codec": b""}, "damaged"),
        ({"protocol": 1, "session": b"s", "codec": bytes([99])}, "damaged"),
        ({"protocol": 1, "session": b"s", "codec": bytes([8, 1])}, "damaged"),
        ({"protocol": 1, "session": b"s", "model": -1, "since": 0, "model-key": bytes(16)}, "damaged"),
        ({"protocol": 1, "session": b"s", "model": 1, "since": 0, "model-key": bytes(3)}, "damaged"),
        ({"protocol": 1, "session": b"s", "model": 4, "since": 2, "model-key": bytes(16)}, "holds no model"),
    ],
)
def test_orders_that_make_no_sense_are_refused(orders: dict[str, Any], reason: str) -> None:
    content = RecordDict({"arrays": write_arrays(BASE), "config": ConfigRecord(), "lowbit": ConfigRecord(orders)})
    reply = app()(Message(content, 5, "train"), Context(1, 5, {}, RecordDict(), {}))
    assert reason in str(reply.error.reason)
    assert str(reply.error.reason).startswith("compression_mod: ")


def test_an_app_that_answers_something_else_is_named() -> None:
    for learn, reason in (
        (lambda node, arrays: {"w": arrays["w"]}, "reply['b']: it is missing"),
        (lambda node, arrays: {**arrays, "new": arrays["b"]}, "reply['new']: the model has no such array"),
        (lambda node, arrays: {**arrays, "b": arrays["b"][:3]}, "reply['b']: its shape is (3,), not (50,)"),
        (lambda node, arrays: {**arrays, "b": arrays["b"] * 1j}, "reply['b']: no message holds dtype complex64"),
    ):
        wire = Wire(app(learn=learn))
        rounds(Compressed(average(fraction_evaluate=0.0), lb.Eden(1)), wire, BASE)
        assert all(reason in error for error in wire.errors.values())
        assert len(wire.errors) == 3


def test_an_apps_own_errors_pass() -> None:
    def learn(node: int, arrays: dict[str, Any]) -> dict[str, Any]:
        raise lb.Error("my own")

    wire = Wire(app(learn=learn))
    rounds(Compressed(average(fraction_evaluate=0.0), lb.Eden(1)), wire, BASE)
    assert set(wire.errors.values()) == {"my own"}


def test_a_model_that_becomes_infinite_is_sent_whole() -> None:
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Float32(), downlink=lb.Sign())
    wire = Wire()
    rounds(strategy, wire, BASE)
    broken = {"w": np.full_like(BASE["w"], np.inf), "b": BASE["b"]}
    rounds(strategy, wire, broken)
    assert [array.stype for array in wire.sent[-1].content["arrays"].values()] == ["numpy.ndarray"] * 2
    rounds(strategy, wire, BASE)
    np.testing.assert_array_equal(strategy._broadcast.model["w"], BASE["w"])  # type: ignore[union-attr]


def test_bad_arguments() -> None:
    good: dict[str, Any] = {"strategy": average(), "codec": lb.Eden(1)}
    for options, error, start in (
        ({"strategy": lb.Eden(1)}, TypeError, "strategy: expected"),
        ({"codec": "eden"}, TypeError, "codec: expected"),
        ({"codec": lb.Eden}, TypeError, "codec: expected"),
        ({"downlink": 1}, TypeError, "codec: expected"),
        ({"error_feedback": True}, lb.Error, "error_feedback: Eden"),
        ({"min_elements": -1}, lb.Error, "min_elements: "),
        ({"seed": -1}, lb.Error, "seed: "),
        ({"seed": 1.5}, TypeError, ""),
        ({"strategy": Compressed(average(), lb.Eden(1)), "fused": True}, lb.Error, "fused: Compressed is no FedAvg"),
    ):
        with pytest.raises(error, match=rf"^{start}"):
            Compressed(**{**good, **options})
    for codec, downlink, start in (
        (lb.Eden(1), lb.Eden(0.5), "downlink: the error of Eden"),
        (lb.Eden(1), lb.QuicFl(1), "downlink: the error of QuicFl"),
        (lb.Summable(1), None, "codec: the error of Summable"),
    ):
        with pytest.raises(lb.Error, match=rf"^{start}"):
            rounds(Compressed(average(), codec, downlink=downlink), Wire(), BASE)
    with pytest.raises(lb.Error, match=r"^arrays\['w'\]: no message holds dtype complex64"):
        rounds(Compressed(average(), lb.Eden(1)), Wire(), {"w": BASE["w"] * 1j})
    strategy = Compressed(average(), lb.Eden(1))
    rounds(strategy, Wire(), BASE)
    with pytest.raises(lb.Error, match=r"^arrays\['b'\]: it is missing"):
        rounds(strategy, Wire(), {"w": BASE["w"]})
    with pytest.raises(lb.Error, match=r"^aggregate_train: no round"):
        Compressed(average(), lb.Eden(1)).aggregate_train(1, [])
    with pytest.raises(TypeError, match=r"^state: "):
        strategy.load_state_dict({})
    with pytest.raises(lb.Error, match=r"^state: downlink"):
        Compressed(average(), lb.Eden(1), downlink=lb.Sign()).load_state_dict(strategy.state_dict())


def test_a_strategy_that_asks_twice_is_refused() -> None:
    class Twice(strategies.FedAvg):
        def _construct_messages(self, record: RecordDict, node_ids: list[int], message_type: str) -> list[Message]:
            return [*super()._construct_messages(record, node_ids, message_type)] * 2

    with pytest.raises(lb.Error, match=r"^strategy: it asks node \d+ twice"):
        rounds(Compressed(Twice(), lb.Eden(1)), Wire(), BASE)
