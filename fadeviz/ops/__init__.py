"""The kernels of the operators, in torch, C and Triton, and the settings of floating-point arithmetic."""
