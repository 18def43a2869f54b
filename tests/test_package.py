"""The package itself: quick to import, and every public name is where it says."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import palate

MODULES = ("palate.pretrain", "palate.data.event_log", "palate.backbone.semantic_ids", "palate.encoders.lora")
"""More that a caller reaches for, beside the names of the package."""


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


def test_whatever_takes_a_path_takes_text_too() -> None:
    public = [getattr(palate, name) for name in palate.__all__]
    public += map(import_module, MODULES)
    callables = [one for one in public if inspect.isfunction(one)]
    for one in public:
        if inspect.isclass(one) or inspect.ismodule(one):
            home = one.__name__ if inspect.ismodule(one) else one.__module__
            own = [value for name, value in vars(one).items() if not name.startswith("_")]
            members = [value for value in own if getattr(value, "__module__", home) == home]
            callables += [inspect.unwrap(getattr(value, "__func__", value)) for value in members if callable(value)]
    seen = 0
    for function in filter(inspect.isfunction, callables):
        for name, hint in function.__annotations__.items():
            if name != "return" and Path in (hint, *get_args(hint)):
                assert str in get_args(hint), f"{function.__qualname__}: {name} is {hint}"
                seen += 1
    assert seen > 10


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        palate.trian  # noqa: B018
    assert not hasattr(palate, "__path_to_nowhere__")
