"""The shape of the house: layers import upward only, the pages name what exists, nothing unpickles."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

import palate
from palate.cli import app

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src" / "palate").rglob("*.py"))
LAYERS = [
    "data",
    "encoders",
    "backbone",
    "scorers",
    "meta",
    "ratings",
    "config",
    "pretrain",
    "baselines",
    "recommend",
    "pipeline",
    "evaluation",
    "store",
    "service",
    "client",
    "cli",
    "__main__",
]
FREE = {"errors", "metrics", "progress", "significance", "steps", "threads"}


def layer_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return [module for module in found if module.startswith("palate.")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src" / "palate")))
def test_a_module_imports_from_its_own_layer_or_one_above(path: Path) -> None:
    own = path.relative_to(ROOT / "src" / "palate").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for module in imports_of(path):
        layer = layer_of(module)
        if layer in FREE:
            continue
        assert own not in FREE, f"{own} belongs to everyone and may not import {module}"
        assert LAYERS.index(layer) <= LAYERS.index(own), f"{path.name} in {own} imports {module}"


def test_nothing_unpickles() -> None:
    for path in SOURCES:
        assert not re.search(r"\bpickle\b|(?<!\.)torch\.(load|save)\(", path.read_text(encoding="utf-8")), path


def test_nothing_asks_for_a_plug_in_by_name() -> None:
    names = "|".join([*palate.meta.LEARNERS, *palate.baselines.BASELINES])
    for path in SOURCES:
        assert not re.search(rf"==\s*['\"]({names})['\"]", path.read_text(encoding="utf-8")), path


def test_there_is_a_line_for_every_file() -> None:
    page = (ROOT / "docs" / "source.md").read_text(encoding="utf-8")
    for path in SOURCES:
        name = str(path.relative_to(ROOT / "src" / "palate"))
        if path.name != "__init__.py" and not name.startswith("baselines/"):
            assert name in page, name
    for path in (ROOT / "src" / "palate" / "baselines").glob("*.py"):
        assert path.stem.strip("_") in page or path.name == "__init__.py", path.name


def test_every_command_in_the_readme_exists() -> None:
    commands = {command.name for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups if group.name is not None}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^palate (\w+)", readme, flags=re.MULTILINE))
    assert named
    assert named <= commands


def test_every_call_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"palate\.([A-Za-z_]+)", " ".join(re.findall(r"```python(.*?)```", readme, re.DOTALL))):
        assert name in palate.__all__
    for name in re.findall(r"\bmodel\.([a-z_]+)\(", readme):
        assert hasattr(palate.Recommender, name)


def test_the_reference_pages_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="__main__")
    assert end.value.code == 0
