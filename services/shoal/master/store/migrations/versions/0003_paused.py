"""Whether a job is paused, and to which attempt an event belongs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("events", sa.Column("attempt", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("events", "attempt")
    op.drop_column("jobs", "paused")
