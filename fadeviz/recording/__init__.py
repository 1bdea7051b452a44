"""The parts of an observation: layer names, hooks, saved and restored state, batches and masks of any form."""
