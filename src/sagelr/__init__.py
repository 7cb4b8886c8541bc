"""The public names, and nothing else."""

from sagelr.groups import param_groups
from sagelr.optim import Sage, SageAdamax, SageAdamW, SageSGD
from sagelr.version import __version__

__all__ = ["Sage", "SageAdamW", "SageAdamax", "SageSGD", "__version__", "param_groups"]
