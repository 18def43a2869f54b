"""Meta-learning: every person is a few-shot task; a learner maps a support set to fast weights.

Usable on its own, on anyone's `nn.Module`: `from_module` cuts it, `build` makes a learner of it, `fit` is the outer
loop.
"""

from palate.meta.learner import Events, Fast, Learner, Params, Tasks, adapt, make_events, make_tasks
from palate.meta.model import Model, from_module, linear_model, with_offset
from palate.meta.objectives import OBJECTIVES
from palate.meta.outer import FitConfig, FitResult, fit, vary_support
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
    "adapt",
    "build",
    "find_learner",
    "fit",
    "from_module",
    "linear_model",
    "load_params",
    "make_events",
    "make_tasks",
    "read_settings",
    "save_params",
    "vary_support",
    "with_offset",
]
