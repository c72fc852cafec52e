"""Which master leads: one row, whose epoch fences the writes of earlier masters."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    table = op.create_table(
        "leadership",
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("incarnation", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("lease_until", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("epoch", name="pk_leadership"),
    )
    op.bulk_insert(table, [{"epoch": 0, "incarnation": "", "host": "", "lease_until": 0.0}])


def downgrade() -> None:
    op.drop_table("leadership")
