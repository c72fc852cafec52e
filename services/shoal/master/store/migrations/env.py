"""How alembic runs the steps: on the store's own connection, within its transaction."""

from alembic import context

from shoal.master.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
context.run_migrations()
