"""The arithmetic of the core in torch operations, for tensors that are not on a CPU, and as the second opinion there.

Written from `lowbit.reference` and the documentation alone. On a CPU the results are the core's, bit for bit.
"""

from lowbit.torch._plain.quantizers import Codes, dequantize, fake_quantize, inside, quantize

__all__ = ["Codes", "dequantize", "fake_quantize", "inside", "quantize"]
