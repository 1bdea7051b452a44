"""The recorder as a callback of other people's trainers: ``lightning`` and ``transformers``, each an extra."""
