"""What ten minutes on a CUDA GPU can tell: results/cuda/NAME, part by part, most valuable first.

    python scripts/gpu_session.py NAME [--model DIR --data DIR] [--only PART] [key=value ...]
    python scripts/gpu_session.py NAME --toy      # the same at toy size, on a CPU

Needs no network. Each part is a process of its own with a time limit, and writes PART.json and
PART.md after each figure that it has found; so a session that is cut off keeps what it has learnt.
A part that fails is recorded with its error, and the next one runs. `real` trains every method on
the model folder given with --model and the GLUE folder given with --data; key=value goes to its
runs (model.kind=instruct, for one).
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sparta_bench.files import json_of, whole_file, write_json  # noqa: E402
from sparta_bench.paper import PAPER_DENSITIES  # noqa: E402

# A model in Gemma's proportions on which every part takes seconds.
TOY = (
    "model=gemma-2b",
    "model.name=toy-gemma",
    "model.shape.vocab_size=200",
    "model.shape.hidden_size=32",
    "model.shape.intermediate_size=64",
    "model.shape.num_hidden_layers=2",
    "model.shape.num_attention_heads=2",
    "model.shape.head_dim=16",
    "device=cpu",
)
# Layer shapes (out_features, in_features) of gemma-2b and mistral-7b.
SHAPES = (
    (2048, 2048), (256, 2048), (16384, 2048), (2048, 16384),
    (4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336),
)  # fmt: skip
TOY_SHAPES = ((32, 64), (48, 16))
# Of the norm of the difference to a product in float64, over that product's norm.
GRADIENT_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-5}  # both are summed in float32
# Rates of `real`, by experience with small models; none was searched.
REAL_RUNS = (
    ("full_ft", ("train.learning_rate=2e-5",)),
    ("lora", ("train.learning_rate=3e-4",)),
    ("sparta", ("method.density=0.05", "train.learning_rate=2e-4")),
    ("sparta", ("method.density=0.005", "train.learning_rate=5e-4")),
    ("sparta", ("method.density=0.0005", "train.learning_rate=2e-3")),
    ("head", ("train.learning_rate=1e-3",)),
)


# ------------------------------------------------------------------------------ what is kept
class Findings:
    """What a part has found so far; on the disk after each row."""

    def __init__(self, folder: Path, part: str) -> None:
        self.folder, self.part = folder, part
        self.values: dict[str, Any] = {"part": part, "status": "running", "tables": {}}
        self.write()

    def add(self, table: str, row: dict[str, Any]) -> None:
        self.values["tables"].setdefault(table, []).append(row)
        self.write()

    def note(self, **values: Any) -> None:
        self.values |= values
        self.write()

    def write(self) -> None:
        write_report(self.folder, self.part, self.values)


def write_report(folder: Path, part: str, values: dict[str, Any]) -> None:
    """`PART.json`, and the same as Markdown."""
    write_json(folder / f"{part}.json", values)
    lines = [f"# {part}: {values['status']}", ""]
    notes = {name: value for name, value in values.items() if name not in ("part", "tables")}
    lines += [f"- {name}: {_cell(value)}" for name, value in notes.items() if name != "status"]
    for title, rows in values["tables"].items():
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]
    with whole_file(folder / f"{part}.md") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(one)}" for name, one in value.items())
    return str(value).replace("\n", " ").replace("|", "/")


@dataclass(frozen=True)
class Task:
    """What a part is given."""

    findings: Findings
    toy: bool
    model: Path | None
    data: Path | None
    overrides: list[str]

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu" if self.toy else "cuda")

    def settings(self, model: str, task: str) -> list[str]:
        """Overrides of a model with random weights; the toy in its place."""
        return [*(TOY if self.toy else (f"model={model}", "device=cuda")), f"task={task}"]


# ----------------------------------------------------------------------------------- correct
def correct(task: Task) -> None:
    """Kernels at real shapes against plain torch; then the tests that need a GPU."""
    import torch

    from sparta_bench.sparta import kernels
    from sparta_bench.sparta.merge import rounded_sum
    from sparta_bench.sparta.sample import sample_indices

    wrong = 0
    tokens = 24 if task.toy else 1000
    for outs, ins in TOY_SHAPES if task.toy else SHAPES:
        for density in PAPER_DENSITIES:
            indices = sample_indices(outs * ins, density, 0, f"{outs}x{ins}").to(task.device)
            for dtype in (torch.float32, torch.bfloat16):
                draw = torch.Generator(task.device).manual_seed(0)
                options: Any = {"generator": draw, "device": task.device}
                grad = torch.randn(tokens, outs, **options).to(dtype)
                x = torch.randn(tokens, ins, **options).to(dtype)
                weight = (torch.randn(outs, ins, **options) * 0.02).to(dtype)
                deltas = torch.randn(len(indices), **options) * 1e-4
                dense = grad.double().t() @ x.double()
                exact = dense.view(-1)[indices.long()]
                found = kernels.sampled_gradient(grad, x, indices).double()
                originals = weight.view(-1)[indices.long()]
                expected = weight.clone()
                expected.view(-1).scatter_(0, indices.long(), rounded_sum(originals, deltas))
                kernels.merge(weight, indices, originals, deltas)
                name = str(dtype).removeprefix("torch.")
                error = float((found - exact).norm() / exact.norm()) if len(indices) else 0.0
                merged = bool(torch.equal(weight, expected))
                wrong += not (error < GRADIENT_TOLERANCE[name]) + (not merged)
                row = {"layer": f"{outs} × {ins}", "density": density, "dtype": name}
                row |= {"entries": len(indices), "gradient_error": error, "merge_equal": merged}
                task.findings.add("kernels", row)
    for scalars in (5000,) if task.toy else (131_072_001, (1 << 32) + 5000):
        equal = _adamw_is_equal(task, scalars)
        wrong += not equal
        task.findings.add("AdamW", {"scalars": scalars, "equal": equal})
    task.findings.note(kernels_wrong=wrong)
    failed = _cuda_tests(task)
    if wrong or failed:
        raise AssertionError(f"{wrong} kernel results and {failed} tests are wrong")


def _adamw_is_equal(task: Task, scalars: int) -> bool:
    """Whether its kernel gives so many scalars, or the last of them, what plain torch gives."""
    import torch

    from sparta_bench.sparta import adamw, kernels

    draw = torch.Generator(task.device).manual_seed(0)
    tensors = [
        torch.empty(scalars, dtype=torch.bfloat16, device=task.device).uniform_(generator=draw)
        for _ in range(4)
    ]
    step = adamw.step_of(1e-2, (0.9, 0.99), 1e-8, 0.1, 3, adamw.key_of(0, 0, 0, 3))
    tails = [tensor[-(1 << 28) :] for tensor in tensors]
    expected = [tail.clone() for tail in tails]
    kernels.adamw(step, *tensors)
    adamw.update(step, *expected, first=scalars - len(tails[0]))
    return all(torch.equal(one, other) for one, other in zip(tails, expected, strict=True))


def _cuda_tests(task: Task) -> int:
    """Run `pytest -m cuda`; note each test's outcome. Returns how many failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "tests.xml")
        # other versions of the packages may warn of other things: no reason to fail here
        words = ["-m", "cuda", "-n", "4", "-W", "default", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *words, str(ROOT / "tests" / "test_cuda.py")]
        environment = os.environ | {"TRITON_INTERPRET": "0"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if not report.exists():
            raise RuntimeError(f"pytest did not run: {(done.stdout + done.stderr)[-2000:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failed = 0
    for case in cases:
        bad = [*case.findall("failure"), *case.findall("error")]
        outcome = "failed" if bad else "skipped" if case.findall("skipped") else "passed"
        failed += outcome == "failed"
        row = {"test": case.get("name"), "outcome": outcome, "seconds": float(case.get("time", 0))}
        message = (bad[0].text or "") if bad else None
        task.findings.add("tests", row | {"message": message and message[-1500:]})
    return failed


# --------------------------------------------------------------------------------- crossover
def crossover(task: Task) -> None:
    """Dense against sampled gradient, and the cost model's constants that fit best."""
    from sparta_bench.analysis.bench.timing import gradient_seconds
    from sparta_bench.sparta.sampling_cost import COSTS

    base = _setting(task.settings("mistral-7b", "imdb"), 1, 1)
    cases: list[tuple[int, int, int, int, float, float]] = []
    shares = (0.0005, 0.05) if task.toy else (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
    for tokens in (16,) if task.toy else (800, 4320, 10800):
        for outs, ins in TOY_SHAPES if task.toy else SHAPES:
            row: dict[str, Any] = {"layer": f"{outs} × {ins}", "tokens": tokens}
            for density in shares:
                setting = _resized(base, 1, tokens)
                seconds = gradient_seconds(setting, outs, ins, density, 2 if task.toy else 5)
                row["dense_ms"] = 1e3 * seconds["dense"]
                row[f"{density:.2%}"] = seconds["sampled"] / seconds["dense"]
                count = round(density * outs * ins)
                cases.append((outs, ins, count, tokens, seconds["dense"], seconds["sampled"]))
            task.findings.add("sampled over dense", row)
    for row in constants_of(cases, tuple(COSTS[task.device.type])):
        task.findings.add("constants of the cost model", row)


def constants_of(
    cases: list[tuple[int, int, int, int, float, float]], used: tuple[float, ...]
) -> list[dict[str, Any]]:
    """The three constants of `sparta.gradient` that fit the cases best, and what each choice of
    them costs. A case is out_features, in_features, entries, tokens, dense and sampled seconds."""
    import numpy as np
    from scipy.optimize import nnls

    outs, ins, entries, tokens, dense, sampled = np.array(cases, dtype=float).T
    terms = np.stack([entries, outs + ins, 1 / tokens], axis=1) / (outs * ins)[:, None]
    ratio = sampled / dense
    # relative least squares: each case weighs the same, however long it takes
    scale = np.array([1, 1, 1e10])  # of one size, for the solver
    fitted, _ = nnls(terms * scale / ratio[:, None], np.ones(len(ratio)))
    grid = (range(20, 201, 10), range(0, 1501, 50), (0, 1e10, 2e10, 4e10, 6e10, 8e10, 1e11, 2e11))
    round_ones = [np.array(one, dtype=float) for one in itertools.product(*grid)]

    def seconds(constants: Any) -> Any:
        return np.where(terms @ constants < 1, sampled, dense).sum()

    chosen = {
        "in use": np.array(used),
        "least squares of the ratios": fitted * scale,
        "least time, of round numbers": min(round_ones, key=seconds),
        "always dense": np.array([0, 0, np.inf]),
    }
    rows = []
    for name, constants in chosen.items():
        wrong = (terms @ constants < 1) != (ratio < 1)
        row = dict(zip(("entry", "line", "call"), constants.tolist(), strict=True))
        if name == "always dense":
            row = dict.fromkeys(row)
        row |= {"cases": len(cases), "wrong_choices": int(wrong.sum())}
        row["time_over_best_choices"] = float(seconds(constants) / np.minimum(dense, sampled).sum())
        rows.append({"constants": name, **row})
    return rows


# ------------------------------------------------------------------------------------- steps
def steps(task: Task) -> None:
    """Every contender at gemma-2b with the lengths of SST-2 and IMDB, then three at mistral-7b."""
    from sparta_bench.analysis.bench.contenders import FULL_FT_BFLOAT16, names
    from sparta_bench.cli.bench_command import MEAN_TOKENS

    first = ["full_ft", "lora", *(f"sparta-{d}" for d in PAPER_DENSITIES), "head"]
    others = [name for name in names() if name not in first and name != FULL_FT_BFLOAT16]
    mistral = ["sparta-0.05", "lora", FULL_FT_BFLOAT16]
    plan = [
        ("gemma-2b", "imdb", first), ("gemma-2b", "sst2", first), ("mistral-7b", "imdb", mistral),
        ("gemma-2b", "imdb", others), ("gemma-2b", "sst2", others),
    ]  # fmt: skip
    for model, data, contenders in plan:
        overrides = task.settings(model, data)
        setting = _setting(overrides, 2 if task.toy else None, 8 if task.toy else MEAN_TOKENS[data])
        for name in contenders:
            task.findings.add(f"{model}, {data}", _step_row(setting, name, task.toy))


def _step_row(setting: Any, name: str, toy: bool) -> dict[str, Any]:
    from sparta_bench.analysis.bench.timing import measure

    started = time.monotonic()
    found = measure(setting, [name], 1, 1 if toy else 10)
    row = found["contenders"][0]
    where = {"rows": setting.rows, "tokens": setting.tokens, "contender": name}
    where["seconds_to_measure"] = round(time.monotonic() - started, 1)
    if "step_seconds" not in row:
        return where | {"status": row["status"]}
    keys = ("trainable", "tokens_per_second", "share_of_peak", "kernel_launches")
    return where | {
        "status": row["status"],
        "step_ms": 1e3 * row["step_seconds"],
        "fastest_ms": 1e3 * row["fastest_step_seconds"],
        **{key: row[key] for key in keys},
        "peak_gb": row["peak_memory_bytes"] / 1e9,
        **{key: row.get(key) for key in ("merge_share", "gather_share", "gradient_share")},
        "product_tflops": found["product_flops_per_second"] / 1e12,
        "note": row["note"],
    }


# ------------------------------------------------------------------------------------ memory
def memory(task: Task) -> None:
    """Measured beside the estimate, method by method."""
    from sparta_bench.analysis.memory.findings import estimates_of, measured_methods
    from sparta_bench.cli.memory_command import settings_of

    for model in ("gemma-2b", "mistral-7b"):
        rows, tokens = (2, 8) if task.toy else (None, None)
        (setting,) = settings_of(task.settings(model, "imdb"), rows, tokens)
        for row in measured_methods(estimates_of(setting), lambda _: None):
            estimated, measured = row["estimated"], row["measured"] or {}
            sizes = {
                f"{name}_gb_{side}": values[f"{name}_bytes"] / 1e9
                for name in ("held", "smallest_peak", "peak")
                for side, values in (("estimated", estimated), ("measured", measured))
                if values
            }
            off = {f"{name}_off": value for name, value in (row["off"] or {}).items()}
            about = {"method": row["name"], "checkpointing": row["gradient_checkpointing"]}
            about |= {"trained": row["dtypes"]["trained"], "status": row["status"]}
            task.findings.add(f"{model}, {setting.rows} × {setting.tokens}", about | sizes | off)


# ----------------------------------------------------------------------------------- compile
def compile_layers(task: Task) -> None:
    """The decoder layers compiled one by one: seconds to the first step of a length, step after."""
    import torch

    from sparta_bench.analysis.bench.contenders import build
    from sparta_bench.analysis.bench.timing import seconds_of

    # layers differ in how many scalars were chosen; with fixed sizes each is a graph of its own
    torch._dynamo.config.force_parameter_static_shapes = False
    lengths = (8, 16) if task.toy else (32, 64, 128)
    base = _setting(task.settings("gemma-2b", "sst2"), 2 if task.toy else None, lengths[0])
    for name in ("full_ft", "sparta-0.05", "lora"):
        ready = build(name, base)
        plain = {}
        for length in lengths:
            batch = _resized(base, base.rows, length).batch()
            plain[length] = _median_step(ready, batch, task)
        layers = [m for m in ready.model.modules() if type(m).__name__.endswith("DecoderLayer")]
        torch._dynamo.reset()
        for layer in layers:
            layer.compile(backend="aot_eager" if task.toy else "inductor")
        for length in lengths:
            batch = _resized(base, base.rows, length).batch()
            first = seconds_of(partial(ready.step, batch), task.device)
            after = _median_step(ready, batch, task)
            row = {"contender": name, "rows": base.rows, "tokens": length, "layers": len(layers)}
            row |= {"first_step_seconds": first, "step_ms": 1e3 * after}
            row |= {"plain_step_ms": 1e3 * plain[length], "over_plain": after / plain[length]}
            row["compiled_graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            task.findings.add("regional compilation", row)
        del ready, layers
        if not task.toy:
            torch.cuda.empty_cache()


def _median_step(ready: Any, batch: Any, task: Task) -> float:
    from sparta_bench.analysis.bench.timing import seconds_of

    ready.step(batch)
    seconds = (
        seconds_of(partial(ready.step, batch), task.device) for _ in range(2 if task.toy else 7)
    )
    return statistics.median(seconds)


# -------------------------------------------------------------------------------------- real
def real(task: Task) -> None:
    """Every method for a few hundred steps on a real model; the records stay in `real/`."""
    from sparta_bench.config.compose import compose
    from sparta_bench.runs.assets import AssetCache
    from sparta_bench.runs.run import run

    if task.toy:
        where = ["task.max_train_examples=200", "device=cpu", "train.max_steps=4"]
        where += ["train.eval_every=2"]
    elif task.model is None or task.data is None:
        task.findings.note(status="skipped", reason="give --model DIR and --data DIR")
        return
    else:
        where = ["model=local", f"model.path='{task.model}'", "task=sst2", "device=cuda"]
        where += [f"task.data_dir='{task.data}'", "train.max_steps=200", "train.eval_every=50"]
        where += ["train.batch_size=32", "train.dropout=0", "train.epochs=1", "train.patience=0"]
    assets = AssetCache()
    with tempfile.TemporaryDirectory() as cache:
        for method, settings in REAL_RUNS:
            words = [*where, f"method={method}", *settings, *task.overrides, "save=none"]
            words += [f"results_dir='{task.findings.folder / 'real'}'", f"cache_dir='{cache}'"]
            record, _, _ = run(compose([*words, "force=true"]), assets)
            task.findings.add("runs", _run_row(record))
    if any(row["status"] != "completed" for row in task.findings.values["tables"]["runs"]):
        raise RuntimeError("a run has failed; its row names the cause")


def _run_row(record: dict[str, Any]) -> dict[str, Any]:
    row = {key: record[key] for key in ("model", "task", "method", "density", "seed", "status")}
    row["learning_rate"] = record["config"]["train"]["learning_rate"]
    if record["status"] != "completed":
        return row | {"error": record["error"]["message"]}
    training = record["training"]
    row |= {
        "trainable": record["parameters"]["trainable"],
        "first_dev_loss": record["history"][0]["dev_loss"],
    }
    row |= {f"dev_{key}": record["dev"][key] for key in ("loss", "accuracy")}
    row |= {f"test_{key}": record["test"][key] for key in ("accuracy", "mcc")}
    keys = ("steps", "seconds", "evaluation_seconds", "tokens_per_second", "peak_memory_bytes")
    return row | {key: training[key] for key in keys}


# ---------------------------------------------------------------------------------- settings
def _setting(overrides: list[str], rows: int | None, tokens: int) -> Any:
    from sparta_bench.cli.bench_command import read_options, settings_of

    words = [*overrides, f"--tokens={tokens}", *([f"--rows={rows}"] if rows else [])]
    (setting,) = settings_of(read_options(words))
    return setting


def _resized(setting: Any, rows: int, tokens: int) -> Any:
    from dataclasses import replace

    return replace(setting, rows=rows, tokens=tokens)


# --------------------------------------------------------------------------------- the parts
# The seconds that each may take on an H100: nine minutes in all.
PARTS: dict[str, tuple[Callable[[Task], None], int]] = {
    "correct": (correct, 100),
    "crossover": (crossover, 40),
    "steps": (steps, 190),
    "memory": (memory, 80),
    "compile": (compile_layers, 60),
    "real": (real, 70),
}
TOY_LIMIT_SECONDS = 300  # a busy CPU takes its time


def main() -> int:
    """Run the parts one after the other; 1 if one did not complete."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="the folder in results/cuda: h100, for one")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--toy", action="store_true", help="at toy size, on a CPU")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part alone")
    parser.add_argument("--limit", type=int, metavar="SECONDS", help="of each part, for its own")
    parser.add_argument("--model", type=Path, help="a model folder for `real`")
    parser.add_argument("--data", type=Path, help="GLUE's folder, for `real`")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "cuda")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    folder = options.out / options.name
    folder.mkdir(parents=True, exist_ok=True)
    if options.child:
        return child(options.child, folder, options)
    limits = {part: TOY_LIMIT_SECONDS if options.toy else PARTS[part][1] for part in PARTS}
    ended = [
        (part, parent(part, folder, options.toy, options.limit or limits[part]))
        for part in options.only or PARTS
    ]
    for part, status in ended:
        print(f"{part}: {status}", flush=True)
    return int(any(status not in ("completed", "skipped") for _, status in ended))


def parent(part: str, folder: Path, toy: bool, limit: int) -> str:
    """Run a part in a process of its own, end it after `limit` seconds; returns how it ended."""
    (folder / f"{part}.json").unlink(missing_ok=True)
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    if toy:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    started = time.monotonic()
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--child", part]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            process.wait(limit)
            end = None
        except subprocess.TimeoutExpired:
            end = f"ended after {limit} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    path = folder / f"{part}.json"
    values = json_of(path) if path.exists() else {"part": part, "status": "failed", "tables": {}}
    if values["status"] == "running":
        values["status"] = "timed out" if end else "failed"
        values["error"] = end or f"the process died with code {process.returncode}"
    values["seconds"] = round(time.monotonic() - started, 1)
    write_report(folder, part, values)
    print(f"{part}: {values['status']} in {values['seconds']} s", flush=True)
    return str(values["status"])


def child(part: str, folder: Path, options: argparse.Namespace) -> int:
    """A part, in its own process."""
    warnings.simplefilter("default")
    findings = Findings(folder, part)
    task = Task(findings, options.toy, options.model, options.data, options.overrides)
    try:
        findings.note(**_where(task))
        PARTS[part][0](task)
    except Exception as error:
        traceback.print_exc()
        kind = type(error).__name__
        findings.note(status="failed", error=f"{kind}: {str(error)[-1500:]}")
        return 1
    if findings.values["status"] == "running":
        findings.note(status="completed")
    return 0


def _where(task: Task) -> dict[str, Any]:
    from sparta_bench.analysis.bench.setting import Setting
    from sparta_bench.records.write import environment, now

    setting: Setting = _setting(task.settings("gemma-2b", "imdb"), 1, 1)
    known = environment(setting.device, setting.precision, 1)
    return {"date": now(), **{key: known[key] for key in ("device", "versions", "git_revision")}}


if __name__ == "__main__":
    sys.exit(main())
