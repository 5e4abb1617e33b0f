"""Makes triggers with which the database itself refuses to change or delete rows.

A person who can write the file or owns the PostgreSQL role can drop them; the hash chain finds changes made then.
"""

from __future__ import annotations

from alembic import op

FUNCTION = """
CREATE OR REPLACE FUNCTION leben_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation'; END $$
"""


def forbid_changes(*tables: str) -> None:
    """Makes the triggers of each table where they are absent."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    if not sqlite:
        op.execute(FUNCTION)
    for table in tables:
        for verb in ("update", "delete") if sqlite else ("update", "delete", "truncate"):
            op.execute(_sqlite(table, verb) if sqlite else _postgresql(table, verb))


def _sqlite(table: str, verb: str) -> str:
    return (
        f"CREATE TRIGGER IF NOT EXISTS {table}_no_{verb} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
    )


def _postgresql(table: str, verb: str) -> str:
    return (
        f"CREATE OR REPLACE TRIGGER {table}_no_{verb} BEFORE {verb} ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION leben_append_only()"
    )
