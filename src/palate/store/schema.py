"""The tables, once for SQLite and PostgreSQL. Times are seconds since 1970 UTC.

Events are the truth about people; `states` is a cache of what was learned from them. What changes here changes in a
new file of `migrations/versions` too: a test compares the two.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

# SQLite numbers rows by itself only where the column is spelled INTEGER.
_RowNumber = BigInteger().with_variant(Integer, "sqlite")

people = Table(
    "people",
    metadata,
    Column("user_id", Text, primary_key=True),
    Column("attributes", JSON, nullable=False),
    # How many events of the person are stored: the last position given out.
    Column("position", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
)

events = Table(
    "events",
    metadata,
    # The order in which events were stored, over everyone; with gaps, and never used twice.
    Column("seq", _RowNumber, primary_key=True, autoincrement=True),
    Column("event_id", Text, nullable=False),
    Column("user_id", Text, ForeignKey("people.user_id"), nullable=False),
    # 1, 2, 3, … without gaps for each person.
    Column("position", BigInteger, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("timestamp", Double, nullable=False),
    Column("weight", Double, nullable=False),
    Column("session_id", Text),
    Column("recommendation_id", Text),
    Column("received_at", Double, nullable=False),
    UniqueConstraint("event_id"),
    UniqueConstraint("user_id", "position"),
    Index(None, "timestamp"),
    sqlite_autoincrement=True,
)

items = Table(
    "items",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("attributes", JSON, nullable=False),
    Column("hidden", Boolean, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    # Rises with every change to any item, so a reader can ask for what is new to it.
    Column("revision", BigInteger, nullable=False),
    Index(None, "revision", unique=True),
)

states = Table(
    "states",
    metadata,
    Column("user_id", Text, ForeignKey("people.user_id"), primary_key=True),
    Column("model_id", Text, nullable=False),
    # The position of the last event that the weights have seen.
    Column("position", BigInteger, nullable=False),
    # The bare word is one of SQL's own.
    Column("is_returning", Boolean, key="returning", nullable=False),
    # Fast weights as safetensors.
    Column("payload", LargeBinary, nullable=False),
    Column("updated_at", Double, nullable=False),
)

recommendations = Table(
    "recommendations",
    metadata,
    Column("recommendation_id", Text, primary_key=True),
    Column("user_id", Text),
    Column("session", Boolean, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("variant", Text, nullable=False),
    Column("scenario", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("items", JSON, nullable=False),
    Column("scores", JSON, nullable=False),
    Column("propensities", JSON, nullable=False),
    # What was asked for that a plain list is not: its length, filter, …
    Column("asked", JSON(none_as_null=True)),
    Index(None, "at"),
    Index(None, "user_id"),
)

models = Table(
    "models",
    metadata,
    Column("model_id", Text, primary_key=True),
    Column("folder", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("trained_until", Double),
    Column("report", JSON, nullable=False),
    # Of the folder's manifest, which names the hash of every other file.
    Column("sha256", Text, nullable=False),
)

pointer = Table(
    "pointer",
    metadata,
    Column("name", Text, primary_key=True),
    Column("model_id", Text, ForeignKey("models.model_id"), nullable=False),
    Column("previous", Text, ForeignKey("models.model_id")),
    Column("share", Double, nullable=False),
    Column("changed_at", Double, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("progress", JSON, nullable=False),
    Column("error", Text),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("role", Text, nullable=False),
    # Of the whole key; the key itself is never stored.
    Column("sha256", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)

erasures = Table(
    "erasures",
    metadata,
    # HMAC-SHA256 of the erased user_id under the store's salt.
    Column("digest", Text, primary_key=True),
    Column("at", Double, primary_key=True),
)

settings = Table(
    "settings",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
