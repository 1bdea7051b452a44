"""The paper's training, as plain functions: batches, one step after another, metrics, checkpoints."""
