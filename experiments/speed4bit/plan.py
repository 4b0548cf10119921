"""What is timed, and what was hoped for: written before the first run.

One process, contenders in turn, medians of the times and of the ratios of one round. Training is a whole step: forward,
backward, SGD with momentum, and for 4-bit training all quantization. `sun2020` converts all but the first and the last
layer. Inference is a frozen model's forward pass.

Hopes, by the instructions a machine has. AMX: a training step of the 2048-wide MLP at batch 512 at least 3 times as
fast as float32 and no slower than bfloat16. AVX2: no hope is on record for a step; its product of 4-bit matrices
should be 1.3 times as fast as float32's, so a step must at least not lose. Packed weights at batch 1: at least 4 times
float32, on any machine, where the weights are larger than the caches.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP_GOAL_AMX, STEP_GOAL, INFERENCE_GOAL = 3.0, 1.0, 4.0


@dataclass(frozen=True)
class Case:
    """One network at one size.

    Attributes
    ----------
    network : str
        "mlp", "transformer" or "cnn".
    width : int
        Of the hidden layers; the model's dimension; channels.
    batch : int
        Rows; rows of 64 tokens; images of 16 x 16.
    """

    network: str
    width: int
    batch: int

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.network} {self.width}, batch {self.batch}"


#: Of the MLP every width at batch 512 and every batch at width 2048.
MLP = [(width, 512) for width in (256, 512, 1024, 2048, 4096)] + [(2048, batch) for batch in (16, 64, 1024)]
TRAINING = [
    *(Case("mlp", width, batch) for width, batch in MLP),
    *(Case("transformer", width, batch) for width, batch in ((256, 16), (512, 16), (1024, 16))),
    *(Case("cnn", width, batch) for width, batch in ((64, 64), (256, 16))),
]
INFERENCE = [
    *(Case("mlp", width, 1) for width in (256, 1024, 2048, 4096)),
    *(Case("mlp", 2048, batch) for batch in (16, 512)),
    *(Case("transformer", width, 1) for width in (256, 1024)),
    Case("cnn", 64, 16),
]
#: Where the share of quantizing, packing and multiplying is told.
SHARES = [Case("mlp", 512, 512), Case("mlp", 2048, 512), Case("transformer", 1024, 16)]
