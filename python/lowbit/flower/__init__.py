"""Federated learning in Flower with messages of few bits.

A `ClientApp` takes `compression_mod`, a strategy is wrapped in `Compressed`, and nothing else changes: clients answer
with the difference that their training made, encoded, and the server reads the mean of it off the messages.

>>> import lowbit as lb
>>> from flwr.clientapp import ClientApp
>>> from flwr.serverapp.strategy import FedAvg
>>> from lowbit.flower import Compressed, compression_mod
>>> app = ClientApp(mods=[compression_mod])
>>> strategy = Compressed(FedAvg(), lb.Eden(1), downlink=lb.Eden(1, "min_error"))
"""

from __future__ import annotations

try:
    import flwr as _flwr  # noqa: F401
except ModuleNotFoundError:
    message = "lowbit.flower needs Flower: pip install 'lowbit[flower]'"
    raise ModuleNotFoundError(message, name="flwr") from None

from lowbit.flower._mod import compression_mod
from lowbit.flower._strategy import Compressed
from lowbit.flower._traffic import Traffic

__all__ = ["Compressed", "Traffic", "compression_mod"]
