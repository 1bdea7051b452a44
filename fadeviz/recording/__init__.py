"""Recording maps of a model during its training.

``recorder`` records from any training loop, ``probe`` observes a model once. ``hooks`` registers the hooks, and
``restore`` undoes what a forward pass changes.
"""
