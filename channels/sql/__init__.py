"""Opens the SQL database, SQLite or PostgreSQL, and migrates its schema.

May import only errors.
"""

from channels.sql.database import Database, DatabaseUnavailable

__all__ = ["Database", "DatabaseUnavailable"]
