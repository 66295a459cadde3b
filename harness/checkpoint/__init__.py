"""Checkpoints that cannot be lost: format, layout, writing, commit, reading, retention.

See docs/checkpoints.md.
"""
