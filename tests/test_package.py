"""The package itself: quick to import, and every public name is where it says."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import palate


def test_importing_it_or_its_client_loads_nothing_that_trains() -> None:
    code = "import palate, sys; palate.Client, palate.client.Event; print([*{'torch', 'polars'} & set(sys.modules)])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"


def test_every_public_name_is_what_type_checkers_are_told() -> None:
    tree = ast.parse(Path(palate.__file__).read_text())
    told = {
        name.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for name in node.names
    }
    told = {name: module for name, module in told.items() if module is not None and module.startswith("palate.")}
    assert told == palate._HOMES
    assert sorted(told) == sorted(palate.__all__)
    assert set(palate.__all__) <= set(dir(palate))
    for name in palate.__all__:
        assert getattr(palate, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        palate.trian  # noqa: B018
    assert not hasattr(palate, "__path_to_nowhere__")
