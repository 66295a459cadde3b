"""The training: read loop.py first."""
