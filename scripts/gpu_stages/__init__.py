"""The stages of ``scripts/gpu_check.py``, a file for those that belong together."""
