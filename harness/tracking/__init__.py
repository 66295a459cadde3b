"""Where a run's records go: metrics.jsonl, which is the truth, the console, and from metrics.jsonl
to W&B, TensorBoard and Trackio.
"""
