"""A record: its constants, what identifies a run, and its values as they are read. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

DEFAULT = Path("results")  # where commands look that no folder is given to
SCHEMA = 1
PROTOCOL = 4  # counted up when the code changes in a way that changes outcomes
MERGE, MERGE_SCHEMA = "merge.json", 1  # of two merged runs (analysis/measure_pairs)
RACE, RACE_SCHEMA = "race.json", 1  # of a decided race, in a folder beside its runs
STATUSES = ("completed", "failed", "interrupted", "stopped")
RESULT = "result.json"  # in a run's folder
LOCK = ".lock"  # beside it, held by the process that is at it
SAVED = {"adapter": "adapter", "full": "model"}  # folders beside it, by `save`
RUNNING = "running.json"  # the record before there is anything in it
METRICS = ("loss", "accuracy", "mcc")
OVERLAP = ("shared", "shared_by_chance", "conflicts")  # of a merge's, besides `changed`

# How the reasons begin for which a record is not taken, and not replaced either: it may be good.
NOT_TO_REPLACE = ("schema", "cannot be read")
INCOMPLETE = "lacks a key of a record, or has one of another type"

# Where things are and what is kept, not what comes out. What the data and the base model are is in
# their fingerprints, so that the same files elsewhere are the same run.
NOT_IN_RUN_ID = {
    "": (
        *("results_dir", "cache_dir", "force", "save", "device", "search"),
        *("runs_at_once", "logger"),
    ),
    "model": ("path", "tokenizer", "hub_id", "revision", "shape", "embedded"),
    "task": ("hub", "data", "data_dir", "label_column", "tsv", "generated", "on_bad_row"),
    "train": ("checkpoint_every", "sharding", "eval_first"),
}


def identity_of(config: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """A configuration without the keys that cannot change an outcome. The number of processes that
    share a run is added where it can: where there is dropout, which each draws for itself, or
    stochastic rounding of what is sharded."""
    kept = {key: value for key, value in config.items() if key not in NOT_IN_RUN_ID[""]}
    for group in ("model", "task", "train"):
        drop = NOT_IN_RUN_ID[group]
        kept[group] = {key: value for key, value in kept[group].items() if key not in drop}
    if kept["model"]["kind"] == "base":
        kept["task"].pop("prompt", None)  # not read
    for settings, key in ((kept, "limit"), (kept["train"], "eval_tokens")):
        if settings.get(key) is None:  # as in records that are older than the setting
            settings.pop(key, None)
    if kept["task"].get("max_train_examples") is None:
        kept["task"].pop("cap_takes", None)  # not read
    method = kept["method"]
    if method.get("pattern") == "scalars":  # as before there was another
        kept["method"] = {key: value for key, value in method.items() if key != "pattern"}
    lora_dropout = method["lora_dropout"] if method["name"] == "lora" else 0
    train = config["train"]
    # rows that are sharded are rounded stochastically by other random bits in each process
    by_rows = train.get("sharding", "none") != "none" and train["trained_dtype"] == "bfloat16"
    if processes > 1 and (train["dropout"] > 0 or lora_dropout > 0 or by_rows):
        kept["processes"] = processes
    if by_rows:
        kept["train"]["sharding"] = train["sharding"]
    return kept


class Cell(NamedTuple):
    """A cell of a table: what is compared, whatever the settings it was trained with.

    `method` is the record's; where it differs from the paper's it says how: `sparta_vo` for the
    authors' script, `sparta on …` and `lora r=…` for other choices.
    """

    model: str
    task: str
    method: str
    density: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """One `result.json`. `raw` is the whole of it; scores are None unless it is completed."""

    path: Path
    raw: dict[str, Any]
    cell: Cell
    protocol: str  # what must agree for two records to be compared: base model, data, method
    setting: str  # what must agree for two records to be runs of one mean: all but the seed

    @property
    def run_id(self) -> str:
        return str(self.raw["run_id"])

    @property
    def status(self) -> str:
        return str(self.raw["status"])

    @property
    def seed(self) -> int:
        return int(self.raw["seed"])

    @property
    def train(self) -> dict[str, Any]:
        """The resolved training settings, `config.train`."""
        return dict(self.raw["config"]["train"])

    def score(self, split: str, metric: str) -> float:
        """`dev` or `test`; loss in nats per example, accuracy 0 to 1, mcc -1 to 1."""
        return float(self.raw[split][metric])


@dataclass(frozen=True, slots=True)
class Excluded:
    """A record that no table uses, and why; `cell` is None where it could not be read."""

    path: Path
    reason: str
    cell: Cell | None = None


@dataclass(frozen=True)
class Setting:
    """A setting that took part in a race: `config.train` of its runs, and their run_ids by seed,
    the first one's, on which the settings were compared, first."""

    train: dict[str, Any]
    run_ids: dict[int, str]

    @property
    def first(self) -> str:
        return next(iter(self.run_ids.values()))
