"""`worker top`: one live page for an operator.

`command.py` is the command, and the only module here that other commands load. `reader.py` reads a bounded part of
Redis and returns a `Frame` (`model.py`). `tables.py` turns it into tables, which `text.py` prints and `app.py` shows,
in widgets of `grid.py`. `actions.py` maps keys to operator commands.
"""
