"""Backends of reassembly and sampling: torch on any device, C on a CPU (native), Triton on a GPU (cuda)."""
