"""Brings a database to this program's schema, or refuses one that a newer program has written."""

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from shoal.core.errors import Refused


def upgrade(connection: sa.Connection, *, name: str, revision: str = "head") -> None:
    """Within the connection's transaction, which the caller guards against another master that does the same.

    `name` is the database's, for people. Raises Refused for a schema that this program does not know.
    """
    config = Config()
    config.set_main_option("script_location", "shoal.master.store:migrations")
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    for found in MigrationContext.configure(connection).get_current_heads():
        if found not in known:
            raise Refused(
                f"job store {name}: its schema {found} is newer than this program knows"
                f" ({scripts.get_current_head()}); use the Shoal version that wrote it, or a newer one"
            )
    command.upgrade(config, revision)
