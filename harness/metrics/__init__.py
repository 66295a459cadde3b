"""Metrics that are the same for any spread of the samples over ranks."""
