"""Settings: what is read is what was written, and what cannot be meant is refused by name."""

import ast
import inspect
import json
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.backbone.item_tables import ItemTableConfig
from palate.backbone.next_item import LossConfig
from palate.backbone.sequence_model import SequenceModelConfig
from palate.backbone.training_config import TrainingConfig
from palate.config import Config, DataConfig, EvaluationConfig, read_config
from palate.encoders.text import TextConfig
from palate.errors import ConfigError, DataError
from palate.meta.training import MetaConfig


def tables(table: type[Any] = Config) -> Iterator[type[Any]]:
    """The dataclass and all those inside it."""
    yield table
    for kind in get_type_hints(table).values():
        if is_dataclass(kind):
            yield from tables(kind)  # type: ignore[arg-type]


def to_toml(values: dict[str, Any], path: str = "") -> str:
    """Write plain values as TOML, which knows no null: what is None is left out."""
    plain = {name: value for name, value in values.items() if not isinstance(value, dict) and value is not None}
    lines = [f"[{path}]"] if path else []
    lines += [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for name, value in values.items():
        if isinstance(value, dict):
            lines.append(to_toml(value, f"{path}.{name}" if path else name))
    return "\n".join(lines)


CHANGED = Config(
    seed=7,
    negative_events=("return",),
    data=DataConfig(interactions="events.csv", items="items.csv", columns={"sku": "item_id"}),
    text=TextConfig(max_length=16, pooling="cls", normalise=False),
    num_members=1,
    model=SequenceModelConfig(
        dim=32,
        loss=LossConfig("sampled", num_negatives=64),
        item_table=ItemTableConfig("hashed", compression=4),
        heads={"dwell": 0.5},
    ),
    training=TrainingConfig(max_steps=7, betas=(0.8, 0.9), freeze=("items",)),
    meta=MetaConfig(learner="anil", support_sizes=(0, 4)),
    evaluation=EvaluationConfig(cut="2024-05-01", support_sizes=(0, 4), min_items=6),
)


@pytest.mark.parametrize("config", [Config(), CHANGED], ids=["defaults", "changed"])
def test_settings_survive_toml_and_json(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config.to_dict()), encoding="utf-8")
    assert read_config(file) == config
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert Config.from_dict(config.to_dict()) == config


@given(
    seed=st.integers(0, 2**63 - 1),
    sizes=st.sets(st.integers(0, 20), min_size=1),
    dropout=st.floats(0, 1, exclude_max=True),
    columns=st.dictionaries(st.text(), st.text()),
)
def test_any_settings_survive_json(seed: int, sizes: set[int], dropout: float, columns: dict[str, str]) -> None:
    config = Config(
        seed=seed,
        data=DataConfig(columns=columns),
        model=SequenceModelConfig(dropout=dropout),
        evaluation=EvaluationConfig(support_sizes=tuple(sorted(sizes))),
    )
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_is_left_out_keeps_its_default(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 3\n[meta]\nnum_steps = 5\n")
    assert read_config(file) == replace(Config(), seed=3, meta=MetaConfig(num_steps=5))
    # What a table leaves out keeps the default of the whole, which need not be that of the table's own class.
    file.write_text("[model]\ndim = 8\n[attributes]\nmin_count = 2\n[training]\nbetas = [0, 0.5]")
    expected = replace(
        Config(),
        model=replace(Config().model, dim=8),
        attributes=replace(Config().attributes, min_count=2),
        training=replace(Config().training, betas=(0.0, 0.5)),
    )
    assert read_config(file) == expected
    assert expected.model.max_events != SequenceModelConfig().max_events
    assert Config.from_dict({}) == Config()


def test_whole_numbers_are_numbers() -> None:
    rate = Config.from_dict({"meta": {"learning_rate": 1}}).meta.learning_rate
    assert rate == 1.0
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("sed = 1", "unknown setting sed; did you mean seed?"),
        ("[meta]\nsuport_sizes = [1]", "unknown setting meta.suport_sizes; did you mean meta.support_sizes?"),
        ("[model]\nxyzzy = 1", "unknown setting model.xyzzy; known here: dim, num_layers"),
        ("[evalation]\nk = 1", "unknown setting evalation; did you mean evaluation?"),
    ],
)
def test_an_unknown_setting_names_the_nearest(tmp_path: Path, toml: str, said: str) -> None:
    refuse(tmp_path, toml, said)


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("seed = 1.5", "seed is 1.5; expected int"),
        ("seed = true", "seed is True; expected int"),
        ('seed = "1"', "seed is '1'; expected int"),
        ("seed = []", "seed is []; expected int"),
        ("seed = {}", "seed is a table; expected int"),
        ("model = 3", "model is 3; expected a table [model]"),
        ("[model]\nloss = 3", "model.loss is 3; expected a table [model.loss]"),
        ("[model.loss]\nkind = 3", "model.loss.kind is 3; expected str"),
        ('[model.heads]\ndwell = "much"', "model.heads is {'dwell': 'much'}; expected numbers"),
        ("[training]\nbetas = [0.9]", "training.betas is [0.9]; expected tuple[float, float]"),
        ('[training]\nbetas = [0.9, "a"]', "training.betas is [0.9, 'a']; expected tuple[float, float]"),
        ('negative_events = "cancel"', "negative_events is 'cancel'; expected tuple[str, ...]"),
        ("negative_events = [1]", "negative_events is [1]; expected tuple[str, ...]"),
        ("[meta]\nsupport_sizes = 3", "meta.support_sizes is 3; expected tuple[int, ...]"),
        ('[meta]\nsupport_sizes = ["a"]', "meta.support_sizes is ['a']; expected tuple[int, ...]"),
        ("[meta]\nsupport_sizes = [true]", "meta.support_sizes is [True]; expected tuple[int, ...]"),
        ("[meta]\nlearning_rate = nan", "meta.learning_rate is nan; expected a finite number"),
        ("[meta]\nlearning_rate = inf", "meta.learning_rate is inf; expected a finite number"),
        ('[meta]\nlearning_rate = "fast"', "meta.learning_rate is 'fast'; expected float"),
        ("[text]\nnormalise = 1", "text.normalise is 1; expected bool"),
        ("[text]\nrevision = 3", "text.revision is 3; expected str | None"),
        ('[text]\npooling = "max"', "text.pooling is 'max'; expected one of mean, cls"),
        ("[data.columns]\nsku = 3", "data.columns is {'sku': 3}; expected text on both sides"),
        ('[data]\ncolumns = "sku"', "data.columns is 'sku'; expected"),
        ("[evaluation]\ncut = 2024-05-01", "evaluation.cut is datetime.date(2024, 5, 1); expected str | None"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(tmp_path: Path, toml: str, said: str) -> None:
    refuse(tmp_path, toml, said)


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("seed = -1", "seed is -1"),
        ("seed = 9223372036854775808", "seed is 9223372036854775808"),
        ("[data]\nbundled = 'online-retail'\ninteractions = 'a.csv'", "either bundled or interactions"),
        ("[data]\nitems = 'a.csv'", "items and users need interactions"),
        ("[text]\nmax_length = 2", "text max_length is 2"),
        ("[text]\nbatch_size = 0", "text batch_size is 0"),
        ("[attributes]\nnumeric = 'cubic'", "numeric encoder 'cubic'"),
        ("[attributes]\nmin_count = 0", "attribute min_count is 0"),
        ("[model]\ndim = 0", "model.dim is 0"),
        ("num_members = 0", "num_members is 0"),
        ("[model]\nnum_heads = 0", "model.num_heads is 0"),
        ("[model]\nnum_layers = -1", "model.num_layers is -1"),
        ("[model]\ndropout = 1.0", "model.dropout is 1.0"),
        ("[training]\npatience = 2", "training.patience is 2, but members train side by side"),
        ("[training]\nlearning_rate = 0", "training.learning_rate is 0.0"),
        ("[batches]\ndecay = 1.1", "batches.decay is 1.1"),
        ("[evidence]\nrank = 0", "evidence.rank is 0"),
        ("[evidence]\nshrink = 0", "evidence.shrink is 0"),
        ("[meta]\nlearner = 'bridge'", "meta.learner is 'bridge'"),
        ("[meta]\nsupport_sizes = []", "meta.support_sizes is ()"),
        ("[meta]\nsupport_sizes = [-1]", "meta.support_sizes is (-1,)"),
        ("[meta]\nheld_out = 1.0", "meta.held_out is 1.0"),
        ("[meta]\nnum_steps = 0", "meta.num_steps is 0"),
        (
            "[meta]\nsupport_sizes = [9]\n[model]\nmax_events = 8",
            "meta.support_sizes is (9,), but",
        ),
        ("[evaluation]\nsupport_sizes = []", "evaluation.support_sizes is ()"),
        ("[evaluation]\nsupport_sizes = [-1, 2]", "evaluation.support_sizes is (-1, 2)"),
        ("[evaluation]\nsupport_sizes = [2, 1]", "evaluation.support_sizes is (2, 1)"),
        ("[evaluation]\nsupport_sizes = [1, 1]", "evaluation.support_sizes is (1, 1)"),
        ("[evaluation]\nk = 0", "evaluation.k is 0"),
        ("[evaluation]\nmin_items = 0", "evaluation.min_items is 0"),
        ("[evaluation]\nnum_resamples = 0", "evaluation.num_resamples is 0"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, toml: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_dict(tomllib.loads(toml))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def refuse(folder: Path, toml: str, said: str) -> None:
    file = folder / "run.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert str(error.value).startswith(f"{file}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: no such file[^\n]*\Z"):
        read_config(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match=r": not readable as TOML \([^\n]*\)\Z"):
        read_config(tmp_path)
    for content in (b"seed = = 1", b"\xff\xfe"):
        (tmp_path / "run.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"run\.toml: not readable as TOML \([^\n]*\)\Z"):
            read_config(tmp_path / "run.toml")


@pytest.mark.parametrize("table", list(tables()), ids=lambda table: table.__name__)
def test_every_setting_is_documented(table: type[Any]) -> None:
    body = ast.parse(inspect.cleandoc(inspect.getsource(table))).body[0]
    assert isinstance(body, ast.ClassDef)
    documented = {
        statement.target.id
        for statement, after in zip(body.body, body.body[1:], strict=False)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and str(after.value.value).strip()
    }
    assert [setting.name for setting in fields(table) if setting.name not in documented] == []
    assert ast.get_docstring(body)


def test_all_tables_are_frozen_and_found() -> None:
    names = [table.__name__ for table in tables()]
    assert {
        "Config",
        "DataConfig",
        "TextConfig",
        "SequenceModelConfig",
        "TrainingConfig",
        "MetaConfig",
        "EvaluationConfig",
    } <= set(names)
    assert all(table.__dataclass_params__.frozen for table in tables())


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_data_files_are_found_beside_the_config(tmp_path: Path, ending: str) -> None:
    events = pl.DataFrame({"who": ["a", "b"], "item_id": ["x", "y"], "timestamp": ["2024-01-01", "2024-01-02"]})
    items = pl.DataFrame({"item_id": ["x", "y", "z"], "title": ["ex", "why", "zed"]})
    for name, frame in (("events", events), ("items", items)):
        write = frame.write_csv if ending == "csv" else frame.write_parquet
        write(tmp_path / f"{name}.{ending}")
    config = DataConfig(interactions=f"events.{ending}", items=f"items.{ending}", columns={"who": "user_id"})
    dataset = config.open(tmp_path)
    assert dataset.interactions["user_id"].to_list() == ["a", "b"]
    assert dataset.items.titles() == {"x": "ex", "y": "why", "z": "zed"}
    assert (
        DataConfig(interactions=str(tmp_path / f"events.{ending}"), columns={"who": "user_id"}).open().items.text
        is None
    )
    with pytest.raises(DataError, match="there is no such file"):
        config.open(tmp_path / "elsewhere")


def test_data_that_is_not_named_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"^data: name a bundled data set[^\n]*\Z"):
        DataConfig().open()
    with pytest.raises(DataError, match=r"^no bundled data set 'offline'; available: online-retail\Z"):
        DataConfig(bundled="offline").open()
