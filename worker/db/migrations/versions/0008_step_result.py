"""The results of durable steps."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("step", sa.Column("result", sa.Text), schema="worker")


def downgrade() -> None:
    """Drop it."""
    op.drop_column("step", "result", schema="worker")
