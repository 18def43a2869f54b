"""The recommender: one object behind the command line, the evaluation and the service."""

from palate.recommend.predictions import RatingPrediction
from palate.recommend.recommender import Recommendation, Recommender
from palate.recommend.state import State

__all__ = ["RatingPrediction", "Recommendation", "Recommender", "State"]
