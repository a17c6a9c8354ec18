"""Time and memory of a training file of many rows on its way to token ids.

    .venv/bin/python scripts/load_rows.py OUT.csv 100000 300000 1000000

writes SST-2-like files of so many rows (generated, by the tiny tasks' grammar) to a temporary
folder and measures, in a process of its own for each, CPU seconds of reading them (parsing,
checks, splits, the fingerprint), of encoding them with the embedded tokenizer, and of the same
from the cache; and the process's memory above what it has once everything is imported: its peak,
and what is held at the end. With `cap` the task has max_train_examples=1000.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sparta_bench.data import generated as grammar

FORMATS = ("tsv", "jsonl", "parquet")
COLUMNS = (
    "format", "cap", "rows", "file_mb",
    "read_cpu_s", "encode_cpu_s", "again_cpu_s", "peak_mb", "held_mb",
)  # fmt: skip
ROWS_AT_ONCE = 50_000  # written to a parquet file


def write_files(folder: Path, rows: int, suffix: str) -> None:
    """A training file of so many rows and a validation file of 872."""
    rng = random.Random(0)
    names = {"train": rows, "validation": 872}
    for split, count in names.items():
        stem = "dev" if (suffix, split) == ("tsv", "validation") else split
        _write(folder / f"{stem}.{suffix}", (_row(rng) for _ in range(count)))


def _row(rng: random.Random) -> tuple[str, int]:
    positive = grammar.coin(rng)
    # spaced as SST-2 is: lower case, a blank before the full stop and at the end
    return grammar.judgement(rng, positive).lower().replace(".", " . "), int(positive)


def _write(path: Path, rows: Any) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        kinds = pyarrow.schema([("sentence", pyarrow.string()), ("label", pyarrow.int64())])
        with parquet.ParquetWriter(path, kinds) as writer:
            while chunk := [row for _, row in zip(range(ROWS_AT_ONCE), rows, strict=False)]:
                texts, labels = zip(*chunk, strict=True)
                writer.write_table(pyarrow.table([texts, labels], schema=kinds))
        return
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".tsv":
            file.write("sentence\tlabel\n")
            file.writelines(f"{text}\t{label}\n" for text, label in rows)
        else:
            file.writelines(
                json.dumps({"sentence": text, "label": label}) + "\n" for text, label in rows
            )


def measure(folder: Path, cap: int | None) -> dict[str, float]:
    """CPU seconds, and megabytes above the start, of this process."""
    import pyarrow.parquet  # noqa: F401  # what is imported is not counted

    from sparta_bench.config.compose import compose
    from sparta_bench.runs.assets import AssetCache
    from sparta_bench.runs.job import quiet_libraries

    quiet_libraries()
    limit = f"task.max_train_examples={'null' if cap is None else cap}"
    config = compose(
        ["model=tiny-gemma", "task=sst2", f"task.data_dir={folder}", limit,
         f"cache_dir={folder}/cache{cap}"]
    )  # fmt: skip
    assets = AssetCache()
    assets.tokenizer(config.model, config.task)
    started, before = time.process_time(), _status("VmRSS")
    assets.data_fingerprint(config.task)
    read = time.process_time()
    assets.data(config)
    encoded = time.process_time()
    held, peak = _status("VmRSS"), _status("VmHWM")
    again = AssetCache()
    again.tokenizer(config.model, config.task)
    splits = again.splits(config.task)
    middle = time.process_time()
    again.data(config)
    assert splits is again.splits(config.task)
    return {
        "read_cpu_s": round(read - started, 1),
        "encode_cpu_s": round(encoded - read, 1),
        "again_cpu_s": round(time.process_time() - middle, 1),
        "peak_mb": round((peak - before) / 1e6),
        "held_mb": round((held - before) / 1e6),
    }


def _status(key: str) -> int:
    """Bytes that the kernel counts for this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def main(out: Path, sizes: list[int]) -> None:
    """Measure all formats and sizes, and write a table."""
    found = []
    for suffix in FORMATS:
        for rows in sizes:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                write_files(folder, rows, suffix)
                size = next(folder.glob("train.*")).stat().st_size
                about = {"format": suffix, "rows": rows, "file_mb": round(size / 1e6, 1)}
                for cap in ("", "1000"):
                    words = [sys.executable, __file__, "--measure", str(folder), cap]
                    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
                    found.append({**about, "cap": cap, **json.loads(told)})
                    print(found[-1], file=sys.stderr)
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]) if sys.argv[3] else None)))
    else:
        main(Path(sys.argv[1]), [int(size) for size in sys.argv[2:]])
