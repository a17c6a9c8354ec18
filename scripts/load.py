"""What many records, many runs and many processes cost: the figures in results/load.

    python scripts/load.py records [--records 10000] [--out DIR]
    python scripts/load.py sweep [--runs 1000] [--out DIR]
    python scripts/load.py processes [--processes 10] [--runs 40] [--out DIR]

Each works in a temporary folder and writes one JSON file into DIR (results/load). `sweep` fails if
memory grows by more than `MOST_GROWTH` bytes a run, so it is a leak test too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparta_bench.files import write_json

ROOT = Path(__file__).resolve().parent.parent
PATTERN = "results/tiny/runs/tiny-sst2/tiny-gemma/*/*/result.json"  # what records are made of
MOST_GROWTH = 4096  # bytes a run: beyond that 1,000 runs would take 4 MB more
WARM_UP = 0.2  # share of the runs that fill caches before the slope is taken
SENTENCES = ("a good film", "a bad film", "the film is good", "the film is bad")


def main() -> None:
    """Read the command line and write one file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("records", "sweep", "processes"))
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "load")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.what == "records":
            found = records(work, options.records)
        elif options.what == "sweep":
            found = sweep(work, options.runs or 1000)
        else:
            found = processes(work, options.processes, options.runs or 40)
    write_json(options.out / f"{options.what}.json", found | _where())
    print(json.dumps(found, indent=2))
    if not found["passed"]:
        sys.exit(1)


def _where() -> dict[str, Any]:
    from sparta_bench.records.write import now, processor_name

    return {"date": now(), "device": processor_name(), "processors": os.cpu_count()}


# ---------------------------------------------------------------------------------- records
def records(work: Path, count: int) -> dict[str, Any]:
    """Seconds and peak memory of the commands that read records, `count` of them.

    They are the committed ones of a tiny model with other seeds and rates: 500 settings and 20
    seeds for each.
    """
    patterns = [json.loads(path.read_text()) for path in sorted(ROOT.glob(PATTERN))]
    for number in range(count):
        raw = copy.deepcopy(patterns[number % len(patterns)])
        raw["seed"] = raw["config"]["seed"] = number // len(patterns) % 20
        raw["config"]["train"]["learning_rate"] *= 1 + number // (20 * len(patterns)) / 1000
        raw["run_id"] = f"{number:012x}"
        path = work / "runs" / raw["task"] / raw["model"] / raw["method"] / raw["run_id"]
        path.mkdir(parents=True)
        (path / "result.json").write_text(json.dumps(raw, indent=2))
    found: dict[str, Any] = {"records": count, "bytes": _size(work), "passed": True}
    for words in (["tables"], ["status"], ["report", "--page-only"]):
        found[words[0]] = _command([*words, str(work)])
    report = work / "report" / "report.html"
    found["report_bytes"] = report.stat().st_size
    return found


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _command(words: list[str]) -> dict[str, float]:
    """Median seconds of three runs of the command, start included, and its peak memory."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "sparta_bench.cli", *words],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {"seconds": round(sorted(seconds)[1], 2), "largest_child_so_far_bytes": peak}


# ------------------------------------------------------------------------------------- sweep
def _data(folder: Path) -> Path:
    """A task so small that a run is nothing but overhead."""
    for split, rows in (("train", 48), ("validation", 16)):
        lines = [
            json.dumps({"sentence": SENTENCES[row % 4], "label": row % 2}) for row in range(rows)
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _settings(work: Path) -> list[str]:
    return [
        "task=sst2", f"task.data_dir={_data(work / 'data')}", "task.dev.examples=16",
        "train.max_steps=2", "train.batch_size=8", f"results_dir={work}/results",
        f"cache_dir={work}/cache",
    ]  # fmt: skip


def sweep(work: Path, runs: int) -> dict[str, Any]:
    """Memory after each of many runs of one process, of all four methods in turn."""
    from sparta_bench.config.compose import compose_all
    from sparta_bench.config.sweeps import sweep_jobs
    from sparta_bench.runs.assets import AssetCache
    from sparta_bench.runs.grid import Grid

    seeds = ",".join(map(str, range(-(-runs // 4))))
    methods = "method=sparta,lora,head,full_ft"
    jobs = sweep_jobs([*_settings(work), f"seed={seeds}", methods])[:runs]
    grid = Grid(compose_all(jobs), AssetCache())
    bytes_after: list[int] = []
    faults: list[str] = []

    def sample(outcome: Any) -> None:
        bytes_after.append(_resident())
        if outcome.kind != "done":
            faults.append(outcome.line)

    started = time.perf_counter()
    grid.run_all(sample)
    seconds = time.perf_counter() - started
    first = int(WARM_UP * len(bytes_after))
    slope = float(np.polyfit(range(len(bytes_after) - first), bytes_after[first:], 1)[0])
    return {
        "runs": len(bytes_after),
        "failed": len(faults),
        "seconds": round(seconds, 1),
        "seconds_per_run": round(seconds / len(bytes_after), 3),
        "resident_bytes_first": bytes_after[0],
        "resident_bytes_after_warm_up": bytes_after[first],
        "resident_bytes_last": bytes_after[-1],
        "slope_bytes_per_run": round(slope, 1),
        "resident_bytes_every_tenth": bytes_after[::10],
        "passed": not faults and slope < MOST_GROWTH,
    }


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# --------------------------------------------------------------------------------- processes
def processes(work: Path, count: int, runs: int) -> dict[str, Any]:
    """Many processes at one grid in one folder: each run is made once, and all end well."""
    seeds = ",".join(map(str, range(runs // 2)))
    words = ["-m", *_settings(work), "method=sparta,head", f"seed={seeds}"]
    started = time.perf_counter()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "sparta_bench.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(count)
    ]
    outs = [worker.communicate()[0] for worker in workers]
    seconds = time.perf_counter() - started
    made = [out.count("s of training →") for out in outs]
    there = len(list((work / "results").rglob("result.json")))
    codes = [worker.returncode for worker in workers]
    temporary = [path.name for path in (work / "results").rglob("*.tmp")]
    return {
        "processes": count,
        "runs": 2 * (runs // 2),
        "seconds": round(seconds, 1),
        "exit_codes": codes,
        "runs_made_by_each": made,
        "records": there,
        "temporary_files_left": temporary,
        "passed": set(codes) == {0} and sum(made) == there == 2 * (runs // 2) and not temporary,
    }


if __name__ == "__main__":
    main()
