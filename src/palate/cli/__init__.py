"""The command line: each command is parse → one library call → print; a file for each part of it."""

from palate.cli import benchmarks, everyday, large, live, serve
from palate.cli.common import app, find_model, main

__all__ = ["app", "benchmarks", "everyday", "find_model", "large", "live", "main", "serve"]
