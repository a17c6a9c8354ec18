"""Reading records, of runs, merges and races, as they lie on disk. No torch."""

from __future__ import annotations

import gc
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from sparta_bench.errors import InputError
from sparta_bench.files import json_of, why_no_folder
from sparta_bench.records import record as layout
from sparta_bench.records.record import INCOMPLETE, METRICS, RESULT, Cell, Excluded, Record, Setting
from sparta_bench.text import counted

# Settings of a task that older records lack, with the values that are what was done then.
LATER = {
    "data": None, "label_column": "label", "test_examples": None, "cap_takes": "first",
    "truncate_eval": False,
}  # fmt: skip
# what reading a key that is not there, or of another type, raises
MISSHAPEN = (KeyError, TypeError, AttributeError, IndexError, OverflowError)


def read_json(folder: Path) -> dict[str, Any] | None:
    """The record in a run's folder; None if there is none that is whole and of this version."""
    record = look_into(folder)
    return None if isinstance(record, str) else record


def look_into(folder: Path) -> dict[str, Any] | str | None:
    """The record in a run's folder; the reason why it is not whole; None if there is none."""
    path = folder / RESULT
    if not path.exists():
        return None
    record = read_record(path)
    if isinstance(record, str):
        return record
    error = record.raw.get("error")
    says_why = isinstance(error, dict) and isinstance(error.get("message"), str)
    lacks_time = record.status == "completed" and seconds_of(record.raw) is None
    return INCOMPLETE if lacks_time or (record.status == "failed" and not says_why) else record.raw


def read_records(folders: Iterable[Path]) -> tuple[list[Record], list[Excluded]]:
    """Every `result.json` below the folders, in the order of their paths.

    A file that is no record of this version is excluded with the reason, as is the second copy of a
    run: the completed one stays, or else the one beside which there is what it has saved.
    """
    names = sorted(name for folder in folders for name in files_below(folder, RESULT))
    collecting = gc.isenabled()
    gc.disable()  # records are no garbage, and looking for it takes a third of the time
    try:
        read = [(path, read_record(path)) for path in map(Path, names)]
    finally:
        if collecting:
            gc.enable()
    records: dict[str, Record] = {}
    excluded: list[Excluded] = []
    for path, record in read:
        if isinstance(record, str):
            excluded.append(Excluded(path, record))
            continue
        # a run that was cut off or failed may have been run again elsewhere
        other = records.setdefault(record.run_id, record)
        if other is not record:
            kept, second = (record, other) if _worth(record) > _worth(other) else (other, record)
            records[record.run_id] = kept
            excluded.append(Excluded(second.path, "a second copy of a run", second.cell))
    return list(records.values()), excluded


def _worth(record: Record) -> tuple[bool, bool]:
    return record.status == "completed", saved_by(record) is not None


def saved_by(record: Record) -> Path | None:
    """The folder with what a run trained, if it is there."""
    folders = (record.path.parent / name for name in layout.SAVED.values())
    return next((folder for folder in folders if folder.is_dir()), None)


def only_own(folders: Sequence[Path]) -> str:
    """Say that a command which was given no folder has looked at `own_folders` alone."""
    names = " and ".join(map(str, folders))
    return f"of {names} alone; given a folder, such as {layout.DEFAULT}, all records below it count"


def folders_of(command: str, given: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The folders that a command is about, and those in which its records are: those given, or
    `DEFAULT` and its `own_folders`. Raises InputError for those that are not there."""
    folders = list(given) or [layout.DEFAULT]
    problems = [f"{command}: {one}: {why}" for one in folders if (why := why_no_folder(one))]
    if problems:
        raise InputError(*problems)
    return folders, folders if given else own_folders(layout.DEFAULT)


def own_folders(results: Path) -> list[Path]:
    """The folders of a results folder's own runs and merges, without other collections of records
    that lie in it; the whole folder where it has none of its own."""
    own = [results / name for name in ("runs", "merges") if (results / name).is_dir()]
    return own or [results]


def files_below(folder: Path, name: str) -> list[str]:
    """The paths of all files of that name."""
    walk = os.walk(folder)  # thousands of texts sort faster than paths
    return [os.path.join(parent, name) for parent, _, files in walk if name in files]  # noqa: PTH118


def read_record(path: Path) -> Record | str:
    """The record in a file, or the reason why it holds none."""
    try:
        return record_of(path, json_of(path))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "is no JSON"
    except MISSHAPEN:
        return INCOMPLETE


def read_merge(path: Path) -> dict[str, Any] | str:
    """The record of two merged runs in a file, or the reason why it holds none."""
    try:
        raw = json_of(path)
        if not isinstance(raw, dict) or raw.get("schema") != layout.MERGE_SCHEMA:
            return f"is of another schema than {layout.MERGE_SCHEMA}"
        rule, overlap = raw["rule"], raw["overlap"]
        for key in ("alone", "merged", *(() if raw["thinned"] is None else ("thinned",))):
            splits = [raw[key][number][split] for number in (0, 1) for split in ("dev", "test")]
            if not all(math.isfinite(split[name]) for split in splits for name in METRICS):
                return f"{key} holds scores that are not finite"
        _text(rule["how"]), _text(raw["merge_id"]), _density(rule["keep"])
        for run in (raw["runs"][0], raw["runs"][1]):
            _text(run["run_id"]), _text(run["task"])
            if not isinstance(run["seed"], int):
                raise TypeError
        numbers = [*overlap["changed"], *(overlap[key] for key in layout.OVERLAP)]
        if len(overlap["changed"]) != 2 or not all(map(math.isfinite, numbers)):
            raise TypeError
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "is no JSON"
    except MISSHAPEN:
        return "lacks a key of a merge's record, or has one of another type"
    return raw


def read_races(folders: Iterable[Path]) -> list[list[Setting]]:
    """The settings of every race below the folders; raise InputError if a file holds none."""
    races = []
    for name in sorted(Path(name) for one in folders for name in files_below(one, layout.RACE)):
        try:
            content = json_of(name)
            if content["schema"] != layout.RACE_SCHEMA:
                wanted = layout.RACE_SCHEMA
                raise InputError(f"{name}: is of another schema than {wanted}; move it away")
            settings = []
            for one in content["settings"]:
                if one["runs"]:
                    ids = {int(run["seed"]): str(run["run_id"]) for run in one["runs"]}
                    settings.append(Setting(dict(one["train"]), ids))
        except (OSError, ValueError, *MISSHAPEN) as error:
            raise InputError(f"{name}: is no race's file ({error}); move it away") from None
        races.append(settings)
    return races


def settings_text(statuses: Iterable[str]) -> str:
    """`21 settings: 8 completed, 9 stopped, 4 not needed`, from the status of each on its first
    seed; empty where it has no record."""
    counts = Counter(status or "not needed" for status in statuses)
    order = ("completed", "stopped", "failed", "interrupted", "not needed")
    parts = [f"{counts[status]:,} {status}" for status in order if counts[status]]
    return f"{counted(counts.total(), 'setting')}: {', '.join(parts)}"


def seconds_of(raw: Mapping[str, Any]) -> float | None:
    """What a completed run took: training, evaluations and features; None if it does not say."""
    try:
        training = raw["training"]
        features = training.get("features_seconds") or 0.0  # not there in older records
        seconds = float(training["seconds"] + training["evaluation_seconds"] + features)
    except (*MISSHAPEN, ValueError):
        return None
    return seconds if 0 <= seconds < 1e100 else None  # sums must not overflow


def record_of(path: Path, raw: Any) -> Record | str:
    """A record from its JSON, or the reason why it is none. Raises one of `MISSHAPEN` if keys are
    missing or of another type."""
    if not isinstance(raw, dict):
        return "is no JSON object"
    if not isinstance(raw["schema"], int):
        return INCOMPLETE
    if raw["schema"] != layout.SCHEMA:
        return f"schema {str(raw['schema'])[:20]}; this version reads schema {layout.SCHEMA}"
    if raw["status"] not in layout.STATUSES:
        return f"status {str(raw['status'])[:20]}"
    if not isinstance(raw["seed"], int) or not isinstance(raw["run_id"], str):
        return "seed or run_id is of another type"
    if raw["status"] == "completed":
        for split, metric in product(("dev", "test"), METRICS):
            if not math.isfinite(raw[split][metric]):
                return f"{split}.{metric} is not finite"
        _check_numbers(raw["parameters"], "total", "trainable", "head")
        _check_numbers(raw["data"], "train", "train_dropped", "dev", "test")
    config = raw["config"]
    _check_numbers(config["train"], "learning_rate", "batch_size", "epochs")
    if raw["status"] == "stopped":  # what it cost is counted
        _check_numbers(raw["training"], "steps")
        _check_numbers(raw["data"], "train")
        if min(config["train"]["batch_size"], config["train"]["epochs"], raw["data"]["train"]) <= 0:
            return "of a training without steps"
    method = method_named(_text(raw["method"]), config["method"])
    cell = Cell(_text(raw["model"]), _text(raw["task"]), method, _density(raw["density"]))
    environment, data = raw["environment"] or {}, raw["data"] or {}
    processes = environment.get("processes")
    identity = layout.identity_of(config, processes if isinstance(processes, int) else 1)
    compared = {
        "base": raw["base_model"]["fingerprint"],
        "model": {**identity["model"], "dtype": None},
        "task": {k: v for k, v in identity["task"].items() if (k, v) not in LATER.items()},
        "method": identity["method"],
        "counts": [data.get("dev"), data.get("test")],
    }
    setting = {
        "train": identity["train"],
        "dtypes": environment.get("dtypes"),
        "protocol": raw.get("protocol"),
        "processes": identity.get("processes", 1),
    }
    as_text = partial(json.dumps, sort_keys=True, separators=(",", ":"))
    protocol = as_text(compared)
    return Record(path, raw, cell, protocol, protocol + as_text(setting))


def _check_numbers(part: Any, *keys: str | int) -> None:
    for key in keys:
        if type(part[key]) not in (int, float) or not math.isfinite(part[key]):
            raise TypeError


def method_named(name: str, settings: Mapping[str, Any]) -> str:
    """Return the method's name as tables and lines have it: one that chooses other scalars than the
    paper's has a name of its own."""
    if name == "sparta":
        if settings.get("pattern", "scalars") != "scalars":
            return f"sparta by {settings['pattern']}"
        targets, density_of = settings["targets"], settings["density_of"]
        if (targets, density_of) == (["v_proj", "o_proj"], "backbone"):
            return "sparta_vo"
        if (targets, density_of) != ("all", "sampled"):
            of = ", density of the backbone" if density_of == "backbone" else ""
            return f"sparta on {targets if isinstance(targets, str) else ' '.join(targets)}{of}"
    if name == "lora" and (settings["r"], settings["targets"]) != (8, ["q_proj", "v_proj"]):
        return f"lora r={settings['r']} on {' '.join(settings['targets'])}"
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _density(value: Any) -> float | None:
    if value is not None:
        _check_numbers([value], 0)
    return None if value is None else float(value)
