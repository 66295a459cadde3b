"""From sources and treatments to micro-batches."""
