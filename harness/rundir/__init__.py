"""The contents of a run directory other than checkpoints."""
