"""Run by Alembic for each upgrade: works inside the transaction that it is given. Next: `versions/`."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
