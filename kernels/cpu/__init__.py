"""The same operations on the CPU: torch's own kernels, arranged. The wrappers check everything first."""
