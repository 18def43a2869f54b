"""ANIL: MAML whose inner steps move the head alone; the body stays as it is.

Raghu et al., Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML, 2020, arXiv:1909.09157.
Second order, with one meta-learned step size a step.
"""

from dataclasses import dataclass

from palate.meta.gradient import GradientConfig, gradient_learner
from palate.meta.learner import Learner, LearnerEntry
from palate.meta.model import Model
from palate.meta.objectives import Objective


@dataclass(frozen=True)
class AnilConfig(GradientConfig):
    """Few, large, learned steps: the head's problem is convex."""

    num_steps: int = 3
    step_size: float = 0.5
    learn_step_size: bool = True


def build(model: Model, objective: Objective, config: AnilConfig, num_profile: int) -> Learner:
    """Descend on the head's weight and bias."""
    return gradient_learner(model, objective, config, model.head)


ANIL = LearnerEntry(AnilConfig, build)
