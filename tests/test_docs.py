"""The examples of the pages run as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from palate.meta import LEARNERS

DOCS = Path(__file__).parent.parent / "docs"


def test_the_ten_lines_learn_a_taste() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "meta-learning.md").read_text(encoding="utf-8"), re.DOTALL)
    code = [line for line in example.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) <= 8
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(example, "meta-learning.md", "exec"), names)
    assert names["scores"].shape == (10,)
    wanted = names["rating"][170, 10:]
    assert torch.corrcoef(torch.stack([names["scores"].detach(), wanted]))[0, 1] > 0.5
    assert all(value.shape == names["params"][f"model.{key}"].shape for key, value in names["fast"].items())


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_every_learner_is_on_its_page_and_in_the_readme(name: str) -> None:
    assert f"`{name}`" in (DOCS / "meta-learning.md").read_text(encoding="utf-8")
    assert f"## {name}\n" in (DOCS / "configuration.md").read_text(encoding="utf-8")
