"""The client's side: models are put together before the app sees them, and what it learned is encoded after."""

from __future__ import annotations

import logging
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode

import lowbit as lb
from lowbit.flower._records import (
    RECORD,
    Arrays,
    Downlink,
    Orders,
    Uplink,
    check_fit,
    difference,
    fitted,
    moved,
    only_arrays,
    read_arrays,
    unwrap,
    wrap,
    write_arrays,
)

#: What a client remembers, in its context: the model that it holds, and what its messages left out, before and after
#: the last one.
_MODEL, _ERROR, _PENDING = "lowbit.model", "lowbit.error", "lowbit.pending"
#: By which Flower's SecAgg and SecAgg+ are known.
_SECURE = "secaggplus_configs"


def compression_mod(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
    """Read and write a ClientApp's messages as the server's `Compressed` strategy asks.

    Before the app is called the model is put together, from the one that this client holds and what changed since. What
    the app answers to ``train`` is replaced by one message: the difference to the model it was given, of all arrays,
    encoded by the server's codec, with the round's key and this node's number. Messages without an order for it
    (``query``, and ``evaluate`` while models travel as they are) pass untouched.

    Parameters
    ----------
    msg : flwr.app.Message
        From a server whose strategy is wrapped in `Compressed`.
    ctxt : flwr.app.Context
        Keeps the client's model and error feedback from round to round.
    call_next : callable
        The app, or the next mod.

    Returns
    -------
    flwr.app.Message
        The answer; or an error, which Flower's strategies report and leave out, where a message does not fit.

    Raises
    ------
    lowbit.Error
        Flower's secure aggregation is used, which masks arrays of floats: messages of few bits do not add up.

    Notes
    -----
    Put it first: ``ClientApp(mods=[compression_mod, fixedclipping_mod])``. Mods after it see plain arrays both ways, so
    that clipping and noise are applied before encoding.

    Examples
    --------
    >>> from flwr.clientapp import ClientApp
    >>> from lowbit.flower import compression_mod
    >>> app = ClientApp(mods=[compression_mod])
    """
    if _SECURE in msg.content:
        raise lb.Error(
            "mods: Flower's secure aggregation adds masked arrays, which it rounds itself, and messages of few bits do "
            "not add up; leave out compression_mod, or add the integers of lowbit.Summable by an aggregator of your own"
        )
    record = msg.content.get(RECORD)
    if record is None:
        if msg.metadata.message_type.split(".")[0] == MessageType.TRAIN:
            return _refused(msg, "the server's strategy is not wrapped in lowbit.flower.Compressed")
        return call_next(msg, ctxt)
    try:
        orders = Orders.read(cast(ConfigRecord, record))
        name, received = only_arrays(msg.content)
        known = _Memory(ctxt, orders.session)
        model = read_arrays(received) if orders.downlink is None else known.install(received, orders.downlink)
    except (lb.Error, TypeError) as error:
        return _refused(msg, str(error))
    seen = received if orders.downlink is None else write_arrays(model)
    msg.content = _with(msg.content, name, seen)

    reply = call_next(msg, ctxt)
    if orders.uplink is None or reply.has_error():
        return reply
    try:
        name, answer = only_arrays(reply.content)
        change = difference(fitted(read_arrays(answer, "reply"), model, "reply"), model)
        message = known.encode(change, orders.uplink, msg.metadata.dst_node_id)
    except (lb.Error, TypeError) as error:
        return _refused(msg, str(error))
    content = _with(reply.content, name, ArrayRecord({"message": wrap(message)}))
    content[RECORD] = ConfigRecord({"round": orders.uplink.round})
    reply.content = content
    return reply


class _Memory:
    """What a client remembers from round to round, as long as the server's session lasts."""

    def __init__(self, context: Context, session: bytes) -> None:
        self._state = context.state
        if self._notes().get("session") != session:
            for name in (_MODEL, _ERROR, _PENDING):
                self._state.pop(name, None)
            self._state[RECORD] = ConfigRecord({"session": session, "model": 0, "round": 0})

    def _notes(self) -> ConfigRecord:
        return cast(ConfigRecord, self._state.get(RECORD, ConfigRecord()))

    def _arrays(self, name: str) -> Arrays | None:
        record = self._state.get(name)
        return None if record is None else read_arrays(cast(ArrayRecord, record))

    def install(self, received: ArrayRecord, order: Downlink) -> Arrays:
        """Bring the model up to the server's."""
        held, model = cast(int, self._notes()["model"]), self._arrays(_MODEL)
        if order.since == 0:
            model = read_arrays(received)
        elif model is None or not order.since <= held <= order.model:
            what = "no model" if model is None else f"model {held}"
            raise lb.Error(f"model: {order.model} comes as changes since {order.since}, and this client holds {what}")
        else:
            messages = [unwrap(array) for array in received.values()]
            if len(messages) != order.model - order.since:
                raise lb.Error(f"model: expected {order.model - order.since} messages, got {len(messages)}")
            numbers = sum(array.size for array in model.values())
            for i in range(held, order.model):
                change = lb.decode(messages[i - order.since], key=order.key.fold(i + 1), max_elements=numbers)
                check_fit(change, model, "model")
                model = moved(model, change)
        if order.since == 0 or held != order.model:
            self._state[_MODEL] = write_arrays(model)
            self._notes()["model"] = order.model
        return model

    def encode(self, change: Arrays, order: Uplink, node: int) -> bytes:
        """Encode an update, with what earlier messages left out where the server asks for it."""
        if order.used is None:
            return lb.encode(change, order.codec, key=order.key, sender=node, min_elements=order.min_elements)
        # The server says which message it used last: what a lost one left out is not owed, all of it is.
        used = order.used == self._notes()["round"] != 0
        before = self._arrays(_PENDING if used else _ERROR)
        feedback = lb.ErrorFeedback()
        feedback.load_state_dict({"error": before})
        message = feedback.encode(change, order.codec, key=order.key, sender=node, min_elements=order.min_elements)
        feedback.commit()
        for name, arrays in ((_ERROR, before), (_PENDING, feedback.state_dict()["error"])):
            if arrays is None:
                self._state.pop(name, None)
            else:
                self._state[name] = write_arrays(arrays)
        self._notes()["round"] = order.round
        return message


def _with(content: RecordDict, name: str, arrays: ArrayRecord) -> RecordDict:
    """Give the content with other arrays under the same name, and without what server and mod say to each other."""
    return RecordDict({key: arrays if key == name else record for key, record in content.items() if key != RECORD})


def _refused(msg: Message, reason: str) -> Message:
    reason = f"compression_mod: {reason}"
    logging.getLogger("flwr").error(reason)
    return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=msg)
