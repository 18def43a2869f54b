"""The table of learners: a learner is one file and one line here."""

import difflib
import math
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from palate.errors import ConfigError
from palate.meta.anil import ANIL
from palate.meta.clusters import CLUSTERS
from palate.meta.laplace import LAPLACE
from palate.meta.learner import Learner, LearnerEntry, with_event_kinds
from palate.meta.maml import FOMAML, MAML
from palate.meta.mamo import MAMO
from palate.meta.melu import MELU
from palate.meta.meta_sgd import META_SGD
from palate.meta.model import Model
from palate.meta.neural_process import NEURAL_PROCESS
from palate.meta.objectives import find_objective
from palate.meta.reptile import REPTILE
from palate.meta.ridge import RIDGE
from palate.meta.updater import UPDATER

LEARNERS: Mapping[str, LearnerEntry] = {
    "ridge": RIDGE,
    "laplace": LAPLACE,
    "maml": MAML,
    "fomaml": FOMAML,
    "reptile": REPTILE,
    "anil": ANIL,
    "meta-sgd": META_SGD,
    "melu": MELU,
    "mamo": MAMO,
    "neural-process": NEURAL_PROCESS,
    "updater": UPDATER,
    "clusters": CLUSTERS,
}


def find_learner(name: str) -> LearnerEntry:
    """Look a learner up in the table; ConfigError where it is not there."""
    if name not in LEARNERS:
        raise ConfigError(f"meta.learner is {name!r}; choose one of: {', '.join(LEARNERS)}")
    return LEARNERS[name]


def build(
    name: str, model: Model, objective: str = "ratings", *, num_profile: int = 0, num_kinds: int = 1, **settings: Any
) -> Learner:
    """Build a learner of the table for a model.

    Args:
        name: a line of `LEARNERS`.
        model: what is adapted; `from_module` makes one of any `nn.Module`.
        objective: a line of `OBJECTIVES`: ratings, clicks or ranking.
        num_profile: length of a task's profile.
        num_kinds: number of event types; with several, how much each counts is learned.
        settings: fields of the learner's config.

    Raises:
        ConfigError: an unknown learner, objective or setting, or a setting out of range.
    """
    if num_profile < 0 or num_kinds < 1:
        raise ConfigError(f"num_profile is {num_profile} and num_kinds {num_kinds}; expected at least 0 and 1")
    config = read_settings(name, settings)
    learner = find_learner(name).build(model, find_objective(objective), config, num_profile)
    return with_event_kinds(learner._replace(num_profile=num_profile), num_kinds)


def read_settings(name: str, settings: Mapping[str, Any]) -> Any:
    """The config of a learner with these settings.

    Raises:
        ConfigError: an unknown learner or setting, a value of the wrong type, or one out of range.
    """
    entry = find_learner(name)
    kinds = get_type_hints(entry.config)
    values = dict(settings)
    for setting, value in settings.items():
        if setting not in kinds:
            near = difflib.get_close_matches(setting, kinds, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(kinds)}"
            raise ConfigError(f"learner {name} has no setting {setting!r}; {hint}")
        choices = get_args(kinds[setting])
        if kinds[setting] is float and type(value) is int:
            values[setting] = float(value)
        elif choices and value not in choices:
            raise ConfigError(f"learner.{setting} is {value!r}; expected one of {', '.join(map(str, choices))}")
        elif not choices and type(value) is not kinds[setting]:
            raise ConfigError(f"learner.{setting} is {value!r}; expected {kinds[setting].__name__}")
        elif kinds[setting] is float and not math.isfinite(value):
            raise ConfigError(f"learner.{setting} is {value!r}; expected a finite number")
    return entry.config(**values)
