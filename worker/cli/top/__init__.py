"""`worker top`: one live page for an operator.

`command.py` is the command, and prints a frame as text. `reader.py` asks Redis, within bounds. `frame_builder.py` and
`run_state.py` build a `Frame` (`model.py`) from the replies. `tables.py` makes tables of it, `layout.py` fits them to
the terminal. `app.py` is the Textual page, with the widgets of `grid.py` and `dialogs.py` and the keys of `actions.py`.
"""
