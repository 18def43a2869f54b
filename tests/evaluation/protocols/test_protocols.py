"""Protocols on a small world of planted tastes: what is run, judged, refused and shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from palate.baselines import RATING_BASELINES
from palate.cli import app
from palate.errors import ConfigError, DataError, NumericalError
from palate.evaluation.protocols import learners, run, table
from palate.evaluation.protocols.base import Bench, Draw, Features, Predict, Predictions, ProtocolEntry, Reach, Setting
from palate.evaluation.protocols.content import ContentSpec
from palate.evaluation.protocols.present import protocol_page, protocol_tables, write_protocol_report
from palate.evaluation.protocols.run import run_protocol
from palate.evaluation.protocols.scores import absolute_error, ndcg
from palate.meta import FitConfig
from palate.ratings.tasks import Ratings, Task, check_tasks

NUM_USERS, NUM_TEST, NUM_ITEMS, DIM = 60, 12, 40, 3


class World:
    """Ratings 1–5 from item vectors and personal weights."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, DIM))
        self.taste = rng.normal(size=(NUM_USERS + NUM_TEST, DIM))
        latent = 3 + self.taste @ self.vectors.T + 0.2 * rng.normal(size=(len(self.taste), NUM_ITEMS))
        self.ratings = np.clip(np.round(latent), 1, 5)

    def draw(self, seed: int) -> Draw:
        users, items = (grid.ravel() for grid in np.mgrid[:NUM_USERS, :NUM_ITEMS])
        rng = np.random.default_rng(seed)
        tasks = []
        for user in range(NUM_USERS, NUM_USERS + NUM_TEST):
            order, values = rng.permutation(NUM_ITEMS), self.ratings[user]
            tasks.append(Task(user, order[:15], values[order[:15]], order[15:], values[order[15:]]))
        train = Ratings(users, items, self.ratings[:NUM_USERS].ravel())
        return Draw(seed, train, None, {"user cold": tuple(tasks)})


def open_world(folder: Path, num_draws: int) -> tuple[Setting, list[Draw]]:
    items = pl.DataFrame(
        {"item_id": range(NUM_ITEMS), "kind": ["a|b", "b"] * (NUM_ITEMS // 2), "year": [1990, 2001] * 20}
    )
    setting = Setting(
        np.zeros((NUM_USERS + NUM_TEST, 0)), items, ContentSpec({"kind": "|"}, groups="kind", time="year")
    )
    return setting, [World(seed).draw(seed) for seed in range(num_draws)]


def planted_features(setting: Setting, draw: Draw) -> Features:
    fold = np.zeros(NUM_USERS + NUM_TEST, np.int64)
    return Features(World(0).vectors[None], np.full((1, NUM_ITEMS), 3.0), fold)


def solver(bench: Bench) -> Predict:
    """Least squares on the planted vectors."""
    vectors = bench.features.vectors[0]

    def predict(part: str, tasks: Any) -> list[Predictions]:
        found = []
        for task in tasks:
            assert np.isnan(task.query_values).all()  # a method never sees what it is asked
            rows = vectors[task.support_items]
            taste = np.linalg.solve(rows.T @ rows + 0.1 * np.eye(DIM), rows.T @ (task.support_values - 3))
            rating = 3 + vectors[task.query_items] @ taste
            found.append(Predictions(rating, rating))
        return found

    return predict


def contrary(bench: Bench) -> Predict:
    good = solver(bench)
    return lambda part, tasks: [Predictions(6 - p.rating, -p.score) for p in good(part, tasks)]


def entry(**changes: Any) -> ProtocolEntry:
    return ProtocolEntry(
        title="A world of planted tastes",
        about="Sixty people to learn from, twelve to judge.",
        open=open_world,
        metrics={"mae": absolute_error, "ndcg@3": ndcg(3, "exponential")},
        lower_is_better=frozenset({"mae"}),
        main="ndcg@3",
        known={"user cold": {"mae": Reach(0.7, 0.5)}},
        features=planted_features,
        palate=solver,
        objective="ratings",
        draws=2,
        curve_sizes=(0, 3, 15),
    )._replace(**changes)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    protocols = {
        "planted": entry(),
        "broken": entry(palate=contrary),
    }
    monkeypatch.setattr(table, "PROTOCOLS", protocols)
    monkeypatch.setattr("palate.cli.benchmarks.PROTOCOLS", protocols)
    monkeypatch.setattr(learners, "_FIT", FitConfig(num_steps=60, batch_size=32, learning_rate=0.02, validate_every=20))


@pytest.fixture
def results(world: None) -> dict[str, Any]:
    return run_protocol("planted", Path(), learners=["ridge", "clusters"])


def means(results: dict[str, Any], metric: str) -> dict[str, float]:
    rows = results["parts"]["user cold"]["methods"]
    return {row["name"]: row["metrics"][metric]["mean"] for row in rows}


def test_every_method_is_judged_on_every_draw(results: dict[str, Any]) -> None:
    figures = results["parts"]["user cold"]
    assert (figures["num_tasks"], figures["num_people"], figures["num_draws"]) == (2 * NUM_TEST, NUM_TEST, 2)
    assert [row["name"] for row in figures["methods"]] == [
        *RATING_BASELINES,
        "item mean + user bias, rounded",
        "ALS + per-user ridge, rounded",
        "ridge",
        "Palate",
    ]
    for row in figures["methods"]:
        for cell in row["metrics"].values():
            assert cell["low"] <= cell["mean"] <= cell["high"]
            assert len(cell["by_draw"]) == 2
            assert cell["mean"] == pytest.approx(np.mean(cell["by_draw"]), abs=1e-4)
    assert results["seeds"] == [0, 1]
    assert json.loads(json.dumps(results)) == results


def test_what_reads_the_support_is_above_the_baselines(results: dict[str, Any]) -> None:
    quality, error = means(results, "ndcg@3"), means(results, "mae")
    for name in ("ridge", "Palate", "ALS + per-user ridge"):
        assert quality[name] > quality["item mean + user bias"] + 0.1
        assert error[name] < error["item mean + user bias"] - 0.2
    assert quality["constant"] == pytest.approx(quality["random"], abs=0.15)
    assert error["ALS + per-user ridge, rounded"] < error["ALS + per-user ridge"]  # whole stars are what people give
    found = results["parts"]["user cold"]["comparisons"]["ndcg@3"]
    assert found["baseline"].startswith("ALS")
    assert found["low"] <= found["difference"] <= found["high"]


def test_curves_rise_with_the_support(results: dict[str, Any]) -> None:
    curves = results["curves"]
    assert curves["sizes"] == [0, 3, 15]
    for name in ("ridge", "Palate"):
        first, *_, last = [point["mean"] for point in curves["methods"][name]]
        assert last > first + 0.1
        assert last == pytest.approx(means(results, "ndcg@3")[name], abs=1e-4)
    assert not set(curves["methods"]) & set(RATING_BASELINES)


def test_a_learner_that_the_data_cannot_feed_is_named_with_its_reason(results: dict[str, Any]) -> None:
    assert "1 different profiles" in results["left_out"]["clusters"]


def test_same_seeds_same_figures(results: dict[str, Any], world: None) -> None:
    again = run_protocol("planted", Path(), learners=["ridge", "clusters"])
    for part in ("parts", "curves"):
        assert again[part] == results[part]


def test_a_result_below_the_constant_fails_the_run_and_is_named(world: None) -> None:
    with pytest.raises(NumericalError, match=r"Palate: ndcg@3 on user cold is .* worse than a constant"):
        run_protocol("broken", Path(), learners=[])


def test_a_nan_fails_the_run_and_is_named(monkeypatch: pytest.MonkeyPatch, world: None) -> None:
    def broken(bench: Bench) -> Predict:
        return lambda part, tasks: [Predictions(np.full(25, np.nan), np.full(25, np.nan)) for _ in tasks]

    monkeypatch.setattr(table, "PROTOCOLS", {"nan": entry(palate=broken)})
    with pytest.raises(NumericalError, match=r"Palate: user cold: .*NaN"):
        run_protocol("nan", Path(), learners=[])


def test_the_page_the_tables_and_the_report_show_every_figure(results: dict[str, Any], tmp_path: Path) -> None:
    page = protocol_page([results])
    write_protocol_report(results, tmp_path / "planted.html")
    html = (tmp_path / "planted.html").read_text(encoding="utf-8")
    for name, mean in means(results, "ndcg@3").items():
        assert f"{mean:.4f}" in page
        assert name in page
        assert name in html
        assert f"{mean:.4f}" in html
    assert "to reach" in page
    assert "0.5000" in page
    assert "MAE ↓" in page
    assert "seeds 0, 1" in page
    assert "Left out: clusters" in page
    assert "best baseline (ALS" in html
    assert "no baseline" not in html.split("<section")[0]
    assert html.count("<svg") >= 2  # the curves, wide and narrow
    (shown,) = protocol_tables(results)
    assert shown.row_count == len(results["parts"]["user cold"]["methods"]) + 2


def test_the_command_writes_reports_and_the_page(world: None, tmp_path: Path) -> None:
    options = ["--protocol", "planted", "--learners", "ridge", "--draws", "1", "--out", str(tmp_path / "out")]
    page = tmp_path / "docs" / "page.md"
    outcome = CliRunner().invoke(app, ["bench", "meta", *options, "--page", str(page), "--json"])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)[0]["protocol"] == "planted"
    assert (tmp_path / "out" / "planted.html").exists()
    assert json.loads((tmp_path / "out" / "planted.json").read_text())["seeds"] == [0]
    assert "planted tastes" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--protocol", "meluu"], "protocol is 'meluu'; choose one of: melu, tanp"),
        (["--protocol", "melu", "--data", "nowhere"], "nowhere/movielens-1m/items.parquet: not readable"),
        (["--protocol", "lastfm", "--data", "nowhere"], "nowhere/lastfm-20/tasks.json: not readable"),
        (["--protocol", "metarec", "--data", "nowhere"], "nowhere/movielens-100k/items.parquet: not readable"),
        (["--protocol", "melu", "--learners", "mamml"], "learner is 'mamml'; choose from: ridge"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    options: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, ["bench", "meta", *options])
    assert outcome.exit_code == 2
    assert match in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_redrawn_tasks_never_ask_for_what_they_show() -> None:
    setting, (draw,) = open_world(Path(), 1)
    bench = Bench(setting, draw, planted_features, lambda line: None)
    tasks = learners._training_tasks(bench, list(range(20)), learners._Unit(bench, "ratings"))
    sizes = set()
    for seed in range(5):
        drawn = learners.redraw(tasks, np.random.default_rng(seed))
        support, query = drawn.support.weight > 0, drawn.query.weight > 0
        assert not (support & query).any()
        assert (support | query).sum() > 0
        assert (query.sum(1) >= 1).all()
        assert not ((support | query) & (tasks.support.weight == 0)).any()
        sizes |= set(support.sum(1).tolist())
    assert len(sizes) > 5


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="number of draws is 0"):
        run.run_protocol("melu", Path(), num_draws=0)
    with pytest.raises(DataError, match="few-shot tasks: there are none"):
        check_tasks([], 1, 1)
