"""Recorders as callbacks of other trainers: ``lightning`` and ``transformers``, each an extra."""
