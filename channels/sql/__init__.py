"""Opens the SQL database, SQLite or PostgreSQL, and migrates its schema.

May import only errors and private_files.
"""

from channels.sql.database import Database
from channels.sql.locations import source_url, sqlite_url
from channels.sql.trouble import EMPTY, DatabaseDamaged, DatabaseUnavailable

__all__ = ["EMPTY", "Database", "DatabaseDamaged", "DatabaseUnavailable", "source_url", "sqlite_url"]
