"""An index on disk: one safetensors file with vectors, removals and what the engine has learned.

The vectors are the truth. Codes and lists are made from them on reading, with the learned centroids or codebook, so a
saved index answers as it did, and no reader of a foreign binary format is needed.
"""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from palate.data.files import write_atomically
from palate.errors import ModelError, PalateError
from palate.recommend.retrieval.exact import EXACT, ExactScan
from palate.recommend.retrieval.index import Built, Index
from palate.recommend.retrieval.rows import Rows, check_vectors
from palate.recommend.retrieval.settings import RetrievalConfig
from palate.recommend.retrieval.table import build, find_entry

_FORMAT = 1
_LEARNED = "learned."
_QUERIES = "queries"


def save_index(path: str | Path, index: Index) -> None:
    """Write an index; the file is complete or not there.

    Raises:
        ModelError: the file cannot be written.
    """
    rows, built = index.rows, index.built
    tensors = {"vectors": rows.vectors, "biases": rows.biases, "ids": rows.ids, "alive": rows.alive}
    tensors |= {_LEARNED + name: value for name, value in built.learned.items()}
    if index.queries is not None:
        tensors[_QUERIES] = index.queries
    about = {
        "format": _FORMAT,
        "config": asdict(index.config),
        "num_items": rows.num_items,
        "changes": index.changes,
        "kind": built.kind,
        "effort": built.effort,
        "recall": built.recall,
    }
    try:
        write_atomically(Path(path), save(tensors, {"index": json.dumps(about)}))
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror or error})") from None


def load_index(path: str | Path) -> Index:
    """Read an index; it answers as the one that was saved.

    Raises:
        ModelError: the file is missing, no index, of another version, holds a NaN, or needs a package that is missing.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get("index", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not readable as an index ({str(error).splitlines()[0]})") from None
    if about.get("format") != _FORMAT:
        raise ModelError(f"{path}: no index of format {_FORMAT}; build it again from the vectors")
    try:
        entry = find_entry(about["kind"])
        rows = Rows(tensors["vectors"], tensors["biases"], tensors["ids"], tensors["alive"], about["num_items"])
        check_vectors(rows.vectors, rows.biases, rows.vectors.shape[1])
        if not len(rows.vectors) == len(rows.ids) == len(rows.alive) <= rows.num_items:
            raise ModelError("its lengths do not fit together")
        learned = {name.removeprefix(_LEARNED): value for name, value in tensors.items() if _LEARNED in name}
        scan = ExactScan(rows.vectors, rows.biases)
        engine = scan if entry is EXACT else entry.assemble(learned, rows.vectors, rows.biases)
        built = Built(about["kind"], entry, learned, engine, about["effort"], about["recall"])
        config = RetrievalConfig(**about["config"])
        return Index(config, tensors.get(_QUERIES), build, rows, scan, built, about["changes"])
    except (LookupError, TypeError, ValueError, PalateError) as error:
        raise ModelError(f"{path}: not usable as an index ({' '.join(str(error).split())})") from None
