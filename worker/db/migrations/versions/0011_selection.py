"""The parts of walks that operators select for runs, as SQL that must not travel through Redis."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "selection",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("subset", sa.Text),
        sa.Column("first", JSONB(none_as_null=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        schema="worker",
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("selection", schema="worker")
