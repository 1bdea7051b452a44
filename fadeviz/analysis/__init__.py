"""Measures on recorded runs, with numpy and scipy alone: what a decoder learns first, and how sure that is."""
