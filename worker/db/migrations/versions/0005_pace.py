"""The pace of a step: batch sizes measured by its batches, including failed ones."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("step", sa.Column("pace", JSONB(none_as_null=True)), schema="worker")


def downgrade() -> None:
    """Drop it."""
    op.drop_column("step", "pace", schema="worker")
