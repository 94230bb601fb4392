"""The SQL function `worker.enqueue` refuses ids and queues with letters that do not print, as the clients do.

Before, it took an id with a space of another width, a line separator or an invisible letter, and the relay had to
refuse the row, long after the transaction that could still have been told.
"""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

# The categories Zs, Zl, Zp, Cf and Co of Unicode 14, without U+200D, which joins emoji. What later versions of Unicode
# assign is left to the relay. In another encoding than UTF8 these escapes would mean other letters.
_FIRST = r"\u00a0\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e\u2000-\u200c"
_JOINER = r"\u200d"
_REST = (
    r"\u200e\u200f\u2028-\u202f\u205f-\u2064\u2066-\u206f\u3000\ue000-\uf8ff\ufeff\ufff9-\ufffb\U000110bd\U000110cd"
    r"\U00013430-\U00013438\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
    r"\U000f0000-\U000ffffd\U00100000-\U0010fffd"
)
_IS_UTF8 = "pg_catalog.current_setting('server_encoding') = 'UTF8'"


def _stricter(name: str, letters: str) -> tuple[str, str]:
    former = f"{name} ~ '[[:cntrl:]]'"
    return former, f"{former}\n            OR {_IS_UTF8} AND {name} ~ '[{letters}]'"


def upgrade() -> None:
    """Replace the function. Its owner and its rights stay."""
    statement = _former()
    for before, after in (_stricter("run_id", _FIRST + _REST), _stricter("queue", _FIRST + _JOINER + _REST)):
        statement = statement.replace(before, after)
    op.execute(sa.DDL(statement))  # type: ignore[no-untyped-call]


def downgrade() -> None:
    """Bring the former one back."""
    op.execute(sa.DDL(_former()))  # type: ignore[no-untyped-call]


def _former() -> str:
    return str(import_module("worker.db.migrations.versions.0018_outbox_headers").ENQUEUE.strip())
