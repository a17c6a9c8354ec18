"""What a decided race has compared: `race.json` in a folder beside its runs. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparta_bench.errors import InputError
from sparta_bench.files import hash_of, json_of, write_json
from sparta_bench.records.read import MISSHAPEN, files_below
from sparta_bench.text import counted

RACE, SCHEMA = "race.json", 1


@dataclass(frozen=True)
class Setting:
    """A setting that took part: `config.train` of its runs, and their run_ids by seed, the first
    one's first."""

    train: dict[str, Any]
    run_ids: dict[int, str]

    @property
    def first(self) -> str:
        """The run on which the settings were compared."""
        return next(iter(self.run_ids.values()))


def write_race(method_folder: Path, settings: Iterable[Setting]) -> None:
    """Write a race down in the folder of its method's runs. Who ran it too writes the same."""
    listed = [
        {
            "train": setting.train,
            "runs": [{"seed": seed, "run_id": run_id} for seed, run_id in setting.run_ids.items()],
        }
        for setting in settings
    ]
    folder = method_folder / f"race-{hash_of(str(listed), 12)}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RACE, {"schema": SCHEMA, "settings": listed})


def read_races(folders: Iterable[Path]) -> list[list[Setting]]:
    """The settings of every race below the folders; raise InputError if a file holds none."""
    paths = sorted(Path(name) for folder in folders for name in files_below(folder, RACE))
    return [_read(path) for path in paths]


def _read(path: Path) -> list[Setting]:
    try:
        content = json_of(path)
        if content["schema"] != SCHEMA:
            raise InputError(f"{path}: is of another schema than {SCHEMA}; move it away")
        return [
            Setting(
                dict(one["train"]), {int(run["seed"]): str(run["run_id"]) for run in one["runs"]}
            )
            for one in content["settings"]
            if one["runs"]
        ]
    except (OSError, ValueError, *MISSHAPEN) as error:
        raise InputError(f"{path}: is no race's file ({error}); move it away") from None


def settings_text(statuses: Iterable[str]) -> str:
    """`21 settings: 8 completed, 9 stopped, 4 not needed`, from the status of each on its first
    seed; empty where it has no record."""
    counts = Counter(status or "not needed" for status in statuses)
    order = ("completed", "stopped", "failed", "interrupted", "not needed")
    parts = [f"{counts[status]:,} {status}" for status in order if counts[status]]
    return f"{counted(counts.total(), 'setting')}: {', '.join(parts)}"
