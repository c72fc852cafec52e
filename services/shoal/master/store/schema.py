"""The tables. `migrations/` brings a database here; a test compares the two."""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _job_id() -> sa.Column[str]:
    return sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True)


jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("spec_json", sa.Text, nullable=False),
    sa.Column("spec_hash", sa.Text, nullable=False),  # sha256, hex, of the spec as it was given
    sa.Column("requirements", sa.Text, nullable=False),  # JSON, as all that is only read and written whole
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("submitted_at", sa.Double, nullable=False),  # Unix seconds, as all times here
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
    sa.Column("idempotency_key", sa.Text, unique=True),  # NULL: none
    sa.Column("servers", sa.Text, nullable=False),  # JSON
    sa.Column("placement", sa.Text),  # JSON
    sa.Column("results", sa.Text),  # JSON
    sa.Column("files", sa.Text, nullable=False),  # JSON
    sa.Column("summary", sa.Text),  # JSON
    sa.Index(None, "phase"),
    sa.Index(None, "submitted_at", "job_id"),
)

events = sa.Table(
    "events",
    metadata,
    _job_id(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)

evaluations = sa.Table(
    "evaluations",
    metadata,
    _job_id(),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("accuracy", sa.Double, nullable=False),
    sa.Column("loss", sa.Double, nullable=False),
)

logs = sa.Table(
    "logs",
    metadata,
    _job_id(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

curves = sa.Table(
    "curves",
    metadata,
    _job_id(),
    sa.Column("losses", sa.LargeBinary, nullable=False),  # little-endian float64, one per committed step
)
