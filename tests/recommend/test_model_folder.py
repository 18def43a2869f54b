"""Model folders: the same lists from another process, nothing read that was altered, nothing lost when saving fails."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load, save

from palate.data.catalog import Catalog
from palate.errors import ModelError
from palate.recommend import Recommender
from palate.recommend.bundle import FORMAT

FILES = ("manifest.json", "model.json", "model.safetensors", "people.safetensors", "vocabulary.json")
PEOPLE: tuple[str | list[str], ...] = ([], ["garden-01"], ["toys-01", "kitchen-02", "toys-19"], "user-003")


@pytest.fixture
def folder(saved_model: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))


def lists(model: Recommender) -> list[list[object]]:
    """Every number of a few lists, to the last bit."""
    return [[line._asdict() for line in model.recommend(events, 60)] for events in PEOPLE]


def seal(folder: Path) -> None:
    """Write a manifest that fits whatever the files hold."""
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES[1:]}
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": hashes}))


def test_a_saved_model_gives_the_same_lists(model: Recommender, folder: Path) -> None:
    again = Recommender.load(folder)
    assert lists(again) == lists(model)
    assert again.similar_items("toys-03") == model.similar_items("toys-03")
    assert again.recommend([], profile={"country": "Italy"}) == model.recommend([], profile={"country": "Italy"})
    assert asdict(again.config) == asdict(model.config)
    assert (again.model_id, again.num_trained, again.titles) == (model.model_id, model.num_trained, model.titles)
    assert list(again.users) == list(model.users)
    for user, history in model.users.items():
        assert all(np.array_equal(a, b) for a, b in zip(again.users[user], history, strict=True))
        assert torch.equal(again.profiles[user], model.profiles[user])
    new = Catalog.infer(pl.DataFrame({"item_id": ["new"], "title": ["garden gnome"], "price": [3.0]}))
    theirs, ours = (known.add_items(new).recommend(["garden-01"], 61) for known in (again, model))
    for line, same in zip(theirs, ours, strict=True):
        assert line._replace(score=0.0, parts={}) == same._replace(score=0.0, parts={})
        assert line.score == pytest.approx(same.score, abs=1e-5)
        assert line.parts == pytest.approx(same.parts, abs=1e-5)


def test_saving_twice_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    Recommender.load(folder).save(tmp_path / "again")
    assert sorted(path.name for path in folder.iterdir()) == list(FILES)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_another_process_gives_the_same_lists(model: Recommender, folder: Path) -> None:
    script = (
        "import json, sys, torch; from palate import Recommender; torch.set_num_threads(1)\n"
        "model = Recommender.load(sys.argv[1])\n"
        "lists = [[line._asdict() for line in model.recommend(events, 60)] for events in json.loads(sys.argv[2])]\n"
        "print(json.dumps(lists))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, str(folder), json.dumps(PEOPLE)], capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == lists(model)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_refused(folder: Path, name: str) -> None:
    file = folder / name
    content = file.read_bytes()
    rng = np.random.default_rng(FILES.index(name))
    places = {0, len(content) - 1, *rng.integers(0, len(content), 12).tolist()}
    if name == "manifest.json":  # the one file that no hash protects
        places = set(range(len(content)))
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        with pytest.raises(ModelError, match=rf"^{re.escape(str(folder))}[^\n]*\Z"):
            Recommender.load(folder)
    file.write_bytes(content)
    Recommender.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_off_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=rf"^[^\n]*{re.escape(name)}[^\n]*\Z"):
        Recommender.load(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=rf"^[^\n]*{re.escape(name)} is missing[^\n]*\Z"):
        Recommender.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.safetensors", "items.features"),
        ("model.safetensors", "params.gates"),
        ("people.safetensors", "events.seconds"),
    ],
)
def test_a_number_that_is_none_is_refused_by_name(folder: Path, name: str, tensor: str, value: float) -> None:
    tensors = load((folder / name).read_bytes())
    tensors[tensor].view(-1)[3] = value
    (folder / name).write_bytes(save(tensors))
    seal(folder)
    with pytest.raises(ModelError, match=rf"{re.escape(name)}: tensor '{tensor}' holds a NaN or infinity"):
        Recommender.load(folder)


@pytest.mark.parametrize(
    "missing", ["params.gates", "params.fixed.learner.log_noise", "items.vectors", "items.bias", "content"]
)
def test_a_tensor_that_is_not_there_is_refused(folder: Path, missing: str) -> None:
    tensors = load((folder / "model.safetensors").read_bytes())
    del tensors[missing]
    (folder / "model.safetensors").write_bytes(save(tensors))
    seal(folder)
    with pytest.raises(ModelError, match=r"^[^\n]*not a Palate model[^\n]*\Z"):
        Recommender.load(folder)


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"config": {"sed": 1}}', "nothing"])
def test_names_of_another_shape_are_refused(folder: Path, content: str) -> None:
    (folder / "model.json").write_text(content)
    seal(folder)
    with pytest.raises(ModelError, match=rf"^{re.escape(str(folder))}: [^\n]*\Z"):
        Recommender.load(folder)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (
            '{"format": 8, "sha256": {}}',
            f"written in format 8, this version reads {FORMAT}; train it again with `palate train`",
        ),
        (
            '{"format": 1, "sha256": {}}',
            f"written in format 1, this version reads {FORMAT}; train it again with `palate train`",
        ),
        (f'{{"format": {FORMAT}, "sha256": {{}}}}', "lists other files than a model has"),
        (f'{{"format": {FORMAT}, "sha256": {{"notes.txt": ""}}}}', "lists other files than a model has"),
        (f'{{"format": {FORMAT}, "sha256": [1]}}', "unreadable"),
        ('{"format": 7}', "unreadable"),
        ("[]", "unreadable"),
        ("", "unreadable"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(folder: Path, manifest: str, said: str) -> None:
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(ModelError, match=rf"^[^\n]*{said}[^\n]*\Z"):
        Recommender.load(folder)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(ModelError, match="no such model folder"):
            Recommender.load(path)
    with pytest.raises(ModelError, match=r"manifest\.json is missing"):
        Recommender.load(tmp_path)


def test_only_a_model_or_an_empty_folder_is_replaced(model: Recommender, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Dear")
    (tmp_path / "file").write_text("x")
    for name in ("letters", "file"):
        with pytest.raises(ModelError, match="holds something else than a model"):
            model.save(tmp_path / name)
    with pytest.raises(ModelError, match="cannot be written"):
        model.save(tmp_path / "file" / "model")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "Dear"
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty")
    model.save(tmp_path / "empty")
    model.save(tmp_path / "deep" / "er" / "model")
    assert lists(Recommender.load(tmp_path / "empty")) == lists(Recommender.load(tmp_path / "deep" / "er" / "model"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty", "file", "letters"]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_text_or_a_path(
    model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], str | Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    model.save(kind("folder"))
    assert Recommender.load(kind("folder")).model_id == model.model_id
    with pytest.raises(ModelError, match=r"\Aabsent: no such model folder"):
        Recommender.load(kind("absent"))


def test_the_working_folder_is_a_place_too(model: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model.save(".")
    assert Recommender.load(tmp_path / "here").model_id == model.model_id


@pytest.mark.parametrize("calls", range(5))
def test_a_save_that_fails_leaves_the_old_model(
    model: Recommender, folder: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    real, left = os.fsync, [calls]

    def full(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(file)

    before = {name: (folder / name).read_bytes() for name in FILES}
    new = Catalog.infer(pl.DataFrame({"item_id": ["new"], "title": ["garden gnome"], "price": [3.0]}))
    longer = model.add_items(new)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"cannot be written \(No space left on device\); nothing was changed"):
        longer.save(folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_rename_that_fails_puts_the_old_model_back(
    model: Recommender, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(ModelError, match="nothing was changed"):
        model.save(folder)
    assert lists(Recommender.load(folder)) == lists(model)
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_process_killed_while_saving_leaves_the_old_model(model: Recommender, folder: Path) -> None:
    script = (
        "import os, sys, time; from palate import Recommender\n"
        "model, real, calls = Recommender.load(sys.argv[1]), os.fsync, []\n"
        "def slow(file):\n"
        "    real(file); calls.append(file)\n"
        "    if len(calls) == 3: print('saving', flush=True); time.sleep(60)\n"
        "os.fsync = slow\n"
        "model.save(sys.argv[1])"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saving\n"
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    assert len(list(folder.parent.iterdir())) == 2, "the kill came too late to test anything"
    assert lists(Recommender.load(folder)) == lists(model)
    model.save(folder)
    assert lists(Recommender.load(folder)) == lists(model)


def test_what_a_killed_process_of_the_same_id_left_is_no_obstacle(model: Recommender, tmp_path: Path) -> None:
    # In a container every run may have the same process id.
    (tmp_path / f".model.{os.getpid()}.tmp").mkdir()
    model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
