"""Solve the tables and write them: for Rust, for the reference, and for what Python tells about errors.

``python tables/write.py`` writes; ``python tables/write.py --check`` (``make tables``) solves them again and fails if a
committed file holds other text, or a number that differs by more than the last digit of a float32 number.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import entropy_step
import lloyd_max
import numpy as np
import quicfl

ROOT = Path(__file__).resolve().parent.parent
MADE = "made by `tables/write.py`: change that, not this."


def digits(number):
    """Write a float32 or float64 number in as few digits as tell it from its neighbours."""
    return np.format_float_positional(number, unique=True, trim="0")


def rows(texts, indent):
    """Fill lines of at most 120 columns."""
    lines, line = [], " " * indent
    for text in texts:
        if len(line) + len(text) + 1 > 120:
            lines.append(line.rstrip())
            line = " " * indent
        line += text + ", "
    return "".join(line + "\n" for line in [*lines, line.rstrip()])


def numbers(array, indent):
    """Lines of numbers."""
    return rows([digits(number) for number in np.ravel(array)], indent)


def rust_const(name, comment, kind, body):
    """Return a constant that rustfmt leaves alone."""
    return f"\n/// {comment}\n#[rustfmt::skip]\npub(super) const {name}: {kind} = {body};\n"


def rust_slices(name, comment, arrays):
    """Return a constant of slices of float32 numbers."""
    slices = "".join(f"    &[\n{numbers(array, 8)}    ],\n" if len(array) else "    &[],\n" for array in arrays)
    return rust_const(name, comment, f"[&[f32]; {len(arrays)}]", f"[\n{slices}]")


def rust_file(doc, *consts):
    """Return a Rust file of constants."""
    allow = '#![allow(clippy::unreadable_literal, reason = "digits as they were computed")]'
    return f"//! {doc}; {MADE}\n\n{allow}\n" + "".join(consts)


def python_arrays(name, comment, arrays):
    """Return a dictionary of float32 arrays by bits."""
    parts = []
    for bits, array in arrays.items():
        shape = f".reshape({array.shape[0]}, {array.shape[1]})" if array.ndim == 2 else ""
        body = f"[\n{numbers(array, 8)}    ]" if array.size else "[]"
        parts.append(f"    {bits}: np.array({body}, _F){shape},\n")
    return f"\n#: {comment}\n{name}: dict[int, NDArray[np.float32]] = {{\n{''.join(parts)}}}\n"


REFERENCE = '''"""The numbers of the codecs, and how a step is read from them; {made}"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_F = np.float32

#: QUIC-FL sends numbers beyond this as they are.
QUICFL_T = _F({t})
#: Shared bits by the bits of a message.
QUICFL_SHARED_BITS = {shared_bits}

# fmt: off
{arrays}
#: Step and slope (its derivative by the bits) of the grid of {low:g}, {next:g}, ... bits: {parts} nodes in each octave.
_STEPS = [
{steps}]
# fmt: on


def entropy_step(bits: float) -> np.float32:
    """Step for which rint(Z / step), Z from N(0, 1), has an entropy of ``bits``, 0.05 to 8."""
    mantissa, exponent = math.frexp(bits)  # bits = (1 + (part + t) / 8) * 2**(exponent - 1)
    part = math.floor(16 * mantissa - 8)
    t = 16 * mantissa - 8 - part
    width = 2.0 ** (exponent - 4)
    index = {parts} * (exponent - 1 - {first}) + part
    (y0, slope0), (y1, slope1) = _STEPS[index : index + 2]
    rise, m0, m1 = y1 - y0, slope0 * width, slope1 * width
    return _F(y0 + t * (m0 + t * ((3 * rise - 2 * m0 - m1) + t * (m0 + m1 - 2 * rise))))
'''

ERRORS = '''"""Mean squared errors of the codecs' quantizers of N(0, 1); {made}"""

from __future__ import annotations

import math

#: E[(Z - Q(Z))^2] of the Lloyd-Max codebooks of 0, 1, ..., 8 bits.
LLOYD_MAX_DISTORTION = (
    1.0,
{distortions})

#: E[(Z - Zhat)^2] of QUIC-FL's quantizers of 1, 2, 3 and 4 bits; numbers beyond T have no error.
QUICFL_ERROR = {quicfl}


def grid_moments(step: float) -> tuple[float, float]:
    """Return E[Z Q] and E[Q^2] of Q = step * rint(Z / step), Z from N(0, 1).

    Sums by parts over the cells' edges e: step * density(e) over all of them, and (2 j + 1) step^2 P(Z > e_j) twice.
    """
    edges = [(j + 0.5) * step for j in range(int(12 / step) + 2)]
    cross = 2 * step * math.fsum(math.exp(-e * e / 2) for e in edges) / math.sqrt(2 * math.pi)
    square = step * step * math.fsum((2 * j + 1) * math.erfc(e / math.sqrt(2)) for j, e in enumerate(edges))
    return cross, square
'''


def quicfl_files():
    """Return the parts about QUIC-FL: a Rust file, arrays for the reference, errors."""
    solved = quicfl.tables()
    names = {
        "VALUES": "What the receiver reads: row after row (shared bits), in each as many as there are messages.",
        "KNOTS": "Where the sender begins to choose message x + 1 rather than x: row after row, one fewer.",
        "WIDTHS": "How far after that it is sure of it.",
    }
    columns = {name: {bits: table[i] for bits, table in solved.items()} for i, name in enumerate(names)}
    consts = [rust_slices(name, names[name], [np.ravel(a) for a in columns[name].values()]) for name in names]
    arrays = [python_arrays(f"QUICFL_{name}", names[name], columns[name]) for name in names]
    errors = {bits: table[-1] for bits, table in solved.items()}
    return rust_file("Tables of QUIC-FL with 1, 2, 3 and 4 bits", *consts), "".join(arrays), errors


def files():
    """Return every file's text by its path."""
    lloyd = lloyd_max.tables()
    quicfl_rust, quicfl_arrays, quicfl_errors = quicfl_files()
    centroids = {bits: np.float32(table[0]) for bits, table in lloyd.items()}
    boundaries = {bits: np.float32(table[1]) for bits, table in lloyd.items()}
    steps = [f"({step!r}, {slope!r})" for step, slope in entropy_step.tables().tolist()]
    first, parts = entropy_step.FIRST, entropy_step.PARTS
    comments = {
        "centroids": "Positive centroids of the Lloyd-Max codebooks of 1, 2, ..., 8 bits.",
        "boundaries": "Boundaries between them.",
    }
    return {
        "src/message/tables/lloyd_max.rs": rust_file(
            "Lloyd-Max codebooks of N(0, 1)",
            rust_slices("CENTROIDS", comments["centroids"], centroids.values()),
            rust_slices("BOUNDARIES", comments["boundaries"], boundaries.values()),
        ),
        "src/message/tables/quicfl.rs": quicfl_rust,
        "src/message/tables/entropy.rs": rust_file(
            "Steps of uniform grids by their entropy",
            rust_const(
                "FIRST_NODE",
                f"The first node, {2**first} bits, as a float64's sign, exponent and three bits of mantissa.",
                "u64",
                f"{hex(int(np.float64(2.0**first).view(np.uint64)) >> 49)}",
            ),
            rust_const(
                "STEPS",
                "Step and its derivative by the bits, at eight nodes in each octave.",
                f"[(f64, f64); {len(steps)}]",
                f"[\n{rows(steps, 4)}]",
            ),
        ),
        "python/lowbit/reference/tables.py": REFERENCE.format(
            made=MADE,
            arrays=python_arrays("CENTROIDS", comments["centroids"], centroids)
            + python_arrays("BOUNDARIES", comments["boundaries"], boundaries)
            + quicfl_arrays,
            shared_bits=quicfl.SHARED_BITS,
            t=quicfl.T,
            steps=rows(steps, 4),
            low=2.0**first,
            next=2.0**first * (1 + 1 / parts),
            parts=parts,
            first=first,
        ),
        "python/lowbit/_tables.py": ERRORS.format(
            made=MADE, distortions="".join(f"    {table[2]!r},\n" for table in lloyd.values()), quicfl=quicfl_errors
        ),
    }


NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def differences(old, new):
    """Say how two texts differ by more than rounding."""
    if re.sub(r"\s", "", NUMBER.sub("#", old)) != re.sub(r"\s", "", NUMBER.sub("#", new)):
        return "the text differs"
    before, after = (np.array([float(number) for number in NUMBER.findall(text)]) for text in (old, new))
    far = np.abs(before - after) > 2**-23 * np.abs(after)
    if not far.any():
        return ""
    return f"{far.sum()} of {far.size} numbers differ, the first from {before[far][0]} to {after[far][0]}"


def main():
    """Write, or check."""
    failed = False
    for name, text in files().items():
        path = ROOT / name
        if "--check" not in sys.argv[1:]:
            path.write_text(text)
            continue
        wrong = differences(path.read_text(), text)
        failed |= bool(wrong)
        print(f"{name}: {wrong or 'as solved'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
