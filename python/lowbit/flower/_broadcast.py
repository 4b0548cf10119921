"""The server's side of the downlink: one model that all clients hold, and what changed since any of them saw it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord

import lowbit as lb
from lowbit.flower._records import Arrays, Downlink, difference, is_finite, moved, wrap, write_arrays


class Broadcast:
    """Sends models as coded changes.

    Clients hold what they decoded, not the server's model, so each change is encoded against that: what a message left
    out is part of the next one, and errors do not add up. Models are numbered; who holds number k gets the messages
    from k + 1 on, or, where they are missing or longer than the model itself, the whole model that the others hold.

    Parameters
    ----------
    codec : lowbit.Codec
        Of an error smaller than what it encodes.
    key : lowbit.Key
        Message number k is made with ``key.fold(k)``.
    min_elements : int
        As for `lowbit.encode`.
    """

    def __init__(self, codec: lb.Codec, key: lb.Key, min_elements: int) -> None:
        self._codec, self._key, self._min_elements = codec, key, min_elements
        self._number = 0
        self._model: Arrays = {}
        self._target: Arrays = {}
        #: By number: the message that leads to that model. All numbers up to the latest, from some on.
        self._messages: dict[int, bytes] = {}
        self._whole: ArrayRecord | None = None
        #: By node: the number of the model that it is known to hold, and of the one on its way.
        self._held: dict[int, int] = {}
        self._sent: dict[int, int] = {}

    @property
    def model(self) -> Arrays:
        """What clients hold that are up to date."""
        return self._model

    def publish(self, target: Arrays) -> None:
        """Encode what leads from what clients hold to `target`, unless nothing changed."""
        if self._number and all(target[name].tobytes() == array.tobytes() for name, array in self._target.items()):
            return
        self._number += 1
        self._target, self._whole = target, None
        if self._number > 1:
            change = difference(target, self._model)
            key = self._key.fold(self._number)
            message = lb.encode(change, self._codec, key=key, min_elements=self._min_elements)
            after = moved(self._model, lb.decode(message, key=key, max_elements=1 << 62))
            if is_finite(after):
                self._model = after
                self._messages[self._number] = message
                self._forget()
                return
        # The first model, and what no difference leads to or from: infinities.
        self._model = target
        self._messages.clear()

    def _forget(self) -> None:
        """Drop the oldest messages once all of them are longer than the model."""
        most = sum(array.nbytes for array in self._model.values())
        while self._messages and sum(map(len, self._messages.values())) > most:
            del self._messages[min(self._messages)]

    def address(self, node: int) -> tuple[Downlink, ArrayRecord]:
        """Give what brings a client up to date."""
        since = self._held.get(node, 0)
        self._sent[node] = self._number
        if since and all(number in self._messages for number in range(since + 1, self._number + 1)):
            messages = (self._messages[number] for number in range(since + 1, self._number + 1))
            record = ArrayRecord({str(i): wrap(message) for i, message in enumerate(messages)})
            return Downlink(self._number, since, self._key), record
        self._whole = self._whole or write_arrays(self._model)
        return Downlink(self._number, 0, self._key), self._whole

    def answered(self, node: int, well: bool) -> None:
        """Note that a client holds what it was sent, or (after an error) that nobody knows what it holds."""
        sent = self._sent.pop(node, None)
        if sent is not None and well:
            self._held[node] = sent
        elif not well:
            self._held.pop(node, None)

    def state_dict(self) -> dict[str, Any]:
        """Give all that is needed to go on later."""
        return {
            "number": self._number,
            "model": {name: array.copy() for name, array in self._model.items()},
            "target": {name: array.copy() for name, array in self._target.items()},
            "messages": dict(self._messages),
            "held": dict(self._held),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._number = state["number"]
        self._model, self._target = dict(state["model"]), dict(state["target"])
        self._messages, self._held = dict(state["messages"]), dict(state["held"])
        self._whole, self._sent = None, {}
