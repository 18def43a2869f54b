"""The recommender as an object: what it prints, how it is copied, and how it gets to another process."""

import copy
import io
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from palate.recommend import Recommender
from palate.recommend.retrieval import RetrievalConfig


def test_it_is_printed_in_one_line(model: Recommender) -> None:
    shown = repr(model)
    assert "\n" not in shown
    assert len(shown) < 250
    members = model.config.num_members
    for part in (
        f"<palate.Recommender {model.model_id}: 60 items ({model.num_trained} in training), 110 users",
        "trained until 2024-",
        f"learner ridge, {members} members>",
    ):
        assert part in shown
    assert len(repr([model.item_table, model._bundle, model._adaptation, model._explainer])) < 600


def test_a_state_is_printed_in_one_line(model: Recommender) -> None:
    state = model.adapt(["garden-01", "toys-02"])
    assert repr(state) == f"<palate.State of model {model.model_id}: 2 items chosen, 0 refused>"


def test_a_copy_is_the_model_itself(model: Recommender) -> None:
    assert copy.copy(model) is model
    assert copy.deepcopy({"model": model})["model"] is model


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickled_model_gives_the_same_lists(model: Recommender, protocol: int) -> None:
    some = replace(model, retrieval=RetrievalConfig(dense_until=123))
    again = pickle.loads(pickle.dumps(some, protocol))
    assert again is not some
    assert again.model_id == model.model_id
    assert again.retrieval == some.retrieval
    assert list(again.users) == list(model.users)
    for events in ([], ["garden-01", "toys-02"], "user-003"):
        assert again.recommend(events, 60) == model.recommend(events, 60)


def test_a_pickle_holds_the_files_and_no_code(model: Recommender) -> None:
    class Names(pickle.Unpickler):
        asked: set[str]

        def find_class(self, module: str, name: str) -> object:
            self.asked.add(f"{module}.{name}")
            return super().find_class(module, name)

    reader = Names(io.BytesIO(pickle.dumps(model)))
    reader.asked = set()
    reader.load()
    home = "palate.recommend"
    assert reader.asked == {f"{home}.recommender._unpickled", f"{home}.retrieval.settings.RetrievalConfig"}


def test_another_process_unpickles_it(model: Recommender) -> None:
    script = (
        "import pickle, sys, torch; torch.set_num_threads(1)\n"
        "model = pickle.load(sys.stdin.buffer)\n"
        "print([line.item_id for line in model.recommend(['garden-01'], 5)])"
    )
    printed = subprocess.run([sys.executable, "-c", script], input=pickle.dumps(model), capture_output=True, check=True)
    assert printed.stdout.decode().strip() == str([line.item_id for line in model.recommend(["garden-01"], 5)])


def test_a_state_can_be_pickled(model: Recommender) -> None:
    state = model.adapt(["garden-01", "toys-02"])
    again = pickle.loads(pickle.dumps(state))
    assert model.recommend(again) == model.recommend(state)
    assert model.recommend(copy.deepcopy(state)) == model.recommend(state)
    assert np.array_equal(again.history.items, state.history.items)
