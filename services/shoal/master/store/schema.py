"""The tables. `migrations/` brings a database here; a test compares the two."""

import math
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Text(sa.types.TypeDecorator[str]):
    """Text with a visible sign for NUL, which PostgreSQL cannot store: a log line may have one."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        return value if value is None else value.replace("\0", "\N{SYMBOL FOR NULL}")


class Double(sa.Double[float]):
    """A float64. SQLite makes NULL of NaN, so there it is stored by name: a loss may be one."""

    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> "Callable[[Any], Any] | None":
        if dialect.name != "sqlite":
            return None
        return lambda value: "nan" if value is not None and math.isnan(value) else value

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> "Callable[[Any], Any] | None":  # noqa: ARG002
        if dialect.name != "sqlite":
            return None
        return lambda value: None if value is None else float(value)


def _job_id() -> sa.Column[str]:
    return sa.Column("job_id", Text, sa.ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True)


jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", Text, primary_key=True),
    sa.Column("name", Text, nullable=False),
    sa.Column("spec_json", Text, nullable=False),
    sa.Column("spec_hash", Text, nullable=False),  # sha256, hex, of the request: one key stands for one request
    sa.Column("requirements", Text, nullable=False),  # JSON, as all that is only read and written whole
    sa.Column("phase", Text, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("message", Text, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False),
    sa.Column("submitted_at", Double, nullable=False),  # Unix seconds, as all times here
    sa.Column("started_at", Double),
    sa.Column("finished_at", Double),
    sa.Column("idempotency_key", Text, unique=True),  # NULL: none
    sa.Column("servers", Text, nullable=False),  # JSON
    sa.Column("placement", Text),  # JSON
    sa.Column("results", Text),  # JSON
    sa.Column("files", Text, nullable=False),  # JSON
    sa.Column("summary", Text),  # JSON
    sa.Column("paused", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("failures", sa.BigInteger, nullable=False, server_default="0"),
    sa.Index(None, "phase"),
    sa.Index(None, "submitted_at", "job_id"),
)

events = sa.Table(
    "events",
    metadata,
    _job_id(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", Double, nullable=False),
    sa.Column("phase", Text, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("message", Text, nullable=False),
    sa.Column("attempt", sa.BigInteger, nullable=False, server_default="0"),
)

evaluations = sa.Table(
    "evaluations",
    metadata,
    _job_id(),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("accuracy", Double, nullable=False),
    sa.Column("loss", Double, nullable=False),
)

logs = sa.Table(
    "logs",
    metadata,
    _job_id(),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", Double, nullable=False),
    sa.Column("worker_id", Text, nullable=False),
    sa.Column("text", Text, nullable=False),
)

curves = sa.Table(
    "curves",
    metadata,
    _job_id(),
    sa.Column("losses", sa.LargeBinary, nullable=False),  # little-endian float64, one per committed step
)

manifests = sa.Table(
    "manifests",
    metadata,
    _job_id(),
    sa.Column("step", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("files", Text, nullable=False),  # JSON
    sa.Column("at", Double, nullable=False),
    sa.Column("damaged", Text, nullable=False),  # '': not that anybody knew
)

# One row. The primary key is the epoch itself: a change of it conflicts with the key-share lock that every writing
# transaction takes, so a new epoch begins after the last write of the old one, and the renewal of a lease, which
# leaves the key as it is, waits for no write.
leadership = sa.Table(
    "leadership",
    metadata,
    sa.Column("epoch", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("incarnation", Text, nullable=False),  # '': none leads
    sa.Column("host", Text, nullable=False),
    sa.Column("lease_until", Double, nullable=False),  # by the database's clock; 0 where no lease is needed
)
