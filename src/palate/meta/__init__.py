"""Meta-learning: every person is a few-shot task; a learner maps a support set to fast weights.

A learner is one file and one line here.
"""

from collections.abc import Mapping

from palate.errors import ConfigError
from palate.meta.anil import ANIL
from palate.meta.learner import Learner, LearnerEntry, make_learner
from palate.meta.ridge import RIDGE

LEARNERS: Mapping[str, LearnerEntry] = {
    "ridge": RIDGE,
    "anil": ANIL,
}


def find_learner(name: str) -> LearnerEntry:
    """Look a learner up in the table; ConfigError where it is not there."""
    if name not in LEARNERS:
        raise ConfigError(f"meta.learner is {name!r}; choose one of: {', '.join(LEARNERS)}")
    return LEARNERS[name]


__all__ = ["LEARNERS", "Learner", "LearnerEntry", "find_learner", "make_learner"]
