"""The Lua scripts. The header of each file documents it. A line `-- include <name>.lua` inserts that file."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

#: Scripts that clients in other languages use: docs/reference/wire-format.md specifies their arguments.
PUBLIC = ("enqueue", "enqueue_many", "cancel")


@cache
def script(name: str) -> str:
    """Return the text of `<name>.lua`."""
    text = files(__package__).joinpath(f"{name}.lua").read_text(encoding="utf-8")
    return re.sub(r"^-- include (\w+)\.lua$", lambda found: script(found[1]), text, flags=re.MULTILINE)
