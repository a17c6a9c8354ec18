"""The command line of `sparta-bench bench`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from sparta_bench.bench.contenders import names
from sparta_bench.bench.gradient import crossover
from sparta_bench.bench.measure import measure
from sparta_bench.bench.report import as_markdown
from sparta_bench.bench.setting import Setting, device_of
from sparta_bench.compose import compose
from sparta_bench.errors import InputError, did_you_mean
from sparta_bench.files import whole_file, write_json
from sparta_bench.results import environment, now

USAGE = """\
usage: sparta-bench bench [--json] [--out DIR] [--rounds N] [--steps N] [--rows N] [--tokens N]
                          [--only NAME,NAME] [--crossover] [key=value ...]

Step time, FLOPs and memory of full fine-tuning, head, LoRA, SpaRTA, peft-sparta and SHiRA, on
random weights: a small model on a CPU, gemma-2b and mistral-7b on CUDA, or model=NAME.

  --json       print one JSON object and nothing else
  --out DIR    also write bench.json and bench.md there
  --rounds N   how often each has its turn (default: 12 on a CPU, 3 on CUDA)
  --steps N    timed steps in a turn (default: 1 on a CPU, 10 on CUDA)
  --rows N     examples in the batch (default: 16 for the small model, else train.batch_size)
  --tokens N   tokens of each example (default: 64; sst2 25, imdb 270)
  --only       run these alone: {names}
  --crossover  instead: dense against sampled gradient, by layer shape and density"""

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


@dataclass
class Options:
    """The command line, read."""

    json: bool = False
    crossover: bool = False
    out: Path | None = None
    rounds: int | None = None
    steps: int | None = None
    rows: int | None = None
    tokens: int | None = None
    only: list[str] = field(default_factory=names)
    overrides: list[str] = field(default_factory=list)


def read_options(arguments: Sequence[str]) -> Options:
    """Options and overrides.

    Raises
    ------
    InputError
        With a line for each option or value that cannot be used.
    """
    options = Options()
    lines: list[str] = []
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if not word.startswith("--"):
            options.overrides.append(word)
        elif word in ("--json", "--crossover"):
            setattr(options, word[2:], True)
        elif option in ("--out", "--rounds", "--steps", "--rows", "--tokens", "--only"):
            value = value if equals else next(words, "")
            try:
                setattr(options, option[2:], _value(option, value))
            except InputError as error:
                lines += error.lines
        else:
            lines.append(f"{word}: bench knows no such option (see bench --help)")
    for word in options.overrides:
        if word.startswith(("method", "train.trained_dtype")):
            lines.append(f"{word}: bench runs all methods, with float32 trained values; see --only")
    if lines:
        raise InputError(*lines)
    return options


def _value(option: str, text: str) -> Any:
    if option == "--out":
        if not text:
            raise InputError("--out: needs a folder")
        return Path(text)
    if option == "--only":
        chosen, known = text.split(","), names()
        unknown = [name for name in chosen if name not in known]
        if unknown:
            raise InputError(
                *(
                    f"--only={name}: no such contender{did_you_mean(name, known)}"
                    for name in unknown
                )
            )
        return [name for name in known if name in chosen]
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise InputError(f"{option}={text}: must be a whole number from 1")
    return int(text)


def main(arguments: Sequence[str]) -> None:
    """Run the subcommand.

    Raises
    ------
    InputError
        For anything wrong with the command line or what it names.
    """
    if set(arguments) & {"--help", "-h"}:
        print(USAGE.format(names=", ".join(names())))
        return
    options = read_options(arguments)
    settings = settings_of(options)
    if options.out is not None:
        _make_folder(options.out)
    kind = settings[0].device.type
    rounds, steps = options.rounds or ROUNDS[kind], options.steps or STEPS[kind]
    report: dict[str, Any] = {"date": now(), **_environment(settings[0]), "rounds": rounds}
    if options.crossover:
        report["crossover"] = [crossover(setting, rounds) for setting in settings]
    else:
        report["steps"] = steps
        report["settings"] = [measure(setting, options.only, rounds, steps) for setting in settings]
    text = as_markdown(report)
    if options.out is not None:
        write_json(options.out / "bench.json", report)
        with whole_file(options.out / "bench.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(report, allow_nan=False) if options.json else text)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out={folder}: {error.strerror}") from None


def settings_of(options: Options) -> list[Setting]:
    """One setting where a model is named or there is no GPU, else the paper's."""
    given = options.overrides
    if any(word.startswith("model=") for word in given):
        return [_setting(given, options, None, None)]
    if device_of(compose(given)).type == "cuda":
        return [_setting([*base, *given], options, None, tokens) for base, tokens in PAPER]
    return [_setting([*SMALL, *given], options, SMALL_ROWS, None)]


def _setting(
    overrides: list[str], options: Options, rows: int | None, tokens: int | None
) -> Setting:
    config = compose([*overrides, "train.trained_dtype=float32"])
    return Setting(
        tuple(overrides),
        config,
        device_of(config),
        options.rows or rows or config.train.batch_size,
        options.tokens or tokens or MEAN_TOKENS.get(config.task.name, TOKENS),
    )


def _environment(setting: Setting) -> dict[str, Any]:
    known = environment(setting.device, setting.precision, 1)
    here = importlib.util.find_spec("peft_sparta") is not None
    known["versions"]["peft-sparta"] = metadata.version("peft-sparta") if here else None
    return known
