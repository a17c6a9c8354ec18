"""The command line of `sparta-bench bench`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import textwrap
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from sparta_bench.analysis.bench.contenders import is_contender, names
from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.bench.timing import as_text, crossover, measure
from sparta_bench.cli import options as shared
from sparta_bench.config.compose import compose
from sparta_bench.devices import device_for
from sparta_bench.errors import InputError, did_you_mean
from sparta_bench.records.write import environment, now

FIXED = ("method", "train.trained_dtype")  # beginnings of keys that bench sets itself
ROUNDS, STEPS = {"cpu": 12, "cuda": 3}, {"cpu": 1, "cuda": 10}

# Gemma's proportions in small: wide MLP, one key-value head, a fifth of the scalars embeddings.
SMALL = (
    "model=gemma-2b",
    "model.name=small-gemma",
    "model.shape.vocab_size=10000",
    "model.shape.hidden_size=384",
    "model.shape.intermediate_size=3072",
    "model.shape.num_hidden_layers=4",
    "model.shape.num_attention_heads=6",
    "model.shape.head_dim=64",
)
SMALL_ROWS, TOKENS = 16, 64
MEAN_TOKENS = {"sst2": 25, "imdb": 270}  # about, with the paper's tokenizers
# Where nobody names a model, CUDA runs these; Table 12's batch sizes are imdb's presets.
PAPER = [
    ([f"model={model}", "task=imdb"], tokens)
    for model in ("gemma-2b", "mistral-7b")
    for tokens in MEAN_TOKENS.values()
]


def _parser() -> shared.Parser:
    parser = shared.Parser(
        prog="sparta-bench bench",
        usage="sparta-bench bench [options] [key=value ...]",
        description="Step time, FLOPs and memory of full fine-tuning, head, LoRA, SpaRTA,\n"
        "peft-sparta and SHiRA, on random weights: a small model on a CPU, gemma-2b and\n"
        "mistral-7b on CUDA, or model=NAME.",
        epilog=textwrap.fill(
            f"Contenders: {', '.join(names())}; with --only at other densities too, as sparta-0.2.",
            80,
            break_on_hyphens=False,
        ),
    )
    shared.add_overrides(parser)
    shared.add_outputs(parser, out="also write bench.json and bench.md there")
    shared.add_numbers(
        parser,
        rounds="how often each has its turn (12 on a CPU, 3 on CUDA)",
        steps="timed steps in a turn (1 on a CPU, 10 on CUDA)",
        rows="examples in the batch (16 for the small model, else train.batch_size)",
        tokens="tokens of each (64; sst2 25, imdb 270)",
    )
    parser.add_argument(
        "--only", metavar="NAME,NAME", type=_contenders, default=names(), help="these alone (all)"
    )
    text = "instead: dense against sampled gradient, by layer shape and density"
    parser.add_argument("--crossover", action="store_true", help=text)
    return parser


def _contenders(text: str) -> list[str]:
    chosen, known = text.split(","), names()
    for name in chosen:
        if not is_contender(name):
            near = did_you_mean(name, known)
            raise argparse.ArgumentTypeError(f"{name}: there is no such contender{near}")
    others = [name for name in dict.fromkeys(chosen) if name not in known]
    return [*(name for name in known if name in chosen), *others]


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read options and overrides. Raises InputError with a line for each that cannot be used."""
    options = _parser().parse_intermixed_args(arguments)
    fixed = [word for word in options.overrides if word.startswith(FIXED)]
    if fixed:
        why = "bench runs all methods, with float32 trained values; see --only"
        raise InputError(*(f"{word}: {why}" for word in fixed))
    return options


def main(arguments: Sequence[str]) -> None:
    """`sparta-bench bench`: print the report, or the JSON."""
    options = read_options(arguments)
    shared.check_outputs("bench", options)
    settings = settings_of(options)
    kind = settings[0].device.type
    rounds, steps = options.rounds or ROUNDS[kind], options.steps or STEPS[kind]
    known = environment(settings[0].device, settings[0].precision, 1)
    installed = importlib.util.find_spec("peft_sparta") is not None
    known["versions"]["peft-sparta"] = metadata.version("peft-sparta") if installed else None
    report: dict[str, Any] = {"date": now(), **known, "rounds": rounds}
    if options.crossover:
        report["crossover"] = [crossover(setting, rounds) for setting in settings]
    else:
        report["steps"] = steps
        report["settings"] = [measure(setting, options.only, rounds, steps) for setting in settings]
    text = as_text(report)
    shared.write_outputs("bench", options, report, {"md": text + "\n"})
    print(json.dumps(report, allow_nan=False) if options.json else text)


def settings_of(options: argparse.Namespace) -> list[Setting]:
    """Return one setting where a model is named or there is no GPU, else the paper's."""
    given = options.overrides
    if any(word.startswith("model=") for word in given):
        return [_setting(given, options, None, None)]
    if device_for(compose(given)).type == "cuda":
        return [_setting([*base, *given], options, None, tokens) for base, tokens in PAPER]
    return [_setting([*SMALL, *given], options, SMALL_ROWS, None)]


def _setting(
    overrides: list[str], options: argparse.Namespace, rows: int | None, tokens: int | None
) -> Setting:
    config = compose([*overrides, "train.trained_dtype=float32"])
    rows = options.rows or rows or config.train.batch_size
    tokens = options.tokens or tokens or MEAN_TOKENS.get(config.task.name, TOKENS)
    return Setting(tuple(overrides), config, device_for(config), rows, tokens)
