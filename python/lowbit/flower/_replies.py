"""What clients answer: checked one by one, so that a bad answer is named and harms nobody."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

import lowbit as lb
from lowbit.flower._records import RECORD, Arrays, is_finite, moved, only_arrays, unwrap, write_arrays
from lowbit.flower._traffic import bytes_of


@dataclass
class Reply:
    """An answer that was found in order."""

    node: int
    message: Message
    instruction: Message
    #: The name of its ArrayRecord, the message that it holds, and all else that the strategy is to see.
    name: str
    data: bytes
    content: RecordDict
    weight: float

    def decoded(self, current: Round) -> RecordDict:
        """Give the content with the arrays that the client would have sent.

        Raises
        ------
        lowbit.Error
            The message does not decode, or to numbers that are not finite.
        """
        change = lb.decode(self.data, key=current.key, max_elements=current.elements)
        if not is_finite(change):
            raise lb.Error("its update holds a number that is not finite")
        return RecordDict({self.name: write_arrays(moved(current.model, change)), **self.content})

    @property
    def form(self) -> tuple[object, ...]:
        """What Flower's strategies expect to be the same in all answers."""
        (name, metrics), *_ = [*_metrics(self.content), ("", MetricRecord())]
        lengths = sorted((key, len(value) if isinstance(value, list) else -1) for key, value in metrics.items())
        return self.name, name, tuple(lengths)


@dataclass
class Round:
    """One round of training: what was asked of whom.

    Parameters
    ----------
    number : int
        The round's number.
    key : lowbit.Key
        The round's key.
    model : dict of str to numpy.ndarray
        The server's model, to which updates are added.
    like : lowbit.Description
        Of a message as every client should send it.
    """

    number: int
    key: lb.Key
    model: Arrays
    like: lb.Description
    asked: dict[int, Message] = field(default_factory=dict)
    #: The bytes of all that was received.
    received: int = 0

    @property
    def elements(self) -> int:
        """How many numbers the model has."""
        return sum(array.size for array in self.model.values())

    def ask(self, message: Message) -> None:
        """Note whom a message goes to.

        Raises
        ------
        lowbit.Error
            The strategy asks a client twice, whose messages would be made with the same key.
        """
        node = message.metadata.dst_node_id
        if node in self.asked:
            raise lb.Error(f"strategy: it asks node {node} twice in round {self.number}; one message each")
        self.asked[node] = message

    def refuse(self, node: int, reason: str) -> Message:
        """Make the error that the strategy sees in place of an answer."""
        return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, f"refused: {reason}"), reply_to=self.asked[node])

    def sort(self, replies: Iterable[Message], weighted_by: str | None) -> tuple[list[Reply], list[Message]]:
        """Separate the answers that are in order from errors; what is not in order becomes an error.

        Parameters
        ----------
        replies : iterable of Message
            What was received.
        weighted_by : str or None
            The metric that holds a client's weight, if the strategy has one.
        """
        answers: dict[int, Reply] = {}
        errors: list[Message] = []
        for reply in replies:
            node = reply.metadata.src_node_id
            if node not in self.asked:
                logging.getLogger("flwr").warning("aggregate_train: node %d answered and was not asked", node)
            elif reply.has_error():
                errors.append(reply)
            else:
                self.received += bytes_of(reply.content)
                try:
                    if node in answers:
                        raise lb.Error("it answered twice, and the first answer was taken")
                    answers[node] = self._check(node, reply, weighted_by)
                except lb.Error as error:
                    errors.append(self.refuse(node, str(error)))
        if weighted_by is not None and answers:
            usual = Counter(answer.form for answer in answers.values()).most_common(1)[0][0]
            for node in [node for node, answer in answers.items() if answer.form != usual]:
                errors.append(self.refuse(node, "its records or metrics have other names or lengths than the others'"))
                del answers[node]
        return list(answers.values()), errors

    def _check(self, node: int, reply: Message, weighted_by: str | None) -> Reply:
        """Find an answer in order, but for its payload; raise lowbit.Error with the reason if it is not."""
        note = reply.content.get(RECORD)
        if not isinstance(note, ConfigRecord):
            raise lb.Error("it was not encoded; put compression_mod first in the ClientApp's mods")
        if note.get("round") != self.number:
            raise lb.Error(f"it is of round {note.get('round')!r}, not {self.number}")
        name, arrays = only_arrays(reply.content)
        if len(arrays) != 1:
            raise lb.Error(f"arrays: expected one message, got {len(arrays)} arrays")
        data = unwrap(next(iter(arrays.values())))
        # No codec takes more than eight bytes for a number.
        most = self.like.nbytes + 8 * self.elements
        if len(data) > most:
            raise lb.Error(f"its message has {len(data)} bytes, more than the {most} that {self.like.codec} may take")
        about = lb.describe(data)
        if about.sender != node:
            raise lb.Error(f"its message is of sender {about.sender}")
        if (about.kind, about.codec) != (self.like.kind, self.like.codec):
            raise lb.Error(f"its message is made by {about.codec}, not {self.like.codec}")
        if about.arrays != self.like.arrays:
            raise lb.Error("its message holds arrays of other names, shapes or dtypes than the model's")
        if not about.finite:
            raise lb.Error("its update holds a number that is not finite")
        weight = 1.0 if weighted_by is None else _weight(reply.content, weighted_by)
        content = RecordDict({key: record for key, record in reply.content.items() if key not in (RECORD, name)})
        return Reply(node, reply, self.asked[node], name, data, content, weight)


#: The weights that are taken: `lowbit.Mean` wants sums of at most 2**126, which 2**26 clients do not exceed.
_LEAST, _MOST = 2.0**-126, 2.0**100


def _metrics(content: RecordDict) -> list[tuple[str, MetricRecord]]:
    return [(name, record) for name, record in content.items() if isinstance(record, MetricRecord)]


def _weight(content: RecordDict, name: str) -> float:
    """Find a client's weight."""
    metrics = _metrics(content)
    if len(metrics) != 1:
        raise lb.Error(f"expected one MetricRecord, got {len(metrics)}")
    weight = metrics[0][1].get(name)
    if not isinstance(weight, int | float) or not (weight == 0 or _LEAST <= weight <= _MOST):
        raise lb.Error(f"metrics[{name!r}]: {weight!r} is not a weight; give 0, or a number from 2**-126 to 2**100")
    return float(weight)


def read_mean(current: Round, answers: list[Reply]) -> tuple[Arrays, list[Reply], list[Message]]:
    """Read the weighted mean off messages.

    Returns
    -------
    change : dict of str to numpy.ndarray
        The mean of what changed; nothing without `used`.
    used : list of Reply
        Those in the mean.
    errors : list of Message
        For the others.
    """
    used: list[Reply] = []
    errors: list[Message] = []
    mean = lb.Mean(current.key, max_elements=current.elements)
    for answer in sorted(answers, key=lambda answer: answer.node):
        try:
            mean.add(answer.data, answer.weight)
        except lb.Error as error:
            errors.append(current.refuse(answer.node, str(error)))
        else:
            used.append(answer)
    if not any(answer.weight for answer in used):
        return {}, [], errors + [current.refuse(answer.node, "all weights are zero") for answer in used]
    change: Arrays = mean.result()
    if is_finite(change):
        return change, used, errors
    # Some message says it is finite and is not: decode each by itself to find out whose.
    finite: list[Reply] = []
    for answer in used:
        try:
            answer.decoded(current)
        except lb.Error as error:
            errors.append(current.refuse(answer.node, str(error)))
        else:
            finite.append(answer)
    if len(finite) == len(used):
        reason = "the sum of all updates is beyond float32"
        return {}, [], errors + [current.refuse(answer.node, reason) for answer in used]
    change, used, worse = read_mean(current, finite)
    return change, used, errors + worse


def stand_in(current: Round, change: Arrays, used: list[Reply], weighted_by: str) -> Message:
    """Make one answer that stands for all: with the mean of their arrays and the sum of their weights."""
    first = used[0]
    # The mean of integers is left as it is, a float, as Flower's own.
    exact = {name: np.asarray(change[name]) for name, array in current.model.items() if array.dtype.kind != "f"}
    mean = moved(current.model, change) | exact
    name, metrics = _metrics(first.content)[0]
    total = MetricRecord({**metrics, weighted_by: sum(answer.weight for answer in used)})
    content = RecordDict({first.name: write_arrays(mean), name: total})
    return Message(content, reply_to=first.instruction)
