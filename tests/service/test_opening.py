"""Homes from before models were signed, homes that lost their key, and homes with another's models."""

import json
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from palate.errors import ModelError
from palate.recommend import Recommender
from palate.recommend.signing import SIGNATURE, make_key, pending, read_key
from palate.service.home import Home
from palate.service.opening import load_model, prepare, register, sign_earlier_models
from palate.service.retraining import RetrainConfig, retrain
from palate.store import Store, registry

OTHER = "f" * 16


@pytest.fixture
def home(tmp_path: Path, model: Recommender) -> Home:
    """A served model and a candidate."""
    place = Home(tmp_path / "home")
    place.make()
    store = Store.open(place.database)
    bare = model.without_people()
    for one in (bare, replace(bare, model_id=OTHER)):
        register(store, place, one, {})
    with store.write() as connection:
        registry.promote(connection, model.model_id, time.time())
    store.close()
    return place


def as_before_signatures(home: Home) -> None:
    for folder in home.models.iterdir():
        (folder / SIGNATURE).unlink()
    home.signing_key.unlink()


def test_the_key_is_made_with_the_first_model(home: Home, store: Store, model: Recommender) -> None:
    assert stat.S_IMODE(home.signing_key.stat().st_mode) == 0o600
    assert load_model(store, home, model.model_id).model_id == model.model_id
    assert load_model(store, home, OTHER).model_id == OTHER


def test_a_home_from_before_signatures_signs_what_is_as_registered(
    home: Home, store: Store, model: Recommender
) -> None:
    as_before_signatures(home)
    with pytest.raises(ModelError, match=r"^[^\n]*signing\.key: missing[^\n]*docs/loop\.md[^\n]*\Z"):
        load_model(store, home, model.model_id)
    with pytest.raises(ModelError, match=r"signing\.key: missing"):
        retrain(store, home, RetrainConfig())
    assert not home.signing_key.exists(), "a key that has not signed the models would be in the way"
    manifest = home.models / OTHER / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_bytes())))  # the same said in other bytes
    said: list[str] = []
    prepare(store, home, pytest.fail, None, said.append)  # type: ignore[arg-type]
    assert any(model.model_id in line and "is signed" in line for line in said)
    assert any(OTHER in line and "not the one that was registered" in line for line in said)
    assert load_model(store, home, model.model_id).model_id == model.model_id
    with pytest.raises(ModelError, match=r"manifest\.sig is missing"):
        load_model(store, home, OTHER)
    # Once: what loses its signature later stays without.
    (home.models / model.model_id / SIGNATURE).unlink()
    prepare(store, home, pytest.fail, None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"manifest\.sig is missing"):
        load_model(store, home, model.model_id)


@pytest.mark.parametrize("num_signed", [0, 1, 2])
def test_signing_that_was_killed_goes_on_with_the_same_key(
    home: Home, store: Store, model: Recommender, num_signed: int
) -> None:
    as_before_signatures(home)
    key = make_key(pending(home.signing_key))
    for name in (OTHER, model.model_id)[:num_signed]:
        folder = home.models / name
        (folder / SIGNATURE).write_bytes(key.sign((folder / "manifest.json").read_bytes()))
    sign_earlier_models(store, home)
    for name in (OTHER, model.model_id):
        assert load_model(store, home, name).model_id == name
    assert read_key(home.signing_key).private_bytes_raw() == key.private_bytes_raw()
    assert not pending(home.signing_key).exists()


def test_a_home_without_the_key_of_its_models_gets_no_other(home: Home, store: Store, model: Recommender) -> None:
    """As where it was lost, or where another machine shares the models: signing again would shut the other one out."""
    (home.models / OTHER / SIGNATURE).unlink()
    home.signing_key.rename(home.folder / "elsewhere")
    prepare(store, home, pytest.fail, None)  # type: ignore[arg-type]
    assert not home.signing_key.exists()
    with pytest.raises(ModelError, match=r"signing\.key: missing, so no model can be verified; put the key back"):
        load_model(store, home, model.model_id)
    (home.folder / "elsewhere").rename(home.signing_key)
    load_model(store, home, model.model_id)


def test_a_model_in_the_place_of_another_is_refused(home: Home, store: Store, model: Recommender) -> None:
    """Signed by the home and whole, but not the one that the registry means."""
    shutil.rmtree(home.models / OTHER)
    shutil.copytree(home.models / model.model_id, home.models / OTHER)
    with pytest.raises(ModelError, match="not the folder that was registered"):
        load_model(store, home, OTHER)
