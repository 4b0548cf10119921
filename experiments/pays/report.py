def write(out, kept): return out
