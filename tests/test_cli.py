"""The command line: what it prints, its exit codes, and one line for every kind of bad input."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from palate.cli import app
from palate.recommend import Recommender
from tiny_settings import EVALUATION, TRAINING

COMMANDS = [command.name for command in app.registered_commands]


@pytest.fixture
def shell(model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Shell":
    """An empty folder to work in, and a home that holds the trained model."""
    home = tmp_path / "home"
    model.save(home / "models" / "shop")
    (home / "current").write_text(str(home / "models" / "shop"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("PALATE_HOME", str(home))
    monkeypatch.chdir(work)
    return Shell(work, home)


class Shell:
    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    def file(self, name: str, content: str) -> str:
        (self.folder / name).write_text(content)
        return name


def items_of(model: Recommender, count: int) -> list[str]:
    return list(model.vocabulary.ids[:count])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.output


def test_recommend_for_a_known_person_is_the_library_call(shell: Shell, model: Recommender) -> None:
    user = next(iter(model.users))
    result = shell.run("recommend", "--user", user, "-k", "4", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == [line._asdict() for line in model.recommend(user, 4)]


def test_recommend_shows_what_each_scorer_adds(shell: Shell, model: Recommender) -> None:
    shown = " ".join(shell.run("recommend", "--items", "garden-01,toys-03", "-k", "2", "--parts").stdout.split())
    for line in model.recommend(["garden-01", "toys-03"], 2):
        name, value = max(line.parts.items(), key=lambda part: abs(part[1]))
        assert f"{name} {value:+.2f}" in shown


def test_recommend_from_a_file_and_from_ids_agree(shell: Shell, model: Recommender) -> None:
    ids = items_of(model, 3)
    events = shell.file("events.csv", "item_id\n" + "\n".join(ids) + "\n")
    by_file = shell.run("recommend", "--events", events, "--json")
    by_ids = shell.run("recommend", "--items", ",".join(ids), "--json")
    assert by_file.exit_code == by_ids.exit_code == 0, by_file.output + by_ids.output
    file_lines, id_lines = json.loads(by_file.stdout), json.loads(by_ids.stdout)
    assert [line["item_id"] for line in file_lines] == [line["item_id"] for line in id_lines]
    assert not set(ids) & {line["item_id"] for line in file_lines}


def test_recommend_prints_a_table_with_titles_and_respects_exclude(shell: Shell, model: Recommender) -> None:
    first = json.loads(shell.run("recommend", "--json").stdout)[0]
    result = shell.run("recommend", "--exclude", first["item_id"], "--json")
    assert first["item_id"] not in {line["item_id"] for line in json.loads(result.stdout)}
    assert first["item_id"] in shell.run("recommend").output


def test_similar_lists_other_items(shell: Shell, model: Recommender) -> None:
    item = items_of(model, 1)[0]
    lines = json.loads(shell.run("similar", item, "-k", "3", "--json").stdout)
    assert len(lines) == 3
    assert item not in {line["item_id"] for line in lines}


def test_predict_is_the_library_call(shell: Shell, rated_model: Recommender) -> None:
    rated_model.save(shell.folder / "rated")
    first, second, third = items_of(rated_model, 3)
    events = shell.file("mine.csv", f"item_id,rating\n{first},5\n{second},1\n")
    by_file = shell.run("predict", third, "--events", events, "--model", "rated", "--json")
    by_text = shell.run("predict", third, "--ratings", f"{first}=5,{second}=1", "--model", "rated", "--json")
    assert by_file.exit_code == by_text.exit_code == 0, by_file.output + by_text.output
    (line,) = json.loads(by_text.stdout)
    expected = rated_model.predict({first: 5.0, second: 1.0}, [third])[0]
    assert line["mean"] == expected.mean
    assert line["distribution"] == {str(level): chance for level, chance in expected.distribution.items()}
    assert json.loads(by_file.stdout) == [line]
    printed = shell.run("predict", f"{second},{third}", "--user", next(iter(rated_model.users)), "--model", "rated")
    assert printed.exit_code == 0
    assert third in printed.output


def test_predict_without_learned_ratings_says_what_to_do(shell: Shell, model: Recommender) -> None:
    assert_refused(shell.run("predict", items_of(model, 1)[0]), "learned no ratings", "rating_events")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("sku\n1\n", ("events.csv", '"item_id"', "sku")),
        ("", ("events.csv", "empty")),
        ("item_id\n", ("events.csv",)),
        ("item_id\nno-such-item\n", ("events.csv", "row 1", '"item_id"', "no-such-item")),
        ("item_id,weight\n{item},1\n{item},NaN\n", ("events.csv", "row 2", '"weight"')),
        ("item_id,weight\n{item},heavy\n", ("events.csv", "row 1", '"weight"', "heavy")),
        ("item_id,timestamp\n{item},2999-01-01\n", ("events.csv", "row 1", '"timestamp"', "future")),
        ("item_id,timestamp\n{item},soon\n", ("events.csv", "row 1", '"timestamp"', "soon")),
    ],
)
def test_bad_events_get_one_line_and_exit_code_2(
    shell: Shell, model: Recommender, content: str, says: tuple[str, ...]
) -> None:
    events = shell.file("events.csv", content.replace("{item}", items_of(model, 1)[0]))
    result = shell.run("recommend", "--events", events, "--json")
    assert_refused(result, *says)


def assert_refused(result: Result, *says: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in says:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("recommend", "--events", "none.csv"), ("none.csv",)),
        (("recommend", "--user", "nobody"), ("nobody",)),
        (("recommend", "--user", "a", "--items", "b"), ("--user", "--items")),
        (("recommend", "-k", "0"), ("0",)),
        (("recommend", "--profile", "country"), ("country", "name=value")),
        (("recommend", "--profile", "shoe=42"), ("shoe",)),
        (("recommend", "--model", "nowhere"), ("nowhere",)),
        (("evaluate", "--model", "nowhere"), ("nowhere",)),
        (("similar", "no-such-item"), ("no-such-item",)),
        (("predict", "a", "--ratings", "b"), ("--ratings", "'b'", "item=rating")),
        (("predict", "a", "--ratings", "b=good"), ("--ratings", "b=good", "item=rating")),
        (("predict", "a", "--ratings", "b=1", "--user", "c"), ("--user", "--ratings")),
        (("train", "--config", "none.toml"), ("none.toml",)),
    ],
)
def test_bad_arguments_get_one_line_and_exit_code_2(
    shell: Shell, arguments: tuple[str, ...], says: tuple[str, ...]
) -> None:
    assert_refused(shell.run(*arguments), *says)


def test_a_damaged_model_is_refused(shell: Shell) -> None:
    weights = shell.home / "models" / "shop" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    assert_refused(shell.run("recommend"), "model.safetensors", "SHA-256")


def test_no_model_yet(shell: Shell) -> None:
    shutil.rmtree(shell.home)
    assert_refused(shell.run("recommend"), "palate demo")


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ('[meta]\nlerner = "ridge"\n', ("meta.lerner", "meta.learner")),
        ('[meta]\nlearner = "psychic"\n', ("psychic", "ridge", "anil")),
        ('seed = "one"\n', ("seed", "int")),
        ("seed = \n", ("palate.toml", "TOML")),
        ("seed = 1\n", ("data",)),
        ('[data]\ninteractions = "gone.csv"\n', ("gone.csv",)),
    ],
)
def test_bad_settings_leave_nothing_behind(shell: Shell, toml: str, says: tuple[str, ...]) -> None:
    before = sorted(path for path in shell.home.rglob("*"))
    config = shell.file("palate.toml", toml)
    assert_refused(shell.run("train", "--config", config, "--json"), *says)
    assert sorted(path for path in shell.home.rglob("*")) == before


def test_train_on_own_files_then_recommend_and_evaluate(shell: Shell, model: Recommender) -> None:
    rows, people = ["customer,item_id,timestamp"], 40
    for person in range(people):
        taste = person % 2
        for event in range(10):
            day = 1 + (person * 5 + event) % 28
            month = 1 if person < 30 else 2
            rows.append(f"u{person},t{taste}-{(person + event * 5) % 12},2024-{month:02d}-{day:02d}")
    shell.file("events.csv", "\n".join(rows) + "\n")
    titles = ["tea cup", "toy train"]
    catalogue = [f"t{taste}-{number},{titles[taste]} {number}" for taste in range(2) for number in range(12)]
    shell.file("items.csv", "item_id,title\n" + "\n".join(catalogue) + "\n")
    config = shell.file(
        "palate.toml",
        '[data]\ninteractions = "events.csv"\nitems = "items.csv"\ncolumns = { customer = "user_id" }'
        + TRAINING
        + EVALUATION,
    )
    result = shell.run("train", "--config", config, "--report", "out", "--json")
    assert result.exit_code == 0, result.output
    trained = json.loads(result.stdout)
    assert trained["few_shot"]["num_users"] == 10
    assert (shell.folder / "out" / "report.html").read_text().lower().startswith("<!doctype html>")
    assert json.loads((shell.folder / "out" / "results.json").read_text())["few_shot"] == trained["few_shot"]
    # The new model is now the current one, and judging it again gives the same figures.
    lines = json.loads(shell.run("recommend", "--items", "t0-1", "--json").stdout)
    assert lines
    assert all(line["item_id"].startswith("t") for line in lines)
    again = shell.run("evaluate", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["few_shot"] == trained["few_shot"]


def test_the_example_config_is_valid(shell: Shell) -> None:
    from palate.config import read_config

    path = shell.folder / shell.file("palate.toml", shell.run("config").stdout)
    assert read_config(path).data.interactions == "events.csv"
