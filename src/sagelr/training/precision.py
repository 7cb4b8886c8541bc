"""In which numbers a training computes: `train.precision`, and what "auto" comes to here."""

from __future__ import annotations

from typing import Literal

import torch

from sagelr.schema import Recipe, Train
from sagelr.training.run import on_cpu

Precision = Literal["float32", "bf16", "fp16"]


def settled(recipe: Recipe, precision: Precision | None = None) -> Recipe:
    """A recipe that says in which numbers it trains.

    Args:
        recipe: as written, perhaps with "auto".
        precision: what "auto" has come to already, elsewhere; None asks this machine.
    """
    if recipe.train.precision != "auto":
        return recipe
    train = recipe.train.model_copy(update={"precision": precision or precision_here(recipe.train)})
    return recipe.model_copy(update={"train": train})


def precision_here(options: Train) -> Precision:
    """The precision of a training on this machine: "auto" is bf16 where that is faster.

    That is on CUDA devices from compute capability 8.0 on, and on CPUs with instructions for it
    (AVX512-BF16 or AMX). Elsewhere bf16 is emulated, on a CPU at tens of times the cost.
    """
    if options.precision != "auto":
        return options.precision
    if on_cpu(options.device):
        return "bf16" if _cpu_has_bf16() else "float32"
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "float32"


def notices(options: Train) -> list[str]:
    """What the user should know of the precision on this machine, a line each."""
    if options.precision == "bf16" and on_cpu(options.device) and not _computes_in_bf16():
        return [
            'This CPU does not compute in bfloat16: with train.precision = "bf16" a step can take '
            "tens of times as long here as with --set train.precision=float32."
        ]
    return []


def _cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bfloat16 that torch knows of."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _computes_in_bf16() -> bool:
    """Whether oneDNN, which multiplies matrices for torch on CPUs, has kernels for it here."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except AttributeError:  # a build without oneDNN, where nothing is known
        return True
