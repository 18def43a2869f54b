"""MeLU: gradient steps on the decision layers; the embeddings below them stay as they are.

Lee et al., MeLU: Meta-Learned User Preference Estimator for Cold-Start Recommendation, 2019, arXiv:1908.00413. The
decision layers are the model's own cut: give `from_module` their names.
"""

from dataclasses import dataclass

from palate.meta.gradient import GradientConfig, gradient_learner
from palate.meta.learner import Learner, LearnerEntry
from palate.meta.model import Model
from palate.meta.objectives import Objective


@dataclass(frozen=True)
class MeluConfig(GradientConfig):
    """One local step by default, as in the paper."""

    num_steps: int = 1


def build(model: Model, objective: Objective, config: MeluConfig, num_profile: int) -> Learner:
    """Second order, on the decision layers."""
    return gradient_learner(model, objective, config, model.decision)


MELU = LearnerEntry(MeluConfig, build)
