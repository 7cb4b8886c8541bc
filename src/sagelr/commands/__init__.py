"""The commands, one file each. Importing this registers them in the order of the help page."""

from sagelr.commands import compare, train, audit, recipes, report, bench  # noqa: F401, I001
from sagelr.commands.app import app

__all__ = ["app"]
