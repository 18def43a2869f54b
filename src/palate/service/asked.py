"""What was asked for with a list, as the log keeps it: only what differs from a plain list, in the words of the API.

How a list explored is not kept: its propensities say what matters of that. Of a list for a session nothing is kept, as
nothing of a session is stored but the list. What is long is not kept either: one request may ask for a thousand lists,
and the log would hold its filter a thousand times.
"""

from collections.abc import Iterator
from itertools import accumulate, chain
from typing import Any, Final

from palate.service.contract import Condition, Filter, ListRequest
from palate.store.recommendations import ShownList

MOST: Final = 4_096
"""Characters of a filter and of excluded ids that are kept; of more it is noted that there was more."""
_TOO_LONG: Final = "too_long"
_PLAIN: Final = ListRequest()
_SINGLE: Final = ("k", "diversity", "include_seen")


def asked_of(request: ListRequest) -> dict[str, Any] | None:
    """What the log keeps of a request; None: nothing."""
    if request.user_id is None:
        return None
    if not _fits(request):
        return {_TOO_LONG: True}
    asked: dict[str, Any] = {
        name: value for name in _SINGLE if (value := getattr(request, name)) != getattr(_PLAIN, name)
    }
    if request.exclude:
        asked["exclude"] = list(request.exclude)
    if request.filter is not None:
        asked["filter"] = _told(request.filter)
    return asked or None


def request_of(shown: ShownList) -> ListRequest | None:
    """The request for a logged list of a person, without exploration; None: the log does not hold it."""
    asked = shown.asked
    if asked is None:  # it may be from before this was kept, and of any length
        return ListRequest(shown.user_id, k=len(shown.items), scenario=shown.scenario)
    if _TOO_LONG in asked:
        return None
    return ListRequest(
        shown.user_id,
        exclude=tuple(asked.get("exclude", ())),
        filter=_filter(asked["filter"]) if "filter" in asked else None,
        scenario=shown.scenario,
        **{name: asked[name] for name in _SINGLE if name in asked},
    )


def _fits(request: ListRequest) -> bool:
    words = chain(request.exclude, () if request.filter is None else _words(request.filter))
    return all(length <= MOST for length in accumulate(len(str(word)) + 3 for word in words))  # "…",


def _words(part: Filter | Condition) -> Iterator[object]:
    if isinstance(part, Condition):
        yield part.attribute
        yield from part.value if isinstance(part.value, tuple) else (part.value,)
    else:
        for inner in (*part.all, *part.any, *part.none):
            yield from _words(inner)


def _told(part: Filter | Condition) -> dict[str, Any]:
    if isinstance(part, Filter):
        parts = {"all": part.all, "any": part.any, "none": part.none}
        return {name: [_told(inner) for inner in inside] for name, inside in parts.items() if inside}
    told: dict[str, Any] = {"attribute": part.attribute, "op": part.op}
    if part.value is not None:
        told["value"] = list(part.value) if isinstance(part.value, tuple) else part.value
    return told


def _filter(told: dict[str, Any]) -> Filter:
    return Filter(**{name: tuple(_part(inner) for inner in inside) for name, inside in told.items()})


def _part(told: dict[str, Any]) -> Filter | Condition:
    if "attribute" not in told:
        return _filter(told)
    value = told.get("value")
    return Condition(told["attribute"], told["op"], tuple(value) if isinstance(value, list) else value)
