"""The schema's history, one file a step in `versions`; steps go forward and back."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

FOLDER = Path(__file__).parent


def latest_revision() -> str:
    """Return the name of the newest step that this version knows."""
    head = _steps().get_current_head()
    assert head is not None, "the folder of migrations holds a first and a last step"
    return head


def known_revisions() -> frozenset[str]:
    """Return the names of all steps that this version knows."""
    return frozenset(step.revision for step in _steps().walk_revisions())


def current_revision(connection: Connection) -> str | None:
    """Return the name of the last step that a database has been taken to; None: of an empty one."""
    return MigrationContext.configure(connection).get_current_revision()


def migrate(connection: Connection, revision: str) -> None:
    """Take a database forward or back to a step ("base": empty), in the transaction that is open."""
    config = Config()
    # A percent sign would be read as a reference to another setting.
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = [step.revision for step in _steps().walk_revisions()]  # newest first
    now = current_revision(connection)
    back = revision == "base" or (now is not None and known.index(now) < known.index(revision))
    (command.downgrade if back else command.upgrade)(config, revision)


def _steps() -> ScriptDirectory:
    return ScriptDirectory(str(FOLDER))
