"""A head goes on with a new fit of the item features: what it learned is kept, block by block.

The features are evidence, content and backbone side by side. Content keeps its axes; the others are turned by every
fit, and what is learned of them (precisions by falling variance) means the same in each. Only the evidence can change
its width, in a catalogue smaller than the rank asked for: directions that are new begin as in a head that was not
trained yet.
"""

from torch import Tensor

from palate.meta.learner import Params


def carry_over(trained: Params, fresh: Params, num_features: int, rank: int, fresh_rank: int) -> Params:
    """Parameters of the shapes of `fresh` with all that `trained` knows; what is fixed by the catalogue is fresh.

    Args:
        trained: a head's parameters over `num_features` features, of which the first `rank` are evidence.
        fresh: the same head's before training, over features of which the first `fresh_rank` are evidence.
        num_features: width of the trained head's features.
        rank: evidence features of the trained head.
        fresh_rank: evidence features now; all others are as many as before.
    """
    width = num_features - rank + fresh_rank
    catalogue = ("fixed.spectrum", "fixed.vector_covariance", "fixed.feature_covariance")
    carried: Params = {}
    for name, start in fresh.items():
        value = start if name in catalogue else trained[name]
        for axis in range(value.ndim):
            if value.shape != start.shape and value.shape[axis] == num_features and start.shape[axis] == width:
                value = _widen(value, start, axis, rank, fresh_rank)
        carried[name] = value
    return carried


def _widen(value: Tensor, start: Tensor, axis: int, rank: int, fresh_rank: int) -> Tensor:
    """Put the blocks of one axis where they are now; `start` has what fills a gap."""
    both = min(rank, fresh_rank)
    whole = value.new_zeros([*value.shape[:axis], start.shape[axis], *value.shape[axis + 1 :]])
    if whole.shape == start.shape:
        whole = start.clone()
    whole.narrow(axis, 0, both).copy_(value.narrow(axis, 0, both))
    rest = value.shape[axis] - rank
    whole.narrow(axis, fresh_rank, rest).copy_(value.narrow(axis, rank, rest))
    return whole
