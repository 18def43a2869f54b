import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from palate.encoders import text as module
from palate.encoders import text_cache as cache
from palate.encoders.text import TextConfig, encode_texts
from palate.encoders.text_cache import VectorTable, add_vectors, read_vectors
from palate.errors import ConfigError

TEXTS = ["red mug", "the blue lamp", "", "tea", "red mug", "the red red red mug lamp"]


class CountedTexts:
    """Stands before the model and notes what it is asked to encode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        self._run = module._run_model
        monkeypatch.setattr(module, "_run_model", self)

    def __call__(self, folder: Path, hashes: Mapping[str, str], texts: list[str], *rest: Any) -> torch.Tensor:
        self.calls.append(texts)
        return self._run(folder, hashes, texts, *rest)


# ---------------------------------------------------------------- the cache


def cache_file(config: TextConfig) -> Path:
    (folder,) = (Path(str(config.cache_dir)) / "text").iterdir()
    (file,) = folder.iterdir()
    return file


def test_only_new_texts_are_encoded_and_each_once(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedTexts(monkeypatch)
    first = encode_texts(TEXTS, config)
    assert counted.calls == [["red mug", "the blue lamp", "", "tea", "the red red red mug lamp"]]
    assert encode_texts(TEXTS, config).equal(first)
    assert len(counted.calls) == 1
    grown = encode_texts(["blue tea", *TEXTS], config)
    assert counted.calls[1:] == [["blue tea"]]
    assert grown[1:].equal(first)
    assert encode_texts(["blue tea"], config).equal(grown[:1])
    assert len(counted.calls) == 2


@pytest.mark.parametrize(
    "change", [{"pooling": "cls"}, {"normalise": False}, {"max_length": 4}, {"precision": "bfloat16"}]
)
def test_a_setting_that_changes_vectors_has_its_own_cache(
    config: TextConfig, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = CountedTexts(monkeypatch)
    encode_texts(TEXTS, config)
    other = TextConfig(**{"model": config.model, "max_length": 16, "cache_dir": config.cache_dir} | change)
    assert not encode_texts(TEXTS, other).equal(encode_texts(TEXTS, config))
    assert len(counted.calls) == 2


def test_other_weights_in_the_same_folder_are_noticed(
    model: Path, config: TextConfig, other_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = encode_texts(TEXTS, config)
    shutil.copy(other_model / "model.safetensors", model)
    counted = CountedTexts(monkeypatch)
    assert not torch.allclose(encode_texts(TEXTS, config), before, atol=1e-3)
    assert len(counted.calls) == 1


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        lambda file: file.write_bytes(file.read_bytes()[:-7]),
        lambda file: file.write_bytes(b""),
        lambda file: save_file({"keys": torch.zeros(1, 32, dtype=torch.uint8)}, file),
    ],
)
def test_a_damaged_cache_is_rebuilt_with_a_warning(
    config: TextConfig, damage: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = encode_texts(TEXTS, config)
    damage(cache_file(config))
    counted = CountedTexts(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="palate"):
        assert encode_texts(TEXTS, config).equal(first)
    assert len(counted.calls) == 1
    assert "is damaged" in caplog.text
    assert str(cache_file(config)) in caplog.text
    encode_texts(TEXTS, config)
    assert len(counted.calls) == 1


def test_what_another_process_wrote_meanwhile_is_kept(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module._run_model

    def slow_run(*args: Any) -> torch.Tensor:
        monkeypatch.setattr(module, "_run_model", run)
        encode_texts(["blue lamp", "tea"], config)  # the other process, while the model of this one runs
        return run(*args)

    monkeypatch.setattr(module, "_run_model", slow_run)
    encode_texts(["red mug", "tea"], config)
    counted = CountedTexts(monkeypatch)
    encode_texts(["blue lamp", "tea", "red mug"], config)
    assert counted.calls == []


def test_a_failed_write_leaves_the_old_cache_and_no_litter(config: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode_texts(["tea"], config)

    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(ConfigError, match=r"cannot be written .No space left on device"):
            encode_texts(["mug"], config)
    counted = CountedTexts(monkeypatch)
    assert encode_texts(["tea"], config).equal(first)
    assert counted.calls == []
    assert cache_file(config).suffix == ".safetensors"


def test_a_cache_folder_that_cannot_be_made_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache_dir .* cannot be made"):
        encode_texts(["tea"], TextConfig(str(model), cache_dir=str(tmp_path / "file")))


def test_the_default_cache_is_in_the_home_folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    encode_texts(["tea"], TextConfig(str(model), max_length=16))
    assert len(list((tmp_path / "home/.cache/palate/text").iterdir())) == 1


# ---------------------------------------------------------------- the files


def table(first: int, count: int) -> VectorTable:
    """Texts first … first + count − 1, each with a vector that says which it is."""
    keys = [number.to_bytes(32, "big") for number in range(first, first + count)]
    vectors = torch.arange(first, first + count).float()[:, None] * torch.tensor([1.0, -2.0, 0.5])
    return VectorTable({key: row for row, key in enumerate(keys)}, vectors)


def contents(folder: Path) -> dict[int, list[float]]:
    found = read_vectors(folder)
    assert found is not None
    return {int.from_bytes(key, "big"): found.vectors[row].tolist() for key, row in found.rows.items()}


def test_a_small_addition_leaves_a_large_file_alone(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    assert read_vectors(folder) is None
    add_vectors(folder, table(0, 1000))
    (large,) = folder.iterdir()
    before = large.stat()
    for start in range(1000, 1100, 10):
        add_vectors(folder, table(start, 10))
    assert large.stat() == before
    assert sum(file.stat().st_size for file in folder.iterdir() if file != large) < before.st_size / 4
    assert contents(folder) == {number: [number, -2.0 * number, number / 2] for number in range(1100)}


def test_the_number_of_files_grows_with_the_logarithm(tmp_path: Path) -> None:
    written = []
    for number in range(200):
        before = set(tmp_path.iterdir())
        add_vectors(tmp_path, table(number, 1))
        written.append(sum(file.stat().st_size for file in set(tmp_path.iterdir()) - before))
        assert len(list(tmp_path.iterdir())) <= 8
    assert sorted(contents(tmp_path)) == list(range(200))
    assert sum(written) < 200 * written[-1] / 2 or written[-1] < max(written) / 8


def test_a_row_that_two_files_hold_counts_once(tmp_path: Path) -> None:
    add_vectors(tmp_path, table(0, 9))
    add_vectors(tmp_path, table(7, 4))
    found = read_vectors(tmp_path)
    assert found is not None
    assert len(found.vectors) == len(found.rows) == 11


def test_a_crash_before_the_merged_files_are_removed_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_vectors(tmp_path, table(0, 4))

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            add_vectors(tmp_path, table(4, 6))
    assert len(list(tmp_path.iterdir())) == 2
    assert sorted(contents(tmp_path)) == list(range(10))
    add_vectors(tmp_path, table(10, 20))
    assert len(list(tmp_path.iterdir())) == 1
    assert sorted(contents(tmp_path)) == list(range(30))


WRITER = """
import os, signal, sys, torch
from pathlib import Path
from palate.encoders.text_cache import VectorTable, add_vectors
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = die
add_vectors(Path(sys.argv[1]), VectorTable({bytes([1]) * 32: 0}, torch.ones(1, 3)))
"""


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_content(tmp_path: Path) -> None:
    add_vectors(tmp_path, table(0, 1))
    before = contents(tmp_path)
    ended = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the old file, and what the dead process left
    assert contents(tmp_path) == before
    add_vectors(tmp_path, table(1, 1))
    assert sorted(contents(tmp_path)) == [0, 1]


def test_files_that_vanish_while_they_are_read_are_listed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_vectors(tmp_path, table(0, 8))
    add_vectors(tmp_path, table(8, 4))
    read = cache._read
    calls = []

    def merged_meanwhile(path: Path) -> VectorTable | None:
        calls.append(path)
        if len(calls) == 2:
            monkeypatch.setattr(cache, "_read", read)
            add_vectors(tmp_path, table(12, 20))  # another process takes both files into one
            monkeypatch.setattr(cache, "_read", merged_meanwhile)
        return read(path)

    monkeypatch.setattr(cache, "_read", merged_meanwhile)
    assert sorted(contents(tmp_path)) == list(range(32))
