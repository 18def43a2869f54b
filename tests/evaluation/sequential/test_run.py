"""A run from files to page: what a model is given, what is kept of it, how it is compared and shown."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from palate.data.event_log import EventLog
from palate.errors import ConfigError, DataError, NumericalError
from palate.evaluation.sequential import run, table
from palate.evaluation.sequential.data import open_sequences
from palate.evaluation.sequential.judged import fingerprint, read_judged, write_judged
from palate.evaluation.sequential.leave_one_out import Held, leave_one_out
from palate.evaluation.sequential.present import sequential_page, sequential_table
from palate.evaluation.sequential.run import run_sequential
from palate.evaluation.sequential.table import MODELS, Bench, Fitted, ModelEntry

NUM_ITEMS = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """People who walk along a ring of items."""
    rng = np.random.default_rng(0)
    amazon = tmp_path / "data" / "amazon-2014"
    amazon.mkdir(parents=True)
    walks = (rng.integers(0, NUM_ITEMS, 80)[:, None] + np.arange(6)) % NUM_ITEMS + 1
    (amazon / "Toys_and_Games.txt").write_text(
        "\n".join(" ".join(map(str, [user, *walk])) for user, walk in enumerate(walks))
    )
    (amazon / "Toys_and_Games_item2attributes.json").write_text("{}")
    return tmp_path / "data"


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Bench]]:
    """Adds a model that knows the ring and slips by seed, and keeps what it was given."""
    given: list[Bench] = []

    def fit(bench: Bench) -> Fitted:
        given.append(bench)
        noise = np.random.default_rng(bench.seed)

        def scorer(inputs: EventLog) -> np.ndarray:
            scores = noise.random((inputs.num_users, NUM_ITEMS)).astype(np.float32)
            latest = inputs.items[inputs.offsets[1:] - 1]
            scores[np.arange(inputs.num_users), (latest + 1) % NUM_ITEMS] += 0.95
            return scores

        return Fitted(scorer, {"ring": True})

    entry = ModelEntry("palate", fit, by_chance=True)
    monkeypatch.setattr(table, "MODELS", {**MODELS, "ring walker": entry})
    monkeypatch.setattr(run, "MODELS", {**MODELS, "ring walker": entry})
    return given


def test_a_model_is_given_nothing_of_the_test(folder: Path, tmp_path: Path, benches: list[Bench]) -> None:
    run_sequential("toys", folder, tmp_path / "out", models=["ring walker"], num_seeds=2)
    data = open_sequences("toys", folder)
    split = leave_one_out(data.log)
    assert [bench.seed for bench in benches] == [0, 1]
    for bench in benches:
        assert bench.data.log.items.tolist() == split.training.items.tolist()
        assert bench.validation.inputs.items.tolist() == split.validation.inputs.items.tolist()


def test_figures_comparisons_and_pages(folder: Path, tmp_path: Path, benches: list[Bench]) -> None:
    said: list[str] = []
    names = ["popularity", "Markov chain", "ring walker"]
    results = run_sequential("toys", folder, tmp_path / "out", models=names, num_seeds=3, say=said.append)
    assert json.loads(json.dumps(results)) == results
    assert [row["name"] for row in results["methods"]] == names
    popularity, chain, walker = results["methods"]
    assert (popularity["seeds"], walker["seeds"]) == ([0], [0, 1, 2])
    assert chain["metrics"]["removed"]["hr@10"]["mean"] > 0.9
    for part in ("removed", "kept"):
        cell = walker["metrics"][part]["ndcg@10"]
        assert cell["mean"] == pytest.approx(np.mean(cell["by_seed"]), abs=2e-5)
        assert cell["low"] < cell["mean"] < cell["high"]
        assert len(set(cell["by_seed"])) == 3
    # What was seen can only stand in the way.
    assert popularity["metrics"]["removed"]["hr@20"]["mean"] >= popularity["metrics"]["kept"]["hr@20"]["mean"]
    (found,) = results["comparisons"]
    assert (found["model"], found["baseline"]) == ("ring walker", "Markov chain")
    means = [row["metrics"]["removed"]["ndcg@10"]["mean"] for row in (walker, chain)]
    assert found["mean"] == pytest.approx(means[0] - means[1], abs=2e-5)
    assert said[-1] == "toys: ring walker, seed 2"

    page = sequential_page([results])
    assert "| ring walker | " in page
    assert "| TIGER |  |  | 0.071 | 0.043 |" in page
    assert "ring walker against the best baseline (Markov chain), NDCG@10: " in page
    for block in page.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1
    console = Console(width=160, record=True, quiet=True)
    console.print(sequential_table(results))
    assert "Amazon 2014 Toys and Games: 80 people, 30 items" in sequential_table(results).title


def test_figures_that_read_the_targets_time_have_columns_of_their_own(folder: Path, tmp_path: Path) -> None:
    results = run_sequential("toys", folder, tmp_path / "out", models=["popularity"])
    published = {"plain": (0.1, 0.05, False), "timed": (0.3, 0.2, True)}
    rows = {name: dict(zip(("hr", "ndcg", "target_time"), row, strict=True)) for name, row in published.items()}
    page = sequential_page([{**results, "published": rows}])
    assert "| plain |  |  | 0.100 | 0.050 |  |  |" in page
    assert "| timed |  |  |  |  | 0.300 | 0.200 |" in page
    assert "target's time given |" in page
    assert "target's time given |" not in sequential_page([results])


def test_earlier_runs_stand_in_the_same_table(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="models: none is named"):
        run_sequential("toys", folder, out, models=[])
    first = run_sequential("toys", folder, out, models=["popularity"])
    both = run_sequential("toys", folder, out, models=["Markov chain"])
    assert [row["name"] for row in both["methods"]] == ["popularity", "Markov chain"]
    assert both["methods"][0] == first["methods"][0]
    assert run_sequential("toys", folder, out, models=[]) == both
    (path,) = (out / "toys").glob("popularity-0.json")
    assert path.exists()


def test_what_was_judged_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sequential("toys", folder, out, models=["Markov chain"])
    (judged,) = read_judged(out, "toys")
    assert read_judged(out, "beauty") == []
    write_judged(replace(judged, seed=1), out)
    again = read_judged(out, "toys")
    assert [row.seed for row in again] == [0, 1]
    assert again[1].ranks.removed.tolist() == judged.ranks.removed.tolist()
    assert again[1].ranks.kept.tolist() == judged.ranks.kept.tolist()
    path = write_judged(replace(judged, seed=2, test="0" * 16), out)
    with pytest.raises(DataError, match="judged on other test items"):
        read_judged(out, "toys")
    path.write_text("{}")
    with pytest.raises(DataError, match="is no judged model"):
        read_judged(out, "toys")


def test_what_was_judged_on_other_data_is_refused_before_a_model_is_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run_sequential("toys", folder, out, models=["popularity"])
    (judged,) = read_judged(out, "toys")
    write_judged(replace(judged, test="0" * 16), out)
    with monkeypatch.context() as patch:
        patch.setattr("palate.evaluation.sequential.run._judge_job", lambda *_: pytest.fail("a model is trained"))
        with pytest.raises(DataError, match="was judged on other data"):
            run_sequential("toys", folder, out, models=["Markov chain"])
    run_sequential("toys", folder, out, models=["popularity"])  # takes the place of the other


def test_the_fingerprint_changes_with_every_part(folder: Path) -> None:
    held = leave_one_out(open_sequences("toys", folder).log).test
    other = held.targets.copy()
    other[0] += 1
    assert fingerprint(held) == fingerprint(Held(*held))
    assert fingerprint(held) != fingerprint(held._replace(targets=other))
    assert fingerprint(held) != fingerprint(held._replace(inputs=held.inputs.cut(1)))


def test_refusals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="choose from: popularity; Markov chain"):
        run_sequential("toys", folder, out, models=["oracle"])
    with pytest.raises(ConfigError, match="number of seeds is 0"):
        run_sequential("toys", folder, out, num_seeds=0)

    def fit(bench: Bench) -> Fitted:
        return Fitted(lambda inputs: np.full((inputs.num_users, NUM_ITEMS), np.nan, np.float32), {})

    monkeypatch.setattr(table, "MODELS", {"broken": ModelEntry("palate", fit, by_chance=False)})
    with pytest.raises(NumericalError, match=r"broken on toys: .* holds NaN"):
        run_sequential("toys", folder, out, models=["broken"])


def test_variants_of_a_fit_are_judged_beside_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(inputs: EventLog) -> np.ndarray:
        return np.zeros((inputs.num_users, NUM_ITEMS), np.float32)

    entry = ModelEntry("palate", lambda bench: Fitted(constant, {"a": 1}, {"turned": constant}), by_chance=False)
    monkeypatch.setattr(table, "MODELS", {"flat": entry})
    monkeypatch.setattr(run, "MODELS", {"flat": entry})
    found = run_sequential("toys", folder, tmp_path / "out", models=["flat"])
    assert [row["name"] for row in found["methods"]] == ["flat", "flat, turned"]
    assert {row["kind"] for row in found["methods"]} == {"palate"}
