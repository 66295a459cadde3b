"""Where samples come from. A source has `__len__`, `__getitem__` and, to be read fast, `__getitems__(indices) -> {name: (B, ...) array}`."""
