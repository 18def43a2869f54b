"""What a list was asked for with, beside who, when and where; of lists from before, nothing is known."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; it is empty, so neither database writes a row anew."""
    op.add_column("recommendations", sa.Column("asked", sa.JSON))


def downgrade() -> None:
    """Drop it and what it holds."""
    op.drop_column("recommendations", "asked")
