"""Where a run's records go: to metrics.jsonl, the authoritative record, and the console; from
metrics.jsonl to W&B, TensorBoard and Trackio.
"""
