"""Mean squared errors of the codecs' quantizers of N(0, 1); made by `tables/write.py`: change that, not this."""

from __future__ import annotations

import math

#: E[(Z - Q(Z))^2] of the Lloyd-Max codebooks of 0, 1, ..., 8 bits.
LLOYD_MAX_DISTORTION = (
    1.0,
    0.363380227632419,
    0.11748184782932974,
    0.03454776078850392,
    0.009501008008191947,
    0.0025046683556748162,
    0.0006442396653172668,
    0.00016347822998023795,
    4.1185082867117776e-05,
)

#: E[(Z - Zhat)^2] of QUIC-FL's quantizers of 1, 2, 3 and 4 bits; numbers beyond T have no error.
QUICFL_ERROR = {1: 1.4654043392382692, 2: 0.21350152873088946, 3: 0.042637620951200494, 4: 0.009513085203560423}


def grid_moments(step: float) -> tuple[float, float]:
    """Return E[Z Q] and E[Q^2] of Q = step * rint(Z / step), Z from N(0, 1).

    Sums by parts over the cells' edges e: step * density(e) over all of them, and (2 j + 1) step^2 P(Z > e_j) twice.
    """
    edges = [(j + 0.5) * step for j in range(int(12 / step) + 2)]
    cross = 2 * step * math.fsum(math.exp(-e * e / 2) for e in edges) / math.sqrt(2 * math.pi)
    square = step * step * math.fsum((2 * j + 1) * math.erfc(e / math.sqrt(2)) for j, e in enumerate(edges))
    return cross, square
