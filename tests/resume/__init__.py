"""Resumed runs against uninterrupted ones, bit for bit."""
