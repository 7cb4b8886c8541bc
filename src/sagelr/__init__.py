"""The public names, and nothing else."""

from sagelr.version import __version__

__all__ = ["__version__"]
