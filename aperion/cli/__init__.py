"""The ``aperion`` command."""

from aperion.cli.main import main

__all__ = ["main"]
