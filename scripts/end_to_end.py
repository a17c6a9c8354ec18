"""Whole processes from start to scores: `sparta-bench` beside plain `Trainer` scripts.

    python scripts/end_to_end.py --model DIR --data-dir GLUE/SST-2 [--kind instruct] [--train 8000]

Every round runs each contender once, in turn, as a process of its own, on the same texts, with the
same batch, epochs and number of evaluations. Seconds are wall time; ratios are of medians over the
rounds. The scripts' texts are written once beforehand, from the splits of `task=sst2`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sparta_bench.config.compose import compose
from sparta_bench.data.examples import render
from sparta_bench.data.splits import Splits, load_splits
from sparta_bench.files import write_json

SCRIPTS = Path(__file__).resolve().parent
RATES = {"full_ft": 1e-4, "lora": 1e-3, "sparta": 1e-3, "peft-sparta": 1e-3}
EVALUATIONS = 4
CONTENDERS = (
    *("sparta", "lora", "full_ft"),
    *("trainer-peft-sparta", "trainer-lora", "trainer-full_ft"),
)


def main() -> None:
    """Read the command line, run the rounds, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--kind", choices=("base", "instruct"), default="base")
    parser.add_argument("--train", type=int, default=8000)
    parser.add_argument("--dev", type=int, default=1000)
    parser.add_argument("--density", default="0.05")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--contenders",
        default="sparta,lora,full_ft,trainer-peft-sparta,trainer-lora,trainer-full_ft",
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    contenders = options.contenders.split(",")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    scores: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        settings = [
            "task=sst2", f"task.data_dir={options.data_dir.resolve()}", "model=local",
            f"model.path={options.model.resolve()}", f"model.kind={options.kind}",
            f"task.max_train_examples={options.train}", f"task.dev.examples={options.dev}",
            "train.epochs=1", "train.batch_size=32", "train.patience=0", "train.dropout=0",
            f"train.eval_every={max(options.train // 32 // EVALUATIONS, 1)}", "model.dtype=float32",
        ]  # fmt: skip
        _write_texts(settings, work)
        for number in range(options.rounds):
            for name in contenders:
                out = work / f"{name}-{number}"
                command = (
                    _trainer(name.removeprefix("trainer-"), options, work, out)
                    if name.startswith("trainer-")
                    else _ours(name, settings, options.density, out)
                )
                out.mkdir()
                with (out / "log").open("w") as log:
                    start = time.perf_counter()
                    ended = subprocess.run(command, stdout=log, stderr=log, env=_environment(work))
                    seconds[name].append(time.perf_counter() - start)
                if ended.returncode:
                    sys.exit(f"{name} failed:\n{(out / 'log').read_text()[-3000:]}")
                scores[name] = _scores(out)
                print(f"{number} {name}: {seconds[name][-1]:.1f} s, {scores[name]}", flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    report = {
        "what": f"SST-2, {options.train} examples, {options.kind} inputs, one epoch, batch 32, "
        f"{EVALUATIONS} evaluations of {options.dev} dev examples, 872 test examples",
        "model": options.model.name,
        "density": float(options.density),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "seconds": seconds,
        "median_seconds": medians,
        "scores": scores,
    }
    ours = [name for name in contenders if not name.startswith("trainer-")]
    for name in ours:
        for other in contenders:
            if other not in ours:
                print(f"{name} over {other}: {medians[name] / medians[other]:.2f}")
    if options.out:
        write_json(options.out, report)


def _write_texts(settings: list[str], work: Path) -> None:
    config = compose(settings)
    splits: Splits = load_splits(config.task)
    for name in ("train", "dev", "test"):
        examples = getattr(splits, name)
        with (work / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            for texts, label in zip(examples.texts, examples.labels, strict=True):
                text = render(texts, config.task, config.model.kind)
                lines.write(json.dumps({"text": text, "label": label}) + "\n")


def _ours(method: str, settings: list[str], density: str, out: Path) -> list[str]:
    more = {"sparta": [f"method.density={density}"], "lora": ["method.lora_dropout=0"]}.get(
        method, []
    )
    return [
        sys.executable, "-m", "sparta_bench.cli", *settings, f"method={method}", *more,
        f"train.learning_rate={RATES[method]}", f"results_dir={out}", "train.share_prefix=auto",
    ]  # fmt: skip


def _trainer(method: str, options: argparse.Namespace, work: Path, out: Path) -> list[str]:
    return [
        sys.executable, str(SCRIPTS / "trainer_baseline.py"), "--model", str(options.model),
        "--data", str(work), "--method", method, "--density", options.density, "--rate",
        str(RATES[method]), "--eval-every", str(max(options.train // 32 // EVALUATIONS, 1)),
        "--out", str(out),
    ]  # fmt: skip


def _environment(work: Path) -> dict[str, str]:
    # tokens that an earlier round kept would make the next one cheaper
    fresh = tempfile.mkdtemp(dir=work)
    return {**os.environ, "XDG_CACHE_HOME": fresh, "HF_HUB_OFFLINE": "1"}


def _scores(out: Path) -> dict[str, Any]:
    own = out / "scores.json"
    if own.exists():
        return dict(json.loads(own.read_text()))
    record = json.loads(next(out.rglob("result.json")).read_text())
    return {
        "test_loss": record["test"]["loss"],
        "test_accuracy": record["test"]["accuracy"],
        "trained": record["parameters"]["trainable"],
        "training_seconds": record["training"]["seconds"],
    }


if __name__ == "__main__":
    main()
