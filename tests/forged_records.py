"""Records as the runner writes them, without running anything. Forged for tests of tables only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sparta_bench.records.record import PROTOCOL
from sparta_bench.tables.protocol import BACKBONE

DEV_AND_TEST = {
    "cola": (1000, 1043), "mnli": (10000, 19647), "mrpc": (408, 1725), "qnli": (5000, 5463),
    "qqp": (5000, 40430), "rte": (300, 277), "sst2": (1000, 872), "imdb": (5000, 20000),
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "full_ft": {},
    "sparta": {"targets": "all", "density_of": "sampled"},
    "lora": {"r": 8, "alpha": 16.0, "targets": ["q_proj", "v_proj"], "lora_dropout": 0.1},
    "head": {},
}


def scores(loss: float, accuracy: float, mcc: float = 0.0) -> dict[str, float]:
    return {"loss": loss, "accuracy": accuracy, "mcc": mcc}


def _epochs_and_patience(model: str, task: str, method: str) -> dict[str, float]:
    """Those of the paper: 2 on GLUE (Table 13), on IMDB as Table 12 has it."""
    if task != "imdb" or method in ("full_ft", "sparta"):
        stops_early = task == "imdb" and model.startswith("mistral")
        return {"epochs": 10.0, "patience": 4} if stops_early else {"epochs": 2.0, "patience": 0}
    if method == "head" and model.startswith("gemma"):
        return {"epochs": 4.0, "patience": 0}
    return {"epochs": 3.0, "patience": 0}


def forge(
    model: str = "some-model",
    task: str = "sst2",
    method: str = "sparta",
    density: float | None = None,
    *,
    seed: int = 0,
    dev: float = 0.3,
    test: dict[str, float] | None = None,
    rate: float = 1e-4,
    status: str = "completed",
    trainable: int = 1000,
    **changes: Any,
) -> dict[str, Any]:
    """A record; `dev` is its dev loss. `changes` are dotted keys with a double underscore for a
    dot, such as `config__task__max_train_examples=16000`."""
    tiny = model.startswith("tiny-")
    if method == "sparta" and density is None:
        density = 0.05
    sizes = DEV_AND_TEST.get(task, (300, 500))
    total = BACKBONE.get(model, 3_148_224)
    done = status == "completed"
    config = {
        "model": {
            "name": model, "hub_id": None, "revision": "main", "path": None, "tokenizer": None,
            "kind": "instruct" if model.endswith("-it") else "base", "dtype": "auto",
            "embedded": tiny, "shape": None,
        },
        "task": {
            "name": task, "hub": None, "data_dir": None, "tsv": None,
            "generated": task.removeprefix("tiny-") if task.startswith("tiny-") else None,
            "labels": ["no", "yes"], "max_train_examples": None, "on_bad_row": "error",
            "max_train_tokens": 384 if task == "imdb" else 256, "prompt": {"answers": ["No"]},
        },
        "method": {"name": method, **METHODS[method]}
        | ({"density": density} if method == "sparta" else {}),
        "train": {
            "learning_rate": rate, "batch_size": 32, "max_steps": None, "checkpoint_every": None,
            **_epochs_and_patience(model, task, method),
        },
        "seed": seed, "device": "auto", "results_dir": "results", "cache_dir": None,
        "force": False, "save": "none",
    }  # fmt: skip
    record: dict[str, Any] = {
        "schema": 1, "protocol": PROTOCOL, "status": status,
        "error": None if done else {"type": "OutOfMemoryError", "message": "", "traceback": ""},
        "model": model, "task": task, "method": method, "density": density, "seed": seed,
        "config": config, "base_model": {"name": model, "fingerprint": "0123456789abcdef"},
        "data": {
            "train": 2000, "train_dropped": 10, "dev": sizes[0], "test": sizes[1],
            "max_train_tokens": 256,
        },
        "parameters": {"total": total + 4096, "trainable": trainable, "head": 4096},
        "dev": scores(dev, 0.9, 0.5) if done else None,
        "test": (test or scores(0.25, 0.9, 0.5)) if done else None,
        "training": None, "history": [],
        "environment": {"dtypes": {"model": "float32", "trained": "float32"}},
    }  # fmt: skip
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = record
        for name in parents:
            place = place[name]
        place[last] = value
    text = json.dumps(record, sort_keys=True)
    return {**record, "run_id": hashlib.sha256(text.encode()).hexdigest()[:12]}


def write(folder: Path, *records: dict[str, Any]) -> Path:
    """The records where the runner would put them below `folder`, which is returned."""
    for record in records:
        parts = [str(record[key]) for key in ("task", "model", "method", "run_id")]
        place = Path(folder, "runs", *parts)
        place.mkdir(parents=True, exist_ok=True)
        (place / "result.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    return folder


def many(number: int) -> list[dict[str, Any]]:
    """Records of whole sweeps: models, tasks, rates and seeds in turn, as large as real ones.

    A real record has 5,700 bytes; the rest of it is stood in for by a text.
    """
    history = [
        {"step": step, "epoch": step / 8, "train_loss": 0.1, "dev_loss": 0.1 * step,
         "dev_accuracy": 0.9, "dev_mcc": 0.5, "learning_rate": 1e-4}
        for step in range(9)
    ]  # fmt: skip
    lines = [("full_ft", None), ("lora", None), ("head", None)]
    lines += [("sparta", density) for density in (0.05, 0.005, 0.000465)]
    records = []
    for index in range(number):
        rest, seed = divmod(index, 3)
        rest, rate = divmod(rest, 21)
        rest, line = divmod(rest, len(lines))
        rest, task = divmod(rest, 7)
        model = list(BACKBONE)[rest % 4]
        name = ("qnli", "rte", "sst2", "qqp", "mnli", "mrpc", "cola")[task]
        method, density = lines[line]
        record = forge(
            model, name, method, density, seed=seed, dev=0.3 + rate / 100, rate=(rate + 1) * 1e-5,
            history=history, environment__text="x" * 2500,
        )  # fmt: skip
        records.append(record)
    return records
