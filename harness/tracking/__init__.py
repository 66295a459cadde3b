"""Where a run's records go: metrics.jsonl, which is the truth, the console, and from metrics.jsonl to W&B, TensorBoard and Trackio."""

from harness.tracking.records import METRICS, cut_back, evaluations, read_records
from harness.tracking.tracker import Tracker

__all__ = ["METRICS", "Tracker", "cut_back", "evaluations", "read_records"]
