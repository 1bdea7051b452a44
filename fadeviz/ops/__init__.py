"""The kernels that the operators are made of, in torch, C and Triton, and how floating-point arithmetic is set."""
