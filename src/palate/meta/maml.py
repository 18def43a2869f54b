"""MAML: an initialisation from which a few gradient steps on a task's support do well on its query.

Finn, Abbeel & Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, 2017, arXiv:1703.03400.
`MAML` differentiates through the inner steps, `FOMAML` (its §5.2) takes the inner gradients as constants.
"""

from palate.meta.gradient import GradientConfig, gradient_learner
from palate.meta.learner import Learner, LearnerEntry
from palate.meta.model import Model
from palate.meta.objectives import Objective


def build(model: Model, objective: Objective, config: GradientConfig, num_profile: int) -> Learner:
    """Second order, on every weight."""
    return gradient_learner(model, objective, config, tuple(model.weights))


def build_first_order(model: Model, objective: Objective, config: GradientConfig, num_profile: int) -> Learner:
    """First order, on every weight."""
    return gradient_learner(model, objective, config, tuple(model.weights), first_order=True)


MAML = LearnerEntry(GradientConfig, build)
FOMAML = LearnerEntry(GradientConfig, build_first_order)
