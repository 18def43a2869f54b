"""The main job: from a data set to a recommender, or from a served one on."""

from palate.pipeline.training import train

__all__ = ["train"]
