"""How long an audit of a model of 110M parameters takes, and what it holds in memory.

    python benchmarks/audit.py --threads 2 --out results/audit-110m.json

BERT-base with random weights, 1,000 examples of 64 tokens in batches of 32: the sensitivity of
every parameter, the figures made of it, and one pruning of all prunable weights. The time of the
forward and backward pass alone, in the same run, says what of it is the audit's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXAMPLES, TOKENS, ROWS = 1000, 64, 32
COMPARED = 4  # batches whose forward and backward pass is timed alone


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Time an audit of a model of 110M parameters.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch is loaded

    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from sagelr.audit import audit, describe
    from sagelr.audit.pruning import Pruner
    from sagelr.jsonfile import write
    from sagelr.provenance import machine, now, versions

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig())
    rows = options.examples // ROWS * ROWS
    tokens = torch.randint(0, model.config.vocab_size, (rows, TOKENS))
    batches = [
        {"input_ids": ids, "labels": torch.randint(0, 2, (len(ids),))} for ids in tokens.split(ROWS)
    ]
    seconds: dict[str, float] = {}
    size = sum(param.numel() * param.element_size() for param in model.parameters()) / 2**20
    model.eval()
    with _timed(seconds, "forward_and_backward"):
        for batch in batches[:COMPARED]:
            model(**batch).loss.backward()
            model.zero_grad()
    seconds["forward_and_backward"] *= len(batches) / COMPARED
    with _timed(seconds, "sensitivity"):
        measured = audit(model, batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KiB, on Linux
    with _timed(seconds, "figures"):
        found = describe(model, measured)
    with _timed(seconds, "pruning"), Pruner(model, measured) as pruner:
        pruned = pruner.prune("unstructured", "sensitivity", "global", 0.5)
    document: dict[str, Any] = {
        "kind": "audit benchmark",
        "created": now(),
        "machine": machine("cpu"),
        "versions": versions(),
        "threads": options.threads,
        "parameters": found["all"]["parameters"],
        "examples": rows,
        "tokens": TOKENS,
        "batch_size": ROWS,
        "pruned": pruned,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "model_mib": round(size, 1),
        "peak_process_mib": round(peak, 1),  # activations and the libraries among it
    }
    for name, value in document["seconds"].items():
        print(f"{name:>22}: {value:8.1f} s")
    print(f"{'model':>22}: {size:8.0f} MiB, at most {peak:.0f} MiB in the process")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write(options.out, document)


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


if __name__ == "__main__":
    main()
