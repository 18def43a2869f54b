"""The registry of models, and the pointer that says which one is served.

Moving the pointer and noting what becomes of the models is one transaction: whoever reads sees the one before or the
one after, whole.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from palate.errors import PalateError
from palate.store.locks import Lock, hold
from palate.store.schema import models, pointer
from palate.store.upsert import upsert

Status = Literal["candidate", "served", "canary", "refused", "retired"]

SERVED: Final = "served"
CANARY: Final = "canary"


class RegistryError(PalateError):
    """What is asked for contradicts how the models stand; the message says how they stand."""


class Model(NamedTuple):
    """A model of the registry."""

    model_id: str
    folder: str
    """Name within the home's folder of models."""
    status: str
    created_at: float
    trained_until: float | None
    """The time of the newest event that it was trained on; seconds since 1970 UTC."""
    report: Mapping[str, Any]
    """What the gate measured; empty before."""
    sha256: str
    """Of the folder's manifest."""


class Pointers(NamedTuple):
    """What is served now."""

    served: Model | None
    """None: before the first model."""
    previous: str | None
    """The model that a rollback returns to."""
    canary: Model | None
    share: float
    """Part of the people that the canary serves; 0 without one."""
    changed_at: float
    """When any of this changed last; 0 before the first model."""


_MODELS = select(*(models.c[name] for name in Model._fields))


def add(connection: Connection, model: Model) -> None:
    """Register a model; one that is registered already is left as it is."""
    if read(connection, model.model_id) is None:
        connection.execute(insert(models), model._asdict())


def read(connection: Connection, model_id: str) -> Model | None:
    """Return a model; None: there is none of that id."""
    row = connection.execute(_MODELS.where(models.c.model_id == model_id)).one_or_none()
    return None if row is None else Model(*row)


def read_all(connection: Connection) -> list[Model]:
    """Return all models, newest first."""
    rows = connection.execute(_MODELS.order_by(models.c.created_at.desc(), models.c.model_id))
    return [Model(*row) for row in rows]


def current(connection: Connection) -> Pointers:
    """Return what is served now."""
    rows = {row.name: row for row in connection.execute(select(pointer))}
    served, canary = rows.get(SERVED), rows.get(CANARY)
    return Pointers(
        served=None if served is None else read(connection, served.model_id),
        previous=None if served is None else served.previous,
        canary=None if canary is None else read(connection, canary.model_id),
        share=0.0 if canary is None else canary.share,
        changed_at=max((row.changed_at for row in rows.values()), default=0.0),
    )


def report(connection: Connection, model_id: str, measured: Mapping[str, Any], *, refused: bool) -> None:
    """Note what the gate measured of a model, and whether it refused it.

    Raises:
        RegistryError: there is no such model, or it is to be refused while it serves.
    """
    hold(connection, Lock.REGISTRY)
    model = _known(connection, model_id)
    if refused and model.status in (SERVED, CANARY):
        raise RegistryError("this model serves; roll back first")
    status = "refused" if refused else model.status
    statement = update(models).where(models.c.model_id == model_id)
    connection.execute(statement.values(report=dict(measured), status=status))


def promote(connection: Connection, model_id: str, now: float) -> Model:
    """Serve a model to everyone; a canary, this one or another, ends.

    Raises:
        RegistryError: there is no such model, or it is served already.
    """
    hold(connection, Lock.REGISTRY)
    _known(connection, model_id)
    before = current(connection)
    if before.served is not None and before.served.model_id == model_id:
        raise RegistryError("this model is served already")
    _end_canary(connection, before)
    previous = None if before.served is None else before.served.model_id
    _point(connection, SERVED, model_id, previous, 1.0, now)
    if previous is not None:
        _set_status(connection, previous, "retired")
    _set_status(connection, model_id, SERVED)
    return _known(connection, model_id)


def start_canary(connection: Connection, model_id: str, share: float, now: float) -> Model:
    """Serve a model to a part of the people, `0 < share < 1`; a canary before it ends.

    Raises:
        RegistryError: there is no such model, it is served already, nothing is served, or `share` is out of range.
    """
    if not 0 < share < 1:
        raise RegistryError(f"share: expected a number between 0 and 1, got {share}; promote the model for all")
    hold(connection, Lock.REGISTRY)
    _known(connection, model_id)
    before = current(connection)
    if before.served is None:
        raise RegistryError("no model is served, so none can be tried beside it; promote this one")
    if before.served.model_id == model_id:
        raise RegistryError("this model is served already")
    _end_canary(connection, before)
    _point(connection, CANARY, model_id, None, share, now)
    _set_status(connection, model_id, CANARY)
    return _known(connection, model_id)


def rollback(connection: Connection, now: float) -> Model:
    """End the canary if there is one, else serve the previous model again; return the model that serves everyone.

    The model rolled back from is not kept as the previous one: a second rollback has nothing to go back to.

    Raises:
        RegistryError: there is neither a canary nor a previous model.
    """
    hold(connection, Lock.REGISTRY)
    before = current(connection)
    if before.served is None or (before.canary is None and before.previous is None):
        raise RegistryError("there is no canary to end and no previous model to go back to")
    if before.canary is not None:
        _end_canary(connection, before)
        _point(connection, SERVED, before.served.model_id, before.previous, 1.0, now)
        return before.served
    assert before.previous is not None
    _point(connection, SERVED, before.previous, None, 1.0, now)
    _set_status(connection, before.served.model_id, "retired")
    _set_status(connection, before.previous, SERVED)
    return _known(connection, before.previous)


def remove(connection: Connection, model_id: str) -> None:
    """Take a model out of the registry, so that its folder can go.

    Raises:
        RegistryError: there is no such model, it serves, or a rollback would return to it.
    """
    hold(connection, Lock.REGISTRY)
    _known(connection, model_id)
    now = current(connection)
    named = {model.model_id for model in (now.served, now.canary) if model is not None} | {now.previous}
    if model_id in named:
        raise RegistryError("this model serves, or is the one that a rollback returns to")
    connection.execute(delete(models).where(models.c.model_id == model_id))


def _known(connection: Connection, model_id: str) -> Model:
    model = read(connection, model_id)
    if model is None:
        raise RegistryError("there is no such model")
    return model


def _end_canary(connection: Connection, before: Pointers) -> None:
    if before.canary is not None:
        connection.execute(delete(pointer).where(pointer.c.name == CANARY))
        _set_status(connection, before.canary.model_id, "retired")


def _point(connection: Connection, name: str, model_id: str, previous: str | None, share: float, now: float) -> None:
    row = {"name": name, "model_id": model_id, "previous": previous, "share": share, "changed_at": now}
    upsert(connection, pointer, [row])


def _set_status(connection: Connection, model_id: str, status: str) -> None:
    connection.execute(update(models).where(models.c.model_id == model_id).values(status=status))
