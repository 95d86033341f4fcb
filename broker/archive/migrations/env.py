"""Alembic runs this file. The connection, its lock and its transaction are database.py's."""

from alembic import context

from broker.archive.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
)
context.run_migrations()
