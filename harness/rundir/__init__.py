"""What a run directory holds beside checkpoints."""
