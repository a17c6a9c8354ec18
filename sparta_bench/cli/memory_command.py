"""The command line of `sparta-bench memory`. Nothing heavy is imported before it is read."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from sparta_bench.analysis.memory.memory_tables import peaks, tables_of
from sparta_bench.cli import options as shared
from sparta_bench.config.compose import compose
from sparta_bench.errors import InputError, log
from sparta_bench.tables.table import FORMATS

if TYPE_CHECKING:
    from sparta_bench.analysis.bench.setting import Setting

MODELS = ("gemma-2b", "mistral-7b")  # where nobody names one
TASK = "imdb"  # the longest texts of the paper's, and Table 12's batch sizes
GPUS = (24, 40, 80)
# What an override may change; all other keys change nothing here.
GROUPS, KEYS = (
    ("model", "task"),
    ("device", "train.trained_dtype", "train.batch_size", "train.share_prefix"),
)
# why others may not
REFUSED = {
    "method": "shows all methods",
    "train.gradient_checkpointing": "shows both, with and without it",
}


def _parser() -> shared.Parser:
    parser = shared.Parser(
        prog="sparta-bench memory",
        usage="sparta-bench memory [options] [key=value ...]",
        description="What training takes: the paper's formula (section 5, Table 1), then every\n"
        "method at real shapes part by part, as on CUDA, and the largest batch that\n"
        "fits a GPU; for gemma-2b and mistral-7b, or model=NAME. Needs no weights, no\n"
        "network and no GPU.",
        epilog="key=value may be of model and task (model.path=DIR, for one), or one of\n"
        f"{', '.join(KEYS)}. device=cpu estimates as on a CPU.",
    )
    shared.add_overrides(parser)
    shared.add_outputs(
        parser,
        out="also write memory.json, .md, .csv and .tex there",
        figure="draw the peaks: PATH.png and PATH.svg (memory.* where PATH is a folder)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="also train a few steps on random weights and measure: the same models on CUDA; on a "
        "CPU a small one, or that of model=NAME",
    )
    shared.add_numbers(
        parser,
        rows="rows of the batch (train.batch_size)",
        tokens="tokens of each row (task.max_train_tokens)",
        shared_tokens="tokens that all rows begin with, as an instruction model's do; from 8 on "
        "they are computed once where no dropout is drawn (none)",
    )
    parser.add_argument(
        "--gpus",
        metavar="N",
        type=shared.positive,
        default=1,
        help="GPUs among which a model is cut (train.sharding=fsdp): bytes are those of each, rows "
        "those of all (1)",
    )
    text = f"sizes of GPUs in GiB ({','.join(map(str, GPUS))})"
    parser.add_argument("--gpu-gib", metavar="N,N", type=_sizes, default=GPUS, help=text)
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(map(shared.positive, text.split(","))))


def main(arguments: list[str]) -> None:
    """`sparta-bench memory`: print the tables, or the JSON."""
    options = _parser().parse_intermixed_args(arguments)
    shared.check_outputs("memory", options)
    if options.measure and options.gpus > 1:
        raise InputError("memory: --measure takes no --gpus: it measures one process")
    _check_overrides(options.overrides)
    findings = _findings(options)
    tables = tables_of(findings)
    texts = {end: "\n".join(map(form, tables)) for end, form in FORMATS.items()}
    shared.write_outputs(
        "memory", options, findings, texts, draw=lambda name: peaks(name, findings["settings"])
    )
    print(json.dumps(findings, allow_nan=False) if options.json else texts["md"].rstrip("\n"))


def _findings(options: argparse.Namespace) -> dict[str, Any]:
    from sparta_bench.analysis.memory import findings

    settings = settings_of(
        options.overrides, options.rows, options.tokens, options.shared_tokens or 0
    )
    measurable = _measurable(settings, options) if options.measure else []
    known = [findings.estimates_of(setting, options.gpus) for setting in settings]
    extra = [setting for setting in measurable if setting not in settings]
    others = map(findings.estimates_of, extra)
    tried = [one for one in (*known, *others) if one.setting in measurable]
    return {
        **findings.paper_values(),
        "settings": [findings.estimated(one, options.gpu_gib) for one in known],
        "measured": [findings.measured(one, log) for one in tried] if options.measure else None,
    }


# -------------------------------------------------------------------------------- settings
def settings_of(
    overrides: list[str], rows: int | None, tokens: int | None, shared: int = 0
) -> list[Setting]:
    """Return what is estimated: the paper's models as on CUDA, or what the overrides say."""
    named = any(word.startswith("model=") for word in overrides)
    models = [[]] if named else [[f"model={model}"] for model in MODELS]
    return [
        _setting([f"task={TASK}", *model, *overrides], rows, tokens, shared) for model in models
    ]


def _setting(overrides: list[str], rows: int | None, tokens: int | None, shared: int) -> Setting:
    import torch

    from sparta_bench.analysis.bench.setting import Setting
    from sparta_bench.data.splits import complete
    from sparta_bench.models.source import load_architecture

    config = complete(compose(overrides))
    device = torch.device("cpu" if config.device == "cpu" else "cuda")
    longest = config.task.max_train_tokens
    most = getattr(load_architecture(config.model), "max_position_embeddings", None)
    if tokens and most and tokens > most:
        raise InputError(f"--tokens {tokens}: {config.model.name} reads {most:,} tokens at most")
    rows = rows or config.train.batch_size
    tokens = tokens or min(longest, most or longest)
    if shared >= tokens:
        raise InputError(
            f"memory: --shared-tokens {shared}: must be below the {tokens} tokens of each row"
        )
    return Setting(tuple(overrides), config, device, rows, tokens, shared)


def _measurable(settings: list[Setting], options: argparse.Namespace) -> list[Setting]:
    """The same on the device that there is; on a CPU the benchmark's small shape, where nobody
    names a model."""
    from dataclasses import replace

    from sparta_bench.cli.bench_command import SMALL, SMALL_ROWS, TOKENS
    from sparta_bench.devices import device_for

    device = device_for(settings[0].config)
    if device.type == "cpu" and not any(word.startswith("model=") for word in options.overrides):
        small = [*SMALL, *options.overrides, "device=cpu"]
        tokens, shared = options.tokens or TOKENS, options.shared_tokens or 0
        return [_setting(small, options.rows or SMALL_ROWS, tokens, shared)]
    return [replace(setting, device=device) for setting in settings]


def _check_overrides(overrides: list[str]) -> None:
    lines = []
    for word in overrides:
        key, equals, _ = word.lstrip("+").partition("=")
        group = key.partition(".")[0]
        if why := REFUSED.get(group) or REFUSED.get(key):
            lines.append(f"{word}: memory {why}")
        elif equals and group not in GROUPS and key not in KEYS:
            known = ", ".join((*GROUPS, *KEYS))
            lines.append(f"{word}: changes no memory; what does: {known}")
    if lines:
        raise InputError(*lines)
