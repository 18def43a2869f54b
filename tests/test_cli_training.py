"""What a training on the command line checks before it begins, what it keeps, and how it says that a model is poor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import palate
from palate.cli import app
from palate.errors import NumericalError
from palate.meta.quality import Quality
from palate.recommend import Recommender
from palate.store import Store
from tiny_settings import EVALUATION, TRAINING

SETTINGS = 'num_members = 1\n[data]\ninteractions = "events.csv"' + TRAINING


class Shop:
    """A folder with a small log and its settings."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        rng = np.random.default_rng(0)
        rows = [
            f"u{person},t{item},2024-{1 if person < 30 else 2:02}-{day + 1:02}"
            for person in range(40)
            for day, item in enumerate(rng.permutation(12)[:8])
        ]
        (folder / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))

    def train(self, *arguments: str, settings: str = SETTINGS) -> Result:
        (self.folder / "palate.toml").write_text(settings)
        command = ["train", "--config", "palate.toml", "--out", "model", "--workers", "1", "--json", *arguments]
        return CliRunner().invoke(app, command)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALATE_HOME", str(tmp_path / "home"))
    return Shop(tmp_path)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing costly may begin."""

    def begun(*_: Any, **__: Any) -> None:
        pytest.fail("a costly step has begun")

    monkeypatch.setattr("palate.pipeline.training.encode", begun)
    monkeypatch.setattr("palate.pipeline.members.run_jobs", begun)


def assert_refused(result: Result, *says: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    [line] = result.stderr.strip().splitlines()
    for word in says:
        assert word in line


@pytest.mark.usefixtures("no_training")
class TestWhatIsRefusedBeforehand:
    def test_a_model_folder_that_holds_something_else(self, shop: Shop) -> None:
        (shop.folder / "model").mkdir()
        (shop.folder / "model" / "notes.txt").write_text("mine")
        assert_refused(shop.train(), "model: ", "something else")
        assert (shop.folder / "model" / "notes.txt").read_text() == "mine"

    def test_a_model_folder_that_is_a_file_or_lies_under_one(self, shop: Shop) -> None:
        (shop.folder / "model").write_text("mine")
        assert_refused(shop.train(), "model", "is a file")
        assert_refused(shop.train("--out", "model/deep"), "model", "is a file")

    @pytest.mark.parametrize("option", ["--out", "--report", "--resume"])
    def test_a_folder_that_cannot_be_written(self, shop: Shop, option: str) -> None:
        assert_refused(shop.train(option, "/proc/palate"), "/proc/palate", "cannot be written")

    def test_a_report_or_a_folder_of_checkpoints_that_is_a_file(self, shop: Shop) -> None:
        for option in ("--report", "--resume"):
            assert_refused(shop.train(option, "events.csv"), "events.csv", "is a file")

    def test_a_folder_in_the_place_of_the_report(self, shop: Shop) -> None:
        (shop.folder / "out" / "report.html").mkdir(parents=True)
        assert_refused(shop.train("--report", "out"), "report.html", "is a folder")

    def test_a_home_that_is_a_file(self, shop: Shop) -> None:
        shop.home.write_text("")
        assert_refused(shop.train(), "PALATE_HOME", "is a file")

    def test_nobody_to_judge(self, shop: Shop) -> None:
        settings = SETTINGS + EVALUATION.replace("min_items = 6", "min_items = 25")
        assert_refused(
            shop.train(settings=settings), "no cold user has 25 distinct items", "the most is 8", "min_items"
        )

    @pytest.mark.parametrize("evaluation", ["", EVALUATION])
    def test_nobody_to_play_the_newcomer(self, shop: Shop, evaluation: str) -> None:
        settings = SETTINGS.replace("min_items = 6", "min_items = 9") + evaluation
        assert_refused(shop.train(settings=settings), "can play the newcomer", "meta.min_items")

    @pytest.mark.parametrize("evaluation", ["", EVALUATION])
    def test_nobody_long_enough_for_an_episode(self, shop: Shop, evaluation: str) -> None:
        settings = SETTINGS.replace("min_query = 2", "min_query = 9") + evaluation
        assert_refused(shop.train(settings=settings), "distinct items; lower meta.min_query")

    def test_support_sizes_that_the_backbone_does_not_read(self, shop: Shop) -> None:
        settings = SETTINGS.replace("support_sizes = [0, 2]", "support_sizes = [6, 7]").replace(
            "num_layers = 1", "num_layers = 1\nmax_events = 4"
        )
        assert_refused(shop.train(settings=settings), "meta.support_sizes is (6, 7)", "model.max_events")

    def test_nothing_is_left_behind(self, shop: Shop) -> None:
        shop.train(settings=SETTINGS + EVALUATION.replace("min_items = 6", "min_items = 25"))
        assert {path.name for path in shop.folder.iterdir()} == {"events.csv", "palate.toml"}


def test_the_model_is_saved_before_it_is_judged(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NumericalError("scores: a score is NaN")

    monkeypatch.setattr(palate, "evaluate", fail)
    assert_refused(shop.train(settings=SETTINGS + EVALUATION), "a score is NaN", "is saved in model")
    assert Recommender.load(shop.folder / "model").recommend(["t1"])


def poor(num_users: int) -> Quality:
    return Quality(num_users, 0.01, 0.3, -0.4, -0.2)


@pytest.mark.parametrize("evaluation", ["", EVALUATION])
def test_a_model_shown_to_be_worse_than_chance_is_kept_and_gives_exit_code_2(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, evaluation: str
) -> None:
    monkeypatch.setattr("palate.meta.training.compare_with_chance", lambda *_: poor(40))
    result = shop.train("--report", "out", settings=SETTINGS + evaluation)
    assert result.exit_code == 2
    [line] = result.stderr.strip().splitlines()
    for said in ("model: the model is saved", "worse than lists in random order", "-0.4000 to -0.2000"):
        assert said in line
    assert json.loads(result.stdout)["model"]["quality"]["verdict"] == "worse"
    model = Recommender.load(shop.folder / "model")
    assert model.training["quality"]["verdict"] == "worse"  # type: ignore[index]
    assert not (shop.home / "current").exists()
    if evaluation:
        assert "worse than lists in random order" in (shop.folder / "out" / "report.html").read_text()


def test_noise_of_a_few_people_is_a_note_in_the_report_and_no_more(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    # As poor, but an interval over nine people is no evidence.
    monkeypatch.setattr("palate.meta.training.compare_with_chance", lambda *_: poor(9))
    result = shop.train("--report", "out", settings=SETTINGS + EVALUATION)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert json.loads(result.stdout)["training"]["quality"]["verdict"] == "inconclusive"
    page = (shop.folder / "out" / "report.html").read_text()
    assert "cannot be told apart from lists in random order" in page
    assert "Warning." not in page
    assert (shop.home / "current").exists()


@pytest.mark.parametrize("seed", range(3))
def test_pure_noise_trains(shop: Shop, seed: int) -> None:
    result = shop.train(settings=f"seed = {seed}\n" + SETTINGS)
    assert result.exit_code == 0, result.output
    assert Recommender.load(shop.folder / "model").training["quality"]["verdict"] == "inconclusive"  # type: ignore[index]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("evaluate", "--out", "a-file"), "a-file"),
        (("events", "events.csv", "--out", "a-file"), "a-file"),
        (("pretrain", "events", "--out", "a-file"), "a-file"),
        (("bench", "meta", "--out", "a-file"), "a-file"),
        (("bench", "meta", "--page", "a-folder"), "a-folder"),
        (("bench", "sequence", "--out", "a-file"), "a-file"),
        (("bench", "sequence", "--page", "a-folder"), "a-folder"),
        (("bench", "cold", "--out", "a-file"), "a-file"),
    ],
)
def test_every_command_probes_what_it_will_write(shop: Shop, command: tuple[str, ...], says: str) -> None:
    (shop.folder / "a-file").write_text("mine")
    (shop.folder / "a-folder").mkdir()
    result = CliRunner().invoke(app, [*command])
    assert_refused(result, says, "is a f")
    assert (shop.folder / "a-file").read_text() == "mine"


def test_a_retraining_probes_the_home(shop: Shop) -> None:
    service = shop.home / "service"
    service.mkdir(parents=True)
    Store.open(f"sqlite:///{service / 'palate.db'}").close()
    (service / "work").write_text("")
    assert_refused(CliRunner().invoke(app, ["retrain"]), "--home", "work", "is a file")


@pytest.mark.parametrize("command", ["meta", "sequence"])
def test_a_missing_data_set_is_found_before_the_first_run(
    shop: Shop, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"meta": "run_protocol", "sequence": "run_sequential"}[command]
    monkeypatch.setattr(f"palate.cli.benchmarks.{name}", lambda *_, **__: pytest.fail("a run has begun"))
    assert_refused(CliRunner().invoke(app, ["bench", command, "--data", "nowhere"]), "nowhere")
