"""Run each method once on CUDA at a real model's shape with random weights, and print what it took.

    python scripts/cuda_check.py [--model gemma-2b] [--rows 8] [--tokens 256] [--steps 5]

Needs a GPU, no download. Prints one JSON object per method: loss before and after, seconds per
step, peak memory.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoModel

from sparta_bench.compose import compose
from sparta_bench.data.encode import Encoded
from sparta_bench.methods import prepare
from sparta_bench.models.classifier import Classifier, random_head
from sparta_bench.models.precision import precision_of
from sparta_bench.models.source import load_architecture
from sparta_bench.training.loop import Training

METHODS = ("head", "lora", "sparta", "full_ft")


class Quiet:
    """Keeps nothing; the figures are printed at the end."""

    def step(self, step: int, loss: float, rate: float) -> None: ...

    def evaluated(self, step: int, scores: object, best: bool) -> None: ...


def check(method: str, model: str, rows: int, tokens: int, steps: int) -> dict[str, object]:
    """A few steps of one method on random tokens, always the same batch."""
    config = compose(
        [
            f"model={model}",
            f"method={method}",
            "task=sst2",
            f"train.batch_size={rows}",
            f"train.max_steps={steps}",
            f"train.epochs={steps}",
            f"train.eval_every={steps}",
        ]
    )
    accelerator = Accelerator()
    precision = precision_of(config, accelerator.device)
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    with accelerator.device:
        backbone = AutoModel.from_config(
            load_architecture(config.model), dtype=precision.model_dtype
        )
    head = random_head(2, backbone.config.hidden_size, 0).to(accelerator.device)
    classifier = Classifier(backbone, head.to(precision.trained_dtype)).requires_grad_(False)
    trained = prepare(classifier, config, precision)
    draw = np.random.default_rng(0)
    ids = [draw.integers(10, 30_000, tokens).astype(np.int32) for _ in range(rows)]
    data = Encoded(ids, [row % 2 for row in range(rows)])
    training = Training(accelerator, classifier, trained, data, data, config.train, 0)
    started = time.perf_counter()
    progress = training.train(Quiet())
    torch.cuda.synchronize()
    return {
        "device": torch.cuda.get_device_name(),
        "model": model,
        "method": method,
        "dtypes": precision.as_dict(),
        "rows": rows,
        "tokens": tokens,
        "trainable": trained.trainable,
        "dev_loss": [entry["dev_loss"] for entry in progress.history],
        "train_seconds_per_step": progress.train_seconds / progress.step,
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(),
        "deltas_lost_to_rounding": trained.lost_to_rounding(),
    }


def main() -> None:
    """Check the methods named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gemma-2b")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("cuda_check: torch sees no CUDA device here")
    for method in options.methods:
        result = check(method, options.model, options.rows, options.tokens, options.steps)
        print(json.dumps(result), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
