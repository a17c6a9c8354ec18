"""The command line of `sparta-bench memory`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparta_bench.analysis.memory.memory_tables import tables_of, values_table
from sparta_bench.analysis.memory.peak_figure import peaks
from sparta_bench.cli.options import Parser, check_folder, figure_path, positive
from sparta_bench.config.compose import compose
from sparta_bench.errors import InputError, log
from sparta_bench.files import whole_file, write_json
from sparta_bench.report.plots import check_matplotlib, write_figures
from sparta_bench.tables.render import as_csv, as_latex, as_markdown

if TYPE_CHECKING:
    from sparta_bench.analysis.bench.setting import Setting

MODELS = ("gemma-2b", "mistral-7b")  # where nobody names one
TASK = "imdb"  # the longest texts of the paper's, and Table 12's batch sizes
GPUS = (24, 40, 80)
# What an override may change; all other keys change nothing here.
GROUPS, KEYS = ("model", "task"), ("device", "train.trained_dtype", "train.batch_size")


def _parser() -> Parser:
    parser = Parser(
        prog="sparta-bench memory",
        usage="sparta-bench memory [options] [key=value ...]",
        description="What training takes: the paper's formula (section 5, Table 1), then every\n"
        "method at real shapes part by part, as on CUDA, and the largest batch that\n"
        "fits a GPU; for gemma-2b and mistral-7b, or model=NAME. Needs no weights, no\n"
        "network and no GPU.",
        epilog="key=value may be of model and task (model.path=DIR, for one), or one of\n"
        f"{', '.join(KEYS)}. device=cpu estimates as on a CPU.",
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="also write memory.json, .md, .csv and .tex there"
    )
    parser.add_argument(
        "--figure",
        metavar="PATH",
        type=Path,
        help="draw the peaks: PATH.png and PATH.svg (memory.* where PATH is a folder)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also train a few steps on random weights and measure: the same models on CUDA; on a "
        "CPU a small one, or that of model=NAME",
    )
    parser.add_argument(
        "--rows", metavar="N", type=positive, help="rows of the batch (train.batch_size)"
    )
    parser.add_argument(
        "--tokens", metavar="N", type=positive, help="tokens of each row (task.max_train_tokens)"
    )
    parser.add_argument(
        "--gpu-gib",
        metavar="N,N",
        type=_sizes,
        default=GPUS,
        help=f"sizes of GPUs in GiB ({','.join(map(str, GPUS))})",
    )
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(positive(part) for part in text.split(",")))


def main(arguments: list[str]) -> None:
    """`sparta-bench memory`: print the tables, or the JSON.

    Raises
    ------
    InputError
        For anything wrong with the command line or what it names.
    """
    options = _parser().parse_intermixed_args(arguments)
    if options.figure is not None:
        check_matplotlib("memory --figure")
    figure = figure_path(options.figure, "memory")
    check_folder("memory: --out", options.out)
    check_folder("memory: --figure", figure and figure.parent)
    _check_overrides(options.overrides)
    found = _found(options)
    try:
        _write(found, options.out, figure)
    except OSError as error:
        raise InputError(f"memory: {error.filename}: cannot be written: {error.strerror}") from None
    print(json.dumps(found, allow_nan=False) if options.json else _text(found).rstrip("\n"))


def _found(options: argparse.Namespace) -> dict[str, Any]:
    from sparta_bench.analysis.memory.findings import (
        estimated,
        estimates_of,
        measured,
        paper_values,
    )

    settings = settings_of(options.overrides, options.rows, options.tokens)
    there = _measurable(settings, options) if options.measure else []
    known = [estimates_of(setting) for setting in settings]
    others = [estimates_of(setting) for setting in there if setting not in settings]
    tried = [one for one in (*known, *others) if one.setting in there]
    return {
        **paper_values(),
        "settings": [estimated(one, options.gpu_gib) for one in known],
        "measured": [measured(one, log) for one in tried] if options.measure else None,
    }


def _text(found: dict[str, Any]) -> str:
    return "\n".join(map(as_markdown, tables_of(found)))


def _write(found: dict[str, Any], folder: Path | None, figure: Path | None) -> None:
    """The four files of `--out`, and the figure's two."""
    if folder is not None:
        write_json(folder / "memory.json", found)
        texts = {
            "md": _text(found),
            "csv": as_csv(values_table(found)),
            "tex": "\n".join(map(as_latex, tables_of(found))),
        }
        for end, text in texts.items():
            with whole_file(folder / f"memory.{end}") as path:
                path.write_text(text, encoding="utf-8", newline="\n")
    if figure is not None:
        write_figures([peaks(figure.name, found["settings"])], figure.parent)


# -------------------------------------------------------------------------------- settings
def settings_of(overrides: list[str], rows: int | None, tokens: int | None) -> list[Setting]:
    """What is estimated: the paper's models as on CUDA, or what the overrides say."""
    named = any(word.startswith("model=") for word in overrides)
    models = [[]] if named else [[f"model={model}"] for model in MODELS]
    return [_setting([f"task={TASK}", *model, *overrides], rows, tokens) for model in models]


def _setting(overrides: list[str], rows: int | None, tokens: int | None) -> Setting:
    import torch

    from sparta_bench.analysis.bench.setting import Setting
    from sparta_bench.models.source import load_architecture

    config = compose(overrides)
    device = torch.device("cpu" if config.device == "cpu" else "cuda")
    longest = config.task.max_train_tokens
    most = getattr(load_architecture(config.model), "max_position_embeddings", None)
    if tokens is None:
        tokens = longest if most is None else min(longest, most)
    elif most is not None and tokens > most:
        raise InputError(f"--tokens {tokens}: {config.model.name} reads {most:,} tokens at most")
    return Setting(tuple(overrides), config, device, rows or config.train.batch_size, tokens)


def _measurable(settings: list[Setting], options: argparse.Namespace) -> list[Setting]:
    """The same on the device that there is; on a CPU the benchmark's small shape, where nobody
    names a model."""
    from dataclasses import replace

    from sparta_bench.cli.bench_command import SMALL, SMALL_ROWS, TOKENS
    from sparta_bench.devices import device_for

    device = device_for(settings[0].config)
    if device.type == "cpu" and not any(word.startswith("model=") for word in options.overrides):
        small = [*SMALL, *options.overrides, "device=cpu"]
        return [_setting(small, options.rows or SMALL_ROWS, options.tokens or TOKENS)]
    return [replace(setting, device=device) for setting in settings]


# ------------------------------------------------------------------------- the command line
def _check_overrides(overrides: list[str]) -> None:
    lines = []
    for word in overrides:
        key, equals, _ = word.lstrip("+").partition("=")
        if key.partition(".")[0] == "method":
            lines.append(f"{word}: memory shows all methods")
        elif key == "train.gradient_checkpointing":
            lines.append(f"{word}: memory shows both, with and without it")
        elif equals and key.partition(".")[0] not in GROUPS and key not in KEYS:
            known = ", ".join((*GROUPS, *KEYS))
            lines.append(f"{word}: changes no memory; what does: {known}")
    if lines:
        raise InputError(*lines)
