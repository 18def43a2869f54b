"""Retrieval: the items with the largest inner product with a query, exact where that is quick and nearly so above.

index = build_index(vectors, biases=biases)
items, scores = index.search(queries, 10, excluded=[seen])
"""

from palate.recommend.retrieval.index import Found, Index
from palate.recommend.retrieval.settings import RetrievalConfig
from palate.recommend.retrieval.storage import load_index, save_index
from palate.recommend.retrieval.table import INDEXES, build_index

__all__ = ["INDEXES", "Found", "Index", "RetrievalConfig", "build_index", "load_index", "save_index"]
