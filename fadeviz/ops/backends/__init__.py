"""The ways to compute a reassembly and its two adjoints: tiles (anywhere), native (CPU), triton (GPU)."""
