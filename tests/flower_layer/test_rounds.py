"""Rounds of training with the real strategies: what the server learns, and that clients and server stay together."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as strategies
import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.clientapp.mod import arrays_size_mod, fixedclipping_mod

import lowbit as lb
from flower_layer.flower_support import (
    NODES,
    Wire,
    app,
    average,
    closeness,
    lesson,
    model,
    read_arrays,
    rounds,
    write_arrays,
)
from lowbit.flower import Compressed

EVERYONE = {"min_train_nodes": 3, "min_evaluate_nodes": 3, "min_available_nodes": 3}
SINGLE = [
    strategies.FedMedian(**EVERYONE),
    strategies.FedTrimmedAvg(beta=0.34, **EVERYONE),
    strategies.Krum(num_malicious_nodes=0, **EVERYONE),
    strategies.DifferentialPrivacyServerSideFixedClipping(
        strategies.FedAvg(**EVERYONE), noise_multiplier=0.0, clipping_norm=5.0, num_sampled_clients=3
    ),
]


def means() -> list[strategies.FedAvg]:
    """Make the strategies that see nothing but the weighted mean; they have states of their own."""
    return [
        strategies.FedAvg(**EVERYONE),
        strategies.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, **EVERYONE),
        strategies.FedProx(proximal_mu=0.1, **EVERYONE),
        strategies.FedAdagrad(**EVERYONE),
        strategies.FedAdam(**EVERYONE),
        strategies.FedYogi(**EVERYONE),
    ]


@pytest.mark.parametrize("kind", range(6), ids=[type(strategy).__name__ for strategy in means()])
@pytest.mark.parametrize("downlink", [None, lb.Float32()], ids=["plain", "coded"])
def test_the_identity_codec_changes_nothing(kind: int, downlink: lb.Codec | None) -> None:
    base = {name: array for name, array in model().items() if array.dtype == np.float32}
    plain = rounds(means()[kind], Wire(app(mods=())), base, 3)
    wrapped = Compressed(means()[kind], lb.Float32(), downlink=downlink)
    wire = Wire()
    ours = rounds(wrapped, wire, base, 3)
    assert not wire.errors
    assert [(row.accepted, row.refused) for row in wrapped.traffic] == [(3, 0)] * 3
    for name, array in plain.items():
        # Clients answer with differences, so that sums are rounded in other places; Adam and its kin divide by what is
        # near zero where nothing was learned, and make more of it.
        np.testing.assert_allclose(ours[name], array, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("strategy", SINGLE, ids=lambda strategy: type(strategy).__name__)
def test_strategies_that_look_at_single_updates_see_them(strategy: strategies.Strategy) -> None:
    base = {name: array for name, array in model().items() if array.dtype.kind == "f"}
    plain = rounds(strategy, Wire(app(mods=())), base)
    wrapped = Compressed(strategy, lb.Float32())
    ours = rounds(wrapped, Wire(), base)
    for name, array in plain.items():
        tolerance = 2e-3 if base[name].dtype == np.float16 else 1e-6
        np.testing.assert_allclose(ours[name].astype(float), array.astype(float), atol=tolerance, err_msg=name)
    assert wrapped.traffic[0].accepted == 3


def test_a_mean_is_that_of_single_updates() -> None:
    base = model()
    fused = rounds(Compressed(average(), lb.Eden(1), seed=3, fused=True), Wire(), base)
    single = rounds(Compressed(average(), lb.Eden(1), seed=3, fused=False), Wire(), base)
    for name, array in fused.items():
        tolerance = 2e-3 if base[name].dtype == np.float16 else 1e-6
        np.testing.assert_allclose(single[name].astype(float), array.astype(float), atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("codec", "most"),
    [(lb.Eden(4), 0.01), (lb.Eden(1), 0.6), (lb.QuicFl(2), 0.25), (lb.Summable(4), 0.02), (lb.Qsgd(127), 0.1)],
    ids=str,
)
def test_the_error_is_the_codecs_at_most(codec: lb.Codec, most: float) -> None:
    base = {"w": model()["w"]}
    exact = rounds(average(), Wire(app(mods=())), base)
    assert closeness(rounds(Compressed(average(), codec, error_feedback=False), Wire(), base), exact, base) < most


def test_integers_and_bools_are_averaged_as_flower_does() -> None:
    base = model()
    plain, ours = rounds(average(), Wire(app(mods=())), base), rounds(Compressed(average(), lb.Eden(1)), Wire(), base)
    assert float(plain["steps"]) == float(ours["steps"]) == 4.5
    np.testing.assert_array_equal(plain["mask"], ours["mask"])
    # The next round's clients get the dtypes they know.
    wire = Wire()
    rounds(Compressed(average(), lb.Eden(1)), wire, base, 2)
    last = read_arrays(wire.sent[-1].content["arrays"])
    assert {name: array.dtype for name, array in last.items()} == {name: array.dtype for name, array in base.items()}


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint32, np.int64, np.uint64])
def test_the_largest_integers_stay_large(dtype: type[np.integer[Any]]) -> None:
    """A mean is a float64, which rounds the largest integers of 64 bits to one that there is not."""
    most = int(np.iinfo(dtype).max)
    base = {"w": model()["w"], "hash": np.array([most, np.iinfo(dtype).min], dtype)}
    learn = lambda node, arrays: {name: array + 0 for name, array in arrays.items()}  # noqa: E731
    wire = Wire(app(learn=learn))
    rounds(Compressed(average(), lb.Eden(1)), wire, base, 3)
    assert not wire.errors
    last = read_arrays(wire.sent[-1].content["arrays"])["hash"]
    assert last.dtype == dtype
    assert [most - int(last[0]) < 4096 * (most > 2**53) + 1, int(last[1])] == [True, np.iinfo(dtype).min]


def test_clients_hold_the_servers_model_bit_for_bit() -> None:
    """What the app is given is what the server subtracts from."""
    seen: list[dict[str, Any]] = []

    def learn(node: int, arrays: dict[str, Any]) -> dict[str, Any]:
        seen.append(arrays)
        return lesson(node, arrays)

    strategy = Compressed(average(), lb.Eden(1), downlink=lb.Eden(1, "min_error"), seed=1)
    rounds(strategy, Wire(app(learn=learn)), model(), 4)
    held = strategy._broadcast
    assert held is not None
    assert len(seen) == 12
    # Published after the last training, for evaluation.
    before = seen[-3:]
    assert all(one[name].tobytes() == two[name].tobytes() for one in before for two in before for name in one)
    for name, array in held.model.items():
        assert array.dtype == before[0][name].dtype


def test_the_downlinks_error_stays_bounded() -> None:
    base = {"w": model()["w"]}
    coded = Compressed(average(), lb.Float32(), downlink=lb.Eden(1, "min_error"), seed=2)
    ours = rounds(coded, Wire(), base, 20)
    exact = rounds(average(), Wire(app(mods=())), base, 20)
    held = coded._broadcast
    assert held is not None
    # Every round learns the same, 0.1 x N(1, 1) for each number: what clients lack is less than two rounds' worth.
    step = 20**-1 * np.linalg.norm(exact["w"] - base["w"])
    assert np.linalg.norm(ours["w"] - held.model["w"]) < 2 * step
    assert closeness(ours, exact, base) < 0.01


def test_a_biased_codec_arrives_late_and_whole() -> None:
    base = {"w": model()["w"]}
    exact = rounds(average(), Wire(app(mods=())), base, 20)
    with_memory = rounds(Compressed(average(), lb.Sign(), downlink=None), Wire(), base, 20)
    without = rounds(Compressed(average(), lb.Sign(), error_feedback=False), Wire(), base, 20)
    assert closeness(with_memory, exact, base) < 0.02
    assert closeness(without, exact, base) > 0.1


def test_keys_change_with_the_round_and_the_sender() -> None:
    messages: list[bytes] = []

    def damage(reply: Message) -> list[Message]:
        if "arrays" in reply.content:
            messages.append(reply.content["arrays"]["message"].data)
        return [reply]

    wire = Wire(app(learn=lambda node, arrays: {name: array + 1 for name, array in arrays.items()}))
    wire.damage = damage
    rounds(Compressed(average(), lb.Eden(1), seed=5), wire, {"w": model()["w"]}, 2)
    abouts = [lb.describe(message) for message in messages]
    assert {about.sender for about in abouts} == set(NODES)
    assert len({about.key_id for about in abouts}) == 2
    # The same update each time, and all payloads differ.
    assert len({message[-200:] for message in messages}) == 6


def test_mods_after_ours_see_plain_arrays() -> None:
    """Clipping comes before encoding, and finds the one ConfigRecord that it insists on."""
    # The clipping mod answers evaluation with an error, whoever else is there.
    inner = strategies.FedAvg(fraction_evaluate=0.0, **EVERYONE)
    private = strategies.DifferentialPrivacyClientSideFixedClipping(
        inner, noise_multiplier=0.0, clipping_norm=0.5, num_sampled_clients=3
    )
    from lowbit.flower import compression_mod

    wire = Wire(app(mods=(compression_mod, arrays_size_mod, fixedclipping_mod)))
    base = {"w": model()["w"]}
    learned = rounds(Compressed(private, lb.Float32(), downlink=lb.Float32()), wire, base)
    assert not wire.errors
    assert np.linalg.norm(learned["w"] - base["w"]) <= 0.5 + 1e-4


def test_evaluation_sees_the_clients_model() -> None:
    strategy = Compressed(average(), lb.Float32(), downlink=lb.Float32())
    wire = Wire()
    base = {name: array for name, array in model().items() if array.dtype.kind == "f"}
    result = strategy.start(wire, write_arrays(base), num_rounds=2)  # type: ignore[arg-type]
    plain = average().start(Wire(app(mods=())), write_arrays(base), num_rounds=2)  # type: ignore[arg-type]
    for number in (1, 2):
        ours, theirs = (each.evaluate_metrics_clientapp[number]["total"] for each in (result, plain))
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert not wire.errors


def test_a_model_is_sent_once() -> None:
    """The first contact takes the model; evaluation takes what training changed; the next round nothing but orders."""
    strategy = Compressed(average(fraction_evaluate=1.0), lb.Eden(1), downlink=lb.Eden(1, "min_error"))
    wire = Wire()
    rounds(strategy, wire, model(), 3)
    kinds = [
        (message.metadata.message_type, [array.stype for array in message.content["arrays"].values()])
        for message in wire.sent
    ]
    whole, change, nothing = ["numpy.ndarray"] * 6, ["lowbit.message"], []
    first, evaluation, later = ("train", whole), ("evaluate", change), ("train", nothing)
    assert kinds == [*[first] * 3, *[evaluation] * 3, *[later] * 3, *[evaluation] * 3, *[later] * 3, *[evaluation] * 3]


def test_what_is_counted_is_what_was_sent() -> None:
    strategy = Compressed(average(fraction_evaluate=0.0), lb.Eden(1), downlink=lb.Eden(1, "min_error"), seed=1)
    big = {"w": np.zeros((500, 800), np.float32)}
    wire = Wire()
    received = 0

    def damage(reply: Message) -> list[Message]:
        nonlocal received
        received += len(reply.content["arrays"]["message"].data)
        return [reply]

    wire.damage = damage
    rounds(strategy, wire, big, 5)
    first, *later = strategy.traffic
    assert first.plain_down > 4 * 3 * 400_000
    assert first.down > first.plain_down
    for row in later:
        # One bit a number and 4 bytes in 8 KiB; orders, metrics, names and headers are less than 500 bytes.
        assert 3 * 400_000 / 8 < row.down < 3 * (400_000 / 8 * 1.01 + 500)
        assert 3 * 400_000 / 8 < row.up < 3 * (400_000 / 8 * 1.01 + 500)
        assert 31 < row.ratio < 32
    assert received <= sum(row.up for row in strategy.traffic) < received + 15 * 200
    half = Compressed(average(fraction_evaluate=0.0), lb.Eden(1))
    rounds(half, Wire(), big, 2)
    # Without a coded downlink: half of the bytes stay, whatever the codec.
    assert 1.9 < half.traffic[-1].ratio < 2


def test_who_was_away_gets_what_it_missed_or_the_model() -> None:
    """With few clients asked each round, a client's messages are those since it was last asked."""
    strategy = Compressed(
        average(fraction_train=0.0, min_train_nodes=1, fraction_evaluate=0.0), lb.Eden(1), downlink=lb.Sign(), seed=1
    )
    wire = Wire(nodes=[*NODES, 14, 15])
    base = {"w": model()["w"]}
    strategy.strategy.fraction_train = 0.4  # type: ignore[attr-defined]
    rounds(strategy, wire, base, 12)
    assert not wire.errors
    counts: dict[int, int] = {}
    for message in wire.sent:
        node, record = message.metadata.dst_node_id, message.content["arrays"]
        whole = any(array.stype != "lowbit.message" for array in record.values())
        assert whole == (node not in counts)
        orders = message.content["lowbit"]
        if not whole:
            assert len(record) == orders["model"] - counts[node]
        counts[node] = orders["model"]


def test_configuration_and_metrics_pass_untouched() -> None:
    wire = Wire()
    strategy = Compressed(average(), lb.Eden(1))
    config = ConfigRecord({"lr": 0.25, "name": "", "list": [1, 2]})
    result = strategy.start(wire, write_arrays(model()), num_rounds=1, train_config=config)  # type: ignore[arg-type]
    assert wire.sent[0].content["config"]["lr"] == 0.25
    assert "lowbit" not in wire.sent[-1].content, "evaluation of a plain model has no orders"
    assert list(result.train_metrics_clientapp) == [1]


def test_examples() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "flower.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert not result.failed
