"""The server's side: orders go out with the model, and means are read off messages."""

from __future__ import annotations

import logging
import operator
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi, Strategy

import lowbit as lb
from lowbit import _arguments
from lowbit._messages import check_codec
from lowbit.flower._broadcast import Broadcast
from lowbit.flower._records import (
    RECORD,
    Arrays,
    Orders,
    Uplink,
    difference,
    fitted,
    only_arrays,
    read_arrays,
    write_arrays,
)
from lowbit.flower._replies import Reply, Round, read_mean, stand_in
from lowbit.flower._traffic import Traffic, bytes_of

_LOG = logging.getLogger("flwr")
#: Strategies that see clients' arrays through their weighted mean only, told by the method that would look at them.
_OF_MEANS = {kind.aggregate_train for kind in (FedAvg, FedAvgM, FedAdagrad, FedAdam, FedYogi)}


def _weighted_by(strategy: Strategy) -> str | None:
    """Find the metric that holds clients' weights; differential privacy wraps the strategy that says it."""
    inner: object = strategy
    while inner is not None and not isinstance(inner, FedAvg):
        inner = getattr(inner, "strategy", None)
    return None if inner is None else inner.weighted_by_key


class Compressed(Strategy):
    """Let a strategy's messages travel in few bits.

    Parameters
    ----------
    strategy : flwr.serverapp.strategy.Strategy
        Which samples clients and makes the next model of what they answer. It sees whole models, as ever.
    codec : lowbit.Codec
        How clients encode what they learned, the difference to the model they were given: ``lb.Eden(1)``.
    downlink : lowbit.Codec, optional
        How the server encodes what changed in its model since a client saw it: ``lb.Eden(1, "min_error")``. A client
        that is new, or was away for long, gets the model itself. By default models travel as they are, and the saving
        is at most half of all bytes.
    error_feedback : bool, optional
        Whether clients add what earlier messages left out, which their context then remembers. By default, where the
        codec is biased.
    min_elements : int, optional
        The least number of floats in an array that is worth coding; smaller arrays travel exactly.
    seed : int, optional
        Of the rounds' keys. With the same seed the same nodes make the same messages of the same numbers; use it for
        one run. By default, drawn from the system.
    fused : bool, optional
        Whether the weighted mean is read off all messages at once, in one accumulator, and `strategy` is given that;
        else every message is decoded by itself, as strategies need that look at single updates (`Krum`, `FedMedian`,
        differential privacy). By default fused for `FedAvg` and its kin whose ``aggregate_train`` is Flower's own.

    Attributes
    ----------
    strategy : flwr.serverapp.strategy.Strategy
        The wrapped one.
    traffic : list of Traffic
        What every round took.
    fused : bool
        Whether means are read off all messages at once.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        Error feedback for an unbiased codec, a downlink codec whose error is not smaller than the model's change
        (raised when the first model is known), or a fused mean for a strategy that is no `FedAvg`.

    Notes
    -----
    Clients need `compression_mod`. The round's key travels with the model, and a client's message is made with it and
    the number of its node, so that no two errors are alike. Answers that are damaged, of another round, codec or key,
    from another sender, too long, not finite or of other shapes are refused one by one: the strategy sees an error
    reply that names the node and the reason. This protects the mean from accidents, not from a client that lies well:
    there is no authentication but Flower's, and no bound on what a client may claim to have learned.

    Names, shapes and dtypes of the model stay those of the first round.

    Examples
    --------
    >>> import lowbit as lb
    >>> from flwr.serverapp.strategy import FedAvg
    >>> from lowbit.flower import Compressed
    >>> strategy = Compressed(FedAvg(), lb.Eden(1), downlink=lb.Eden(1, "min_error"))
    """

    def __init__(
        self,
        strategy: Strategy,
        codec: lb.Codec,
        *,
        downlink: lb.Codec | None = None,
        error_feedback: bool | None = None,
        min_elements: SupportsIndex = 1024,
        seed: SupportsIndex | None = None,
        fused: bool | None = None,
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise TypeError(f"strategy: expected a strategy of flwr.serverapp, got {type(strategy).__name__}")
        check_codec(codec)
        if downlink is not None:
            check_codec(downlink)
        if error_feedback and codec.unbiased != "no":
            raise lb.Error(f"error_feedback: {codec} is unbiased, and its errors average out without; leave it out")
        if fused and not isinstance(strategy, FedAvg):
            raise lb.Error(
                f"fused: {type(strategy).__name__} is no FedAvg, which alone tells its weights; leave it out"
            )
        self.strategy = strategy
        self.traffic: list[Traffic] = []
        self._codec, self._downlink = codec, downlink
        self._feedback = codec.unbiased == "no" if error_feedback is None else bool(error_feedback)
        self._min_elements = _arguments.within(min_elements, "min_elements", 0, (1 << 63) - 1)
        self.fused = type(strategy).aggregate_train in _OF_MEANS if fused is None else bool(fused)
        self._key = lb.Key(secrets.randbits(64) if seed is None else operator.index(seed)).fold("flower")
        self._session = secrets.token_bytes(8)
        self._number = 0
        self._used: dict[int, int] = {}
        self._model: Arrays = {}
        self._plain = 0
        self._like: lb.Description | None = None
        self._round: Round | None = None
        self._broadcast: Broadcast | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose clients, and send each what it lacks of the model."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._number += 1
        self.traffic.append(Traffic(self._number, asked=len(messages)))
        shown, like = self._show(arrays)
        key = self._key.fold("up").fold(self._number)
        self._round = Round(self._number, key, self._model, like)
        for message in messages:
            self._round.ask(message)
            used = self._used.get(message.metadata.dst_node_id, 0) if self._feedback else None
            self._address(message, shown, Uplink(self._number, self._codec, key, self._min_elements, used))
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Read the answers, and let the strategy make a model of them."""
        current, self._round = self._round, None
        if current is None:
            raise lb.Error("aggregate_train: no round was configured; call configure_train first")
        answers, errors = current.sort(replies, _weighted_by(self.strategy))
        if self.fused and isinstance(self.strategy, FedAvg):
            return self._aggregate_mean(self.strategy, server_round, current, answers, errors)
        used: list[Reply] = []
        for answer in answers:
            try:
                answer.message.content = answer.decoded(current)
            except lb.Error as error:
                errors.append(current.refuse(answer.node, str(error)))
            else:
                used.append(answer)
        self._note(current, used, errors)
        return self.strategy.aggregate_train(server_round, [*(answer.message for answer in used), *errors])

    def _aggregate_mean(
        self, strategy: FedAvg, server_round: int, current: Round, answers: list[Reply], errors: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Let the strategy make a model of one answer that stands for all."""
        change, used, worse = read_mean(current, answers)
        errors = [*errors, *worse]
        self._note(current, used, errors)
        if not used:
            return strategy.aggregate_train(server_round, errors)
        _LOG.info("aggregate_train: one result stands for the mean of %d messages", len(used))
        answer = stand_in(current, change, used, strategy.weighted_by_key)
        # Metrics are everyone's own.
        contents, metrics_of = [each.content for each in used], strategy.train_metrics_aggr_fn
        strategy.train_metrics_aggr_fn = lambda _, name: metrics_of(contents, name)
        try:
            return strategy.aggregate_train(server_round, [answer, *errors])
        finally:
            strategy.train_metrics_aggr_fn = metrics_of

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Let the strategy choose clients, and send each what it lacks of the model."""
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        if messages and not self.traffic:
            self.traffic.append(Traffic(0))
        if messages:
            shown, _ = self._show(arrays)
            for message in messages:
                self._address(message, shown, None)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Let the strategy read the metrics."""
        answers = list(replies)
        for answer in answers:
            well = not answer.has_error()
            if self._broadcast is not None:
                self._broadcast.answered(answer.metadata.src_node_id, well)
            if well and self.traffic:
                size = bytes_of(answer.content)
                self.traffic[-1].up += size
                self.traffic[-1].plain_up += size
        return self.strategy.aggregate_evaluate(server_round, answers)

    def summary(self) -> None:
        """Log what travels how, then the strategy's own summary."""
        _LOG.info("\t├──> Messages of lowbit:")
        _LOG.info("\t│\t├── Clients: %s%s", self._codec, ", with error feedback" if self._feedback else "")
        _LOG.info("\t│\t├── Server: %s", "models as they are" if self._downlink is None else self._downlink)
        _LOG.info("\t│\t└── Means: %s", "read off all messages at once" if self.fused else "of decoded messages")
        self.strategy.summary()

    def state_dict(self) -> dict[str, Any]:
        """Give all that is needed to go on in another process, between rounds: a dict of ints, bytes and arrays.

        Without it a server that starts again sends whole models first and clients forget what messages left out; with a
        `seed`, it would also use the keys of the first rounds again. The wrapped strategy's own state is not in it.
        """
        return {
            "key": self._key.words,
            "session": self._session,
            "round": self._number,
            "used": dict(self._used),
            "model": {name: array.copy() for name, array in self._model.items()},
            "downlink": None if self._broadcast is None else self._broadcast.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; codecs and strategy are those of the new wrapper.

        Raises
        ------
        TypeError
            `state` is not what `state_dict` gave.
        lowbit.Error
            It has a downlink and this has none, or the other way round.
        """
        names = {"key", "session", "round", "used", "model", "downlink"}
        if not isinstance(state, Mapping) or set(state) != names:
            raise TypeError("state: expected what state_dict gave")
        if state["round"] and (state["downlink"] is None) != (self._downlink is None):
            raise lb.Error("state: downlink is coded in one of state and wrapper only; make the wrapper as it was")
        self._key, self._session = lb.Key.from_words(*state["key"]), state["session"]
        self._number, self._used, self._model = state["round"], dict(state["used"]), dict(state["model"])
        if self._downlink is not None and state["downlink"] is not None:
            self._broadcast = self._new_broadcast(self._downlink)
            self._broadcast.load_state_dict(state["downlink"])

    def _new_broadcast(self, codec: lb.Codec) -> Broadcast:
        return Broadcast(codec, self._key.fold("down"), self._min_elements)

    def _show(self, arrays: ArrayRecord) -> tuple[ArrayRecord, lb.Description]:
        """Take the model that clients see next; also give what describes a message of what they learn."""
        given = read_arrays(arrays)
        if self._like is None:
            self._like = self._try(self._model or given)
        self._model = fitted(given, self._model or given, "arrays")
        shown = write_arrays(self._model)
        self._plain = shown.count_bytes()
        if self._downlink is not None:
            self._broadcast = self._broadcast or self._new_broadcast(self._downlink)
            self._broadcast.publish(self._model)
        return shown, self._like

    def _try(self, model: Arrays) -> lb.Description:
        """Find out before any client is asked whether the codecs suit the model."""
        change = difference(model, model)
        options: dict[str, Any] = {"key": self._key, "min_elements": self._min_elements}
        if self._feedback:
            lb.ErrorFeedback().encode(change, self._codec, **options)
        if self._downlink is not None:
            for info in lb.describe(lb.encode(change, self._downlink, **options)).arrays or ():
                numbers = model[info.name].size
                if not info.exact and numbers and self._downlink.expected_error(numbers) >= 1:
                    raise lb.Error(
                        f"downlink: the error of {self._downlink} is larger than what it encodes for {numbers} numbers "
                        f"({info.name}), so that clients' models would not keep up; give more bits, or the scale "
                        '"min_error"'
                    )
        return lb.describe(lb.encode(change, self._codec, **options))

    def _address(self, message: Message, shown: ArrayRecord, uplink: Uplink | None) -> None:
        """Put into a message what its client lacks, and the orders for its mod."""
        name, _ = only_arrays(message.content)
        downlink = None
        traffic = self.traffic[-1]
        traffic.plain_down += bytes_of(message.content)
        if self._broadcast is not None:
            downlink, shown = self._broadcast.address(message.metadata.dst_node_id)
        message.content = RecordDict({**message.content, name: shown})
        if uplink is not None or downlink is not None:
            message.content[RECORD] = Orders(self._session, uplink, downlink).record()
        traffic.down += bytes_of(message.content)

    def _note(self, current: Round, used: list[Reply], errors: list[Message]) -> None:
        """Note whose messages were used, who is up to date, and what all of it took."""
        traffic = self.traffic[-1]
        traffic.accepted, traffic.refused = len(used), len(errors)
        traffic.up += current.received
        traffic.plain_up += sum(bytes_of(answer.content) + len(answer.name) + self._plain for answer in used)
        for answer in used:
            self._used[answer.node] = current.number
        if self._broadcast is not None:
            good = {answer.node for answer in used}
            for node in good | {error.metadata.src_node_id for error in errors}:
                self._broadcast.answered(node, well=node in good)
