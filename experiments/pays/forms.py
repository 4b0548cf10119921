"""The errors that arithmetic on paper promises. They were written before the runs.

All are expectations of the squared error of a mean, relative to the mean squared norm of the senders' vectors. v is one
message's error (``codec.expected_error``), errors of different messages are independent and unbiased. Vectors are alike
to a degree `rho`: two have the inner product rho, so that the mean of m has the squared norm rho + (1 - rho) / m.
"""

from __future__ import annotations

from collections.abc import Sequence


def flat(v: float, n: float) -> float:
    """Read everyone's message in one place: errors average."""
    return v / n


def tree(errors: Sequence[float], fans: Sequence[int], rho: float) -> float:
    """Average `fans` messages in the aggregators of each level; all but the root encode what they got once more.

    ``errors[0]`` is the senders' v, ``errors[l]`` that of the aggregators of level l. A node of level l stands for N
    senders and has the error e, so what it encodes has the squared norm rho + (1 - rho) / N + e.
    """
    error, senders = errors[0] / fans[0], fans[0]
    for v, fan in zip(errors[1:], fans[1:], strict=True):
        error = (error + v * (rho + (1 - rho) / senders + error)) / fan
        senders *= fan
    return error


def two_phase(up: float, down: float, n: int, rho: float) -> float:
    """Average each part in one rank and encode its mean once more: nothing averages that second error."""
    first = up / n
    return first + down * (rho + (1 - rho) / n + first)


def known(v: float, n: int, lost: float, rho: float) -> float:
    """Lose a share at random and divide the sum by the number that came; against the mean of all n.

    Sampling k of n without replacement has the variance S^2 (1/k - 1/n), here with S^2 = 1 - rho.
    """
    come = n * (1 - lost)
    return v / come + (1 - rho) * (1 / come - 1 / n)


def expected(v: float, n: int, lost: float) -> float:
    """Lose a share that nobody counts, and divide the sum by the number that was expected: unbiased, but noisier."""
    return (v + lost) / (n * (1 - lost))


def ignored(v: float, n: int, lost: float, rho: float) -> float:
    """Take who drops out for zeros, and divide the sum by n: the mean shrinks by (1 - lost)."""
    return lost**2 * (rho + (1 - rho) / n) + (1 - lost) * (v + lost) / n


def groups(v: float, n: int, lost: Sequence[float], apart: float, *, weighted: bool) -> float:
    """Lose more of one half than of the other, their vectors a squared distance `apart`.

    Unweighted, the mean leans to those who come: off by (share - 1/2) times the difference. Weighted by one over the
    chance to come, it does not, but for the noise of the two counts.
    """
    come = [n / 2 * (1 - p) for p in lost]
    weights = [1 / (1 - p) if weighted else 1.0 for p in lost]
    total = sum(w * k for w, k in zip(weights, come, strict=True))
    share = weights[0] * come[0] / total
    # To first order in the counts: share (1 - share) times their relative deviations, of variance p / come.
    wobble = (share * (1 - share)) ** 2 * sum(p / k for p, k in zip(lost, come, strict=True))
    noise = v * sum(w * w * k for w, k in zip(weights, come, strict=True)) / total**2
    return apart * ((share - 0.5) ** 2 + wobble) + noise


def stale(v: float, n: int, late: float, drift: float, *, taken: bool) -> float:
    """Hear of a share `late` a round later, when the mean has moved by a squared distance `drift`."""
    moved = 1 + drift
    if not taken:
        return v * moved / ((1 - late) * n)
    return late**2 * drift + v * ((1 - late) * moved + late) / n


def one_liar(v: float, n: int, size: float) -> float:
    """Let one of n send a vector of its own that is `size` times as long as the others'."""
    return (size**2 + 1) / n**2 + v * (n - 1 + size**2) / n**2


def bounded_liars(v: float, n: int, share: float, size: float) -> float:
    """Let a share of the senders send the opposite, as long as a check of norms allows."""
    return (share * (1 + size)) ** 2 + v * (1 - share + share * size**2) / n


def lying_aggregator(v: float, n: int, nodes: int) -> float:
    """Let one of `nodes` aggregators under the root send the opposite of its mean, exactly encoded."""
    return (2 / nodes) ** 2 + v / n
