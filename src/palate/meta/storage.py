"""Parameters and fast weights on disk: one safetensors file, with what was learned and how as its metadata."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from palate.data.files import write_atomically
from palate.errors import ModelError


def save_params(path: str | Path, params: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Write a tree of tensors; the file is complete or not there.

    Raises:
        ModelError: the file cannot be written.
    """
    content = save(
        {name: value.detach().contiguous() for name, value in params.items()},
        {key: str(value) for key, value in (about or {}).items()},
    )
    try:
        write_atomically(Path(path), content)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror or error})") from None


def load_params(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a tree of tensors and what it says of itself.

    Raises:
        ModelError: the file is missing or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not readable as parameters ({str(error).splitlines()[0]})") from None
