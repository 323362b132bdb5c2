"""One operation a file: its maths, its Triton kernel, its CPU path, its reference. Knows tensors only."""
