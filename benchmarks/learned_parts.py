"""What each part that meta-training learns is worth: the model against itself with that part at its starting value.

    python benchmarks/learned_parts.py MODEL [MODEL …]

Each model folder must come from `palate train` with `evaluation.cut`, or from `palate demo`. Judged are the people who
are first seen after the cut, whom neither training nor the choice of the best step has met: NDCG@10, the mean over the
support sizes of `evaluation.support_sizes`, with the 95 % interval of the paired difference over people.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from palate.data.splitting import temporal_split
from palate.evaluation.few_shot import Newcomers, later_items, newcomers_after, palate_models, rank
from palate.meta.evidence import layout_of
from palate.meta.head import make_head
from palate.meta.learner import Params
from palate.metrics import ndcg_at_k
from palate.recommend import Recommender
from palate.significance import paired_difference
from palate.threads import keep_to_one_thread

PARTS: Mapping[str, tuple[str, ...]] = {
    "gates": ("gates",),
    "weight of popularity": ("popularity",),
    "weights of item-item scorers": ("scorers.",),
    "prior mean, precisions and tempering of a learner that takes steps": ("prior.", "head."),
    "the learner's own": ("learner.",),
    "all of it": ("",),
}
"""What is put back together, by the beginnings of names."""


def main() -> None:
    """Judge each model with each part put back."""
    keep_to_one_thread()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    for folder in parser.parse_args().models:
        model = Recommender.load(folder)
        dataset = model.config.data.open(folder)
        split = temporal_split(dataset, model.config.evaluation.cut)
        people = newcomers_after(split, dataset.users.frame, model, model.config.evaluation)
        learned, start = judge(model, people), starting_values(model)
        table = Table(
            "learned part", "put back", "its gain", "95 % interval", title=f"{dataset.name}: {learned.mean():.4f}"
        )
        for name, beginnings in PARTS.items():
            back = {key: start[key] if key.startswith(beginnings) else value for key, value in model.params.items()}
            values = judge(replace(model, params=back), people)
            found = paired_difference(learned, values)
            table.add_row(name, f"{values.mean():.4f}", f"{found.mean:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}")
        Console(width=120).print(table)


def starting_values(model: Recommender) -> Params:
    """The head's parameters before meta-training; what is fixed stays as it is."""
    config, num_features = model.config, model.items.features.shape[1]
    num_profile, content_dim = model.profile_encoder.dim, model.item_table.content_rotation.axes.shape[1]
    dim = model.items.vectors.shape[1]
    space = model.item_table.space.vector_rotation.axes.shape[1]
    layout = layout_of(num_features - content_dim - space, content_dim, space, num_profile, config.evidence)
    assert space <= dim
    head = make_head(config.meta.learner, num_features, num_profile, config.learner, model.scorers.num_features)
    fresh = head.params(layout, model.items)
    return {name: value if name.startswith("fixed.") else fresh[name] for name, value in model.params.items()}


def judge(model: Recommender, people: Newcomers) -> np.ndarray:
    """Each person's NDCG@10, the mean over support sizes."""
    settings = model.config.evaluation
    ours, _ = palate_models(model, people)
    values = []
    for size in settings.support_sizes:
        sizes = [size] * len(people.histories)
        listed = rank(ours.score, people.histories, sizes, 10)
        values.append(ndcg_at_k(listed, later_items(people.histories, sizes, model.num_trained)))
    return np.mean(values, axis=0)


if __name__ == "__main__":
    main()
