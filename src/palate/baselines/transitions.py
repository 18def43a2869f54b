"""A first-order Markov chain: what followed an item before follows it again."""

from palate.baselines.base import ListModel, NoSettings, count_popularity
from palate.baselines.linear import linear_model
from palate.data.event_log import EventLog
from palate.scorers.item_weights import transition_weights


def fit_transitions(training: EventLog, num_items: int, config: NoSettings) -> ListModel:
    """Score by how often an item came right after those of the events; with a decay of 0 after the latest alone."""
    return linear_model(transition_weights(training, num_items), count_popularity(training, num_items))
