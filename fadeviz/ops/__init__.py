"""The kernels of the operators, and how floating-point arithmetic is set."""
