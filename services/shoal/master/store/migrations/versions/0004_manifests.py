"""Snapshots that a job can go on from, and how often it has failed by itself."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("failures", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "manifests",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.BigInteger, nullable=False),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("damaged", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "step", "attempt", name="pk_manifests"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_manifests_job_id_jobs", ondelete="CASCADE"),
    )


def downgrade() -> None:
    op.drop_table("manifests")
    op.drop_column("jobs", "failures")
