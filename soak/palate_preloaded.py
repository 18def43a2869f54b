"""What the processes of a soak have imported before they begin; nothing here starts a thread."""

import crash_vfs
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.dialects.sqlite.pysqlite

import palate.cli
import palate.service.launch

__all__ = ["crash_vfs", "palate", "sqlalchemy"]
