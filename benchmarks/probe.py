"""What the live probe costs: a look, beside a training step of the packaged MiniLM.

    OMP_NUM_THREADS=2 python benchmarks/probe.py --out results/bench/probe.json

Looks and steps in turns, in one process. A look comes every 100 steps by default, so its share of
the training is a hundredth of what it takes in steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from sagelr import SageAdamW, param_groups
from sagelr.bench.training import folder
from sagelr.jsonfile import write
from sagelr.live import EVERY, SageProbe
from sagelr.provenance import machine, now, versions


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Time a look of the live probe.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder())
    optimizer = SageAdamW(param_groups(model, weight_decay=0.01), lr=1e-4)
    tokens, labels = torch.randint(1000, 20000, (32, 64)), torch.randint(0, 2, (32,))
    looks, steps = [], []
    with tempfile.TemporaryDirectory() as scratch:
        probe = SageProbe(
            model, optimizer, file=Path(scratch) / "probe.jsonl", every=1, attach=False
        )
        for _ in range(options.rounds):
            began = time.perf_counter()
            model(input_ids=tokens, labels=labels).loss.backward()
            between = time.perf_counter()
            probe.before_step()
            looked = time.perf_counter()
            optimizer.step()
            optimizer.zero_grad()
            looks.append(looked - between)
            steps.append(time.perf_counter() - began - looks[-1])
        probe.close()
    look, step = statistics.median(looks[3:]), statistics.median(steps[3:])
    share = look / step / EVERY
    print(f"a look {1e3 * look:.1f} ms, a step {1e3 * step:.0f} ms: {share:.3%} of the training")
    if options.out is not None:
        found = {"look_seconds": look, "step_seconds": step, "every": EVERY, "share": share}
        about = {"created": now(), "machine": machine("cpu"), "versions": versions()}
        write(options.out, {"kind": "probe benchmark", **about, **found})


if __name__ == "__main__":
    main()
