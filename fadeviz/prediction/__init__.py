"""Predictions of trained networks, and their comparison."""
