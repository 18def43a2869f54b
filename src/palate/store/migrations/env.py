"""Run by Alembic: the steps of `versions` over the connection that the caller holds, in the caller's transaction."""

from alembic import context

from palate.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
