"""`worker top`: one live page for an operator.

`command.py` is the command, and all that other commands load of this. `reading.py` asks Redis, bounded, and makes a
`Frame` (`frame.py`); `drawing.py` makes tables of it, which `once.py` prints and `page.py` shows, in widgets of
`grid.py`; `steering.py` says what a key does to what is selected.
"""
