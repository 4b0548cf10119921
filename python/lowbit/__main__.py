"""``python -m lowbit``: what this build is and what it found on this machine."""

import platform

import numpy as np

import lowbit as lb
from lowbit import _core


def main() -> None:
    """Print versions, the CPU level in force, the threads, and the formats."""
    print(f"lowbit {lb.__version__}, stream version {_core.STREAM_VERSION}")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}")
    print(f"CPU level {_core.cpu_level()} of {', '.join(_core.cpu_levels())}; {lb.get_num_threads()} threads")
    refused = "; AMX is there, but the system refuses it" if _core.amx_is_refused() else ""
    print(f"products of codes: {_core.matmul_kernel()} of {', '.join(_core.matmul_kernels())}{refused}")
    print("formats:")
    for name in lb.formats():
        fmt = lb.get_format(name)
        rules = ", ".join(fmt.scale_rules)
        print(f"  {name:15} {fmt.bits} bits, {len(fmt.values):3} values up to {fmt.max:g}; scale by {rules}")


if __name__ == "__main__":
    main()
