"""Synthetic horses: images and masks drawn from a seed."""
