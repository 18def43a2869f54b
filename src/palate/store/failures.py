"""What went wrong in a database, sorted by who is to act: the operator, the caller, or nobody (try again)."""

import sqlite3

from sqlalchemy import Engine, exc

from palate.errors import DataError, PalateError, StoreError

# Primary result codes of SQLite that speak of the file or the machine and not of the statement:
# PERM, BUSY, LOCKED, NOMEM, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, NOTADB.
_SQLITE_STORE = frozenset({3, 5, 6, 7, 8, 10, 11, 13, 14, 15, 26})
# Classes of SQLSTATE: no connection, out of resources, the operator steps in, system error, internal error.
_POSTGRES_STORE = ("08", "53", "57", "58", "XX")
# A lock that was not given in time.
_LOCK_TIMEOUT = "55P03"
# Serialisation failure, deadlock, and a unique key that another process wrote first.
_PASSING = frozenset({"40001", "40P01", "23505"})


def name_of(engine: Engine) -> str:
    """Return the store's URL for messages, without the password."""
    return engine.url.render_as_string(hide_password=True)


def is_store_failure(error: BaseException) -> bool:
    """Return whether no operation could succeed now: disk full, no connection, a broken file."""
    if isinstance(error, OSError):
        return True
    if not isinstance(error, exc.DBAPIError):
        return isinstance(error, exc.TimeoutError)
    if error.connection_invalidated:
        return True
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF in _SQLITE_STORE
    if isinstance(error, exc.OperationalError | exc.InternalError) and not isinstance(error.orig, sqlite3.Error):
        state = _state(error)
        return state is None or state == _LOCK_TIMEOUT or state.startswith(_POSTGRES_STORE)
    return False


def is_passing(error: BaseException) -> bool:
    """Return whether the same operation may well succeed if it is run again: another process was in the way."""
    return isinstance(error, exc.DBAPIError) and _state(error) in _PASSING


def translated(error: Exception, engine: Engine) -> Exception:
    """Return the error that callers know: StoreError, DataError (a value that no store holds), or itself."""
    if is_store_failure(error):
        return StoreError(
            f"{name_of(engine)}: cannot be read or written now ({_cause(error)}); what was acknowledged is safe, "
            "see that there is free disk space and that the database is reachable, then try again"
        )
    # SQLAlchemy wraps much of what a value raises on its way to the driver.
    cause = error.orig if isinstance(error, exc.StatementError) else error
    if isinstance(cause, PalateError):
        return cause
    if isinstance(error, exc.DataError) or isinstance(cause, UnicodeEncodeError | OverflowError):
        return DataError("a value cannot be stored: NUL, half a surrogate pair, or a number that is too large")
    return error


def _state(error: exc.DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _cause(error: BaseException) -> str:
    """Return the first line of the driver's own words; they hold no values, unlike those of SQLAlchemy."""
    origin = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
    lines = str(origin).splitlines()
    return lines[0] if lines else type(origin).__name__
