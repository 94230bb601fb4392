"""`worker top`: one live page for an operator.

`command.py` is the command, and prints a frame as text. `reader.py` reads from Redis, within limits.
`frame_builder.py` and
`run_state.py` build a `Frame` (`model.py`) from the replies. `tables.py` turns it into tables, `layout.py` fits them to
the terminal. `app.py` is the Textual page, with the widgets of `grid.py` and `dialogs.py` and the keys of `actions.py`.
"""
