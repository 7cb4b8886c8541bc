"""The optimizers a user imports."""

from sagelr.optim.adamax import SageAdamax
from sagelr.optim.adamw import SageAdamW
from sagelr.optim.sgd import SageSGD
from sagelr.optim.wrap import Sage

__all__ = ["Sage", "SageAdamW", "SageAdamax", "SageSGD"]
