"""Meta-learning: every person is a few-shot task; a learner maps a support set to fast weights.

Usable on its own, on anyone's `nn.Module`: `from_module` cuts it, `build` makes a learner of it, `fit` is the outer
loop.
"""

from palate.meta.learner import Events, Fast, Learner, Params, Tasks
from palate.meta.model import Model, from_module, linear_model, with_offset
from palate.meta.objectives import OBJECTIVES
from palate.meta.outer import FitConfig, FitResult, fit
from palate.meta.storage import load_params, save_params
from palate.meta.table import LEARNERS, build, find_learner, read_settings

__all__ = [
    "LEARNERS",
    "OBJECTIVES",
    "Events",
    "Fast",
    "FitConfig",
    "FitResult",
    "Learner",
    "Model",
    "Params",
    "Tasks",
    "build",
    "find_learner",
    "fit",
    "from_module",
    "linear_model",
    "load_params",
    "read_settings",
    "save_params",
    "with_offset",
]
