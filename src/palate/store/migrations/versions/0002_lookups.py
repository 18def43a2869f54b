"""Indexes for windows of time and for what is new; no statistics of who people are.

PostgreSQL samples the values of a column for its planner. Those of user ids would outlive an erasure.
"""

from alembic import op

revision = "0002"
down_revision = "0001"

_INDEXES = (
    ("events", "timestamp", False),
    ("items", "revision", True),
    ("recommendations", "at", False),
    ("recommendations", "user_id", False),
)
_NAMED = ("people", "events", "states", "recommendations")


def upgrade() -> None:
    """Add the indexes and keep the planner from sampling user ids."""
    for table, column, unique in _INDEXES:
        op.create_index(f"ix_{table}_{column}", table, [column], unique=unique)
    if op.get_context().dialect.name == "postgresql":
        for table in _NAMED:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN user_id SET STATISTICS 0")


def downgrade() -> None:
    """Undo both."""
    if op.get_context().dialect.name == "postgresql":
        for table in _NAMED:
            op.execute(f"ALTER TABLE {table} ALTER COLUMN user_id SET STATISTICS -1")
    for table, column, _ in reversed(_INDEXES):
        op.drop_index(f"ix_{table}_{column}", table_name=table)
