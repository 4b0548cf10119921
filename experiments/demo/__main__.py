"""The demo: images in INT4, a network trained in 4 bits, gradients sent in one bit. Run it with ``make demo``."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

INTERRUPTED = 130  # 128 + SIGINT, what a shell reports


def main() -> int:
    """Train everything, write the picture, print the table."""
    options = read_options()
    # The matrices are small: a second BLAS thread would only wait for the first.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import data
    import picture
    import table
    import training
    from tqdm import tqdm

    images = data.load(options.data)
    if options.rate is not None:
        images = replace(images, rate=options.rate)
    seeds, rounds = (2, 42) if options.quick else (options.seeds, training.ROUNDS)
    total = training.count_gradients(images, seeds, rounds)
    often = 0.2 if sys.stderr.isatty() else 10
    with tqdm(total=total, unit=" gradients", unit_scale=True, mininterval=often) as bar:
        results = training.train_all(images, seeds, rounds, bar)
    picture.save(picture.draw(images, results), options.out)
    print(table.report(images, results))
    print(f"\nThe picture: {options.out}")
    return 0


def read_options() -> argparse.Namespace:
    """Read the command line; a bad option ends the program before any work is done."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--data", choices=("digits", "mnist5k"), default="digits", help="the images [%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="the picture to write [%(default)s]")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="paired runs of everything [%(default)s]")
    parser.add_argument("--rate", type=float, help="the learning rate of all runs [the data's own]")
    parser.add_argument("--quick", action="store_true", help="2 seeds and a tenth of the training: a look, no result")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds: a standard error needs at least 2")
    if options.rate is not None and not 0 < options.rate < float("inf"):
        parser.error("--rate: expected a positive number")
    if options.out.is_dir() or not options.out.parent.is_dir():
        parser.error(f"--out: {options.out} cannot be a file: give a name in a folder that exists")
    return options


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nStopped. Nothing was written.", file=sys.stderr)
        sys.exit(INTERRUPTED)
