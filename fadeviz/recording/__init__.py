"""The parts of one observation: names of layers, hooks, the state that is put back, batches and masks of any form."""
