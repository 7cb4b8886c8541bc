"""What a training left behind: sensitivity, redundancy, pruning.

`audit` measures a model in one pass over batches, and `describe` makes figures of it; they need
torch alone. `summary` is what the runs of a study carry. All of `sagelr audit` is in `whole`, and
`schema` says what the audit.json that it writes holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sagelr.audit.describe import describe
from sagelr.audit.sensitivity import Measured, audit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sagelr.audit.schema import Summary
    from sagelr.schema import AuditOptions
    from sagelr.tasks import Task

__all__ = ["Measured", "audit", "describe", "summary"]


def summary(model: PreTrainedModel, task: Task, options: AuditOptions) -> Summary:
    """What a run of a study is measured for, see `sagelr.audit.digest`."""
    from sagelr.audit.digest import summary

    return summary(model, task, options)
