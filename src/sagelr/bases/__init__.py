"""What SAGE scales: the direction of a base optimizer, each in one short file."""

from sagelr.bases.adamax import Adamax
from sagelr.bases.adamw import AdamW
from sagelr.bases.protocol import Base
from sagelr.bases.sgd import SGD

__all__ = ["SGD", "AdamW", "Adamax", "Base"]
