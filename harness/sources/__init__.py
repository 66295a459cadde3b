"""Where samples come from.

A source has `__len__`, `__getitem__` and, to be read fast, `__getitems__(indices) -> {name: (B,
...) array}`.

What they share: `files` finds files by paths with {fields} in them, `split` says which sample is in
which part, `cells` holds their columns cell by cell.
"""
