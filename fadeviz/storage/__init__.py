"""A run on disk, written and read without torch."""
