"""`sparta-bench bench`: what a training step costs, method beside method.

Everybody gets the same random weights, the same batch, the same optimizer and the project's dtype
rule, and they take turns: one round is a few steps of each contender. On a CPU all stay in memory
between their turns; on CUDA each is built anew. Ratios are taken within a round, so that a machine
that is slower for a while changes both sides of them. docs/benchmark.md says more.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from sparta_bench.compose import compose
from sparta_bench.config import Config
from sparta_bench.errors import InputError, did_you_mean
from sparta_bench.files import whole_file, write_json
from sparta_bench.memory import TensorMemory
from sparta_bench.methods import prepare
from sparta_bench.methods.trained import HEAD
from sparta_bench.models.classifier import Classifier, random_head
from sparta_bench.models.counts import embedding_names, empty_backbone
from sparta_bench.models.precision import Precision, precision_of
from sparta_bench.models.source import load_architecture
from sparta_bench.results import environment, now
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.gradient import is_sampled, weight_gradient_at
from sparta_bench.sparta.sample import sample_all, sample_indices, sampled_tensors

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

DENSITIES = (0.05, 0.005, 0.0005)
KINDS = ("full_ft", "head", "lora", "sparta", "peft-sparta", "shira")
WARM_UP = 2  # steps before the clock runs; the first one makes the optimizer's state
ROUNDS, STEPS = {"cpu": 12, "cuda": 3}, {"cpu": 1, "cuda": 10}
RATE = 1e-5
CROSSOVER_DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)

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


def names() -> list[str]:
    """All contenders: kind, and density where there is one."""
    plain = [kind for kind in KINDS if kind in ("full_ft", "head", "lora")]
    sparse = [kind for kind in KINDS if kind not in plain]
    return plain + [f"{kind}-{density}" for density in DENSITIES for kind in sparse]


def _targets() -> list[tuple[str, str, str, float]]:
    """What is compared, whose, with whose, and the most that it is meant to be."""
    below = dict(zip(DENSITIES, (0.90, 0.80, 0.70), strict=True))
    return [
        *(("step", f"sparta-{d}", f"peft-sparta-{d}", most) for d, most in below.items()),
        *(("step", f"sparta-{d}", "full_ft", 0.90) for d in DENSITIES),
        ("step", f"sparta-{DENSITIES[-1]}", "lora", 1.0),
    ]


# ----------------------------------------------------------------------------- the command line
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


# ----------------------------------------------------------------------------------- settings
@dataclass(frozen=True)
class Setting:
    """A model shape and a batch: `rows` examples of `tokens` tokens each, without padding."""

    overrides: tuple[str, ...]
    config: Config
    device: torch.device
    rows: int
    tokens: int

    @property
    def precision(self) -> Precision:
        return precision_of(self.config, self.device)

    def classifier(self) -> Classifier:
        """The frozen classifier with random weights, always the same ones."""
        torch.manual_seed(self.config.seed)
        with self.device:
            backbone: Any = AutoModel.from_config(
                load_architecture(self.config.model),
                dtype=self.precision.model_dtype,
                attn_implementation="sdpa",
            )
        if self.config.train.gradient_checkpointing:
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
        head = random_head(len(self.config.task.labels), backbone.config.hidden_size, 0)
        classifier = Classifier(backbone, head.to(self.device, self.precision.trained_dtype))
        return classifier.requires_grad_(False).train()

    def batch(self) -> dict[str, Tensor]:
        """Random tokens and labels, always the same ones."""
        draw = torch.Generator().manual_seed(self.config.seed)
        vocabulary = load_architecture(self.config.model).vocab_size
        classes = len(self.config.task.labels)
        shape = (self.rows, self.tokens)
        batch = {
            "input_ids": torch.randint(vocabulary, shape, generator=draw),
            "attention_mask": torch.ones(shape, dtype=torch.int64),
            "labels": torch.randint(classes, (self.rows,), generator=draw),
        }
        return {name: tensor.to(self.device) for name, tensor in batch.items()}


def settings_of(options: Options) -> list[Setting]:
    """One setting where a model is named or there is no GPU, else the paper's."""
    given = options.overrides
    if any(word.startswith("model=") for word in given):
        return [_setting(given, options, None, None)]
    if _device(compose(given)).type == "cuda":
        return [_setting([*base, *given], options, None, tokens) for base, tokens in PAPER]
    return [_setting([*SMALL, *given], options, SMALL_ROWS, None)]


def _setting(
    overrides: list[str], options: Options, rows: int | None, tokens: int | None
) -> Setting:
    config = compose([*overrides, "train.trained_dtype=float32"])
    return Setting(
        tuple(overrides),
        config,
        _device(config),
        options.rows or rows or config.train.batch_size,
        options.tokens or tokens or MEAN_TOKENS.get(config.task.name, TOKENS),
    )


def _device(config: Config) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch sees no CUDA device here; use device=cpu or auto")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


def _environment(setting: Setting) -> dict[str, Any]:
    known = environment(setting.device, setting.precision, 1)
    here = importlib.util.find_spec("peft_sparta") is not None
    known["versions"]["peft-sparta"] = metadata.version("peft-sparta") if here else None
    return known


# --------------------------------------------------------------------------------- contenders
@dataclass
class Ready:
    """A contender that can make steps. `values` train; `write` brings them into the weights.

    `chosen` is how many scalars of the backbone were chosen, null where the method chooses none.
    """

    model: nn.Module
    values: list[nn.Parameter]
    write: Callable[[], None]
    chosen: int | None = None
    note: str | None = None
    adapter: SpartaAdapter | None = None

    def __post_init__(self) -> None:
        self.optimizer = AdamW(self.values, lr=RATE, weight_decay=0.0, fused=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The batch's mean loss."""
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.cross_entropy(logits, batch["labels"])

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """One whole optimizer step; returns the loss before it."""
        loss = self.forward(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.update()
        return loss.detach()

    def update(self) -> None:
        """What follows the backward pass."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.write()


def build(name: str, setting: Setting) -> Ready:
    """The contender of this name, on a classifier of its own."""
    kind, _, density = name.rpartition("-") if name[-1].isdigit() else (name, "", "")
    if kind == "peft-sparta":
        return _peft_sparta(setting, float(density))
    if kind == "shira":
        return _shira(setting, float(density))
    overrides = [*setting.overrides, "train.trained_dtype=float32", f"method={kind}"]
    if kind == "sparta":
        overrides.append(f"method.density={density}")
    classifier = setting.classifier()
    trained = prepare(classifier, compose(overrides), setting.precision)
    adapter = getattr(trained, "sparta", None)
    values = list(trained.values.values())
    return Ready(classifier, values, trained.write, trained.sampled, adapter=adapter)


def _places(setting: Setting, density: float) -> dict[str, Tensor]:
    """What our adapter draws: per tensor of the backbone flat places, int32, on the CPU."""
    backbone = empty_backbone(load_architecture(setting.config.model))
    sizes = {name: tensor.numel() for name, tensor in backbone.named_parameters()}
    return sample_all(sizes, sampled_tensors(backbone, density), setting.config.seed)


def _peft_sparta(setting: Setting, density: float) -> Ready:
    """The authors' package, with our choice of scalars in place of its own."""
    from peft_sparta.sparta import (  # type: ignore[import-untyped, import-not-found]
        BufferDict,
        ParameterDict,
        SpaRTA,
    )

    indices = _places(setting, density)
    classifier = setting.classifier()
    theirs = SpaRTA(classifier, 1 - density, sorted(embedding_names(classifier.backbone)))
    rows: dict[str, Tensor] = {}
    for name, tensor in classifier.named_parameters():
        ours = indices.get(name.removeprefix("backbone."), torch.empty(0, dtype=torch.int32))
        if name == HEAD:  # trains in full, here as there
            ours = torch.arange(tensor.numel(), dtype=torch.int32)
        places = torch.unravel_index(ours.to(tensor.device), tensor.shape)
        rows[name] = torch.stack(places, dim=1).int()
    theirs.indices = BufferDict(rows)
    theirs.deltas = ParameterDict(
        {name: torch.zeros(len(places), device=setting.device) for name, places in rows.items()}
    )
    theirs.original_chosen_params = BufferDict(theirs.clone_chosen_params())
    chosen = sum(len(places) for places in indices.values())
    return Ready(theirs, list(theirs.parameters()), lambda: None, chosen)


def _shira(setting: Setting, density: float) -> Ready:
    """peft's SHiRA on every linear layer of the backbone, and the head."""
    from peft import ShiraConfig, get_peft_model

    wanted = sum(len(places) for places in _places(setting, density).values())
    classifier = setting.classifier()
    layers = _linear_layers(classifier.backbone)
    per_rank = sum(layer.in_features + layer.out_features for layer in layers.values())
    rank = max(round(wanted / per_rank), 1)
    settings = ShiraConfig(
        r=rank, mask_type="random", random_seed=setting.config.seed, target_modules=list(layers)
    )
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # as it is; not said, torch warns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers things under their old names
        classifier.backbone = get_peft_model(classifier.backbone, settings)  # type: ignore[arg-type]
    values = [value for value in classifier.backbone.parameters() if value.requires_grad]
    for value in values:
        value.data = value.data.to(setting.precision.trained_dtype)
    chosen = sum(value.numel() for value in values)
    head = classifier.head_weight
    head.requires_grad_(True)
    note = f"r={rank}: {chosen / wanted:.2f} times as many scalars as sparta-{density}"
    return Ready(classifier, [*values, head], lambda: None, chosen, note)


def _linear_layers(backbone: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in backbone.named_modules() if isinstance(m, nn.Linear)}


def _missing(name: str) -> str | None:
    """Why a contender cannot take part, if it cannot."""
    if name.startswith("peft-sparta") and importlib.util.find_spec("peft_sparta") is None:
        return "peft-sparta is not installed"
    return None


# ---------------------------------------------------------------------------------- measuring
def measure(setting: Setting, contenders: Iterable[str], rounds: int, steps: int) -> dict[str, Any]:
    """All figures of one setting, as they stand in the JSON."""
    rows: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[list[float]]] = {}  # per turn and step
    merges: dict[str, list[float]] = {}
    batch = setting.batch()
    for name in contenders:
        rows[name] = {"name": name, "status": _missing(name) or "measured"}
        if _missing(name) is None:
            seconds[name], merges[name] = [], []
    alive: dict[str, Ready] = {}
    for turn in range(-1, rounds):
        for name in list(seconds):
            try:
                if turn < 0:
                    rows[name] |= _counted(name, setting, batch)
                else:
                    timed = _timed(name, setting, batch, steps, alive)
                    seconds[name].append(timed[0])
                    merges[name].extend(timed[1])
            except (torch.OutOfMemoryError, MemoryError):
                rows[name]["status"] = "out of memory"
                del seconds[name]
            if name not in alive:
                _forget(setting.device)
    alive.clear()
    for name, turns in seconds.items():
        rows[name] |= _summary([second for turn in turns for second in turn])
    backbone = empty_backbone(load_architecture(setting.config.model))
    hidden: int = backbone.config.hidden_size  # type: ignore[union-attr, assignment]
    head = len(setting.config.task.labels) * hidden
    parameters = head + sum(tensor.numel() for tensor in backbone.parameters())
    model_bytes = parameters * setting.precision.model_dtype.itemsize
    for name in seconds:
        if merges[name]:
            merge = statistics.median(merges[name])
            density = float(name.rpartition("-")[2])
            rows[name] |= _shares(rows[name]["step_seconds"], merge, setting, density, rounds)
    return {
        "model": setting.config.model.name,
        "shape": _shape(setting),
        "parameters": parameters,
        "weights_bytes": model_bytes,
        "rows": setting.rows,
        "tokens": setting.tokens,
        "contenders": list(rows.values()),
        "ratios": _ratios(rows, seconds, model_bytes),
    }


def _shape(setting: Setting) -> dict[str, Any]:
    architecture = load_architecture(setting.config.model).to_dict()
    keys = (
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "head_dim",
    )  # fmt: skip
    return {key: architecture[key] for key in keys if key in architecture}


def _warm(name: str, setting: Setting, batch: dict[str, Tensor]) -> Ready:
    ready = build(name, setting)
    for _ in range(WARM_UP):
        ready.step(batch)
    return ready


def _counted(name: str, setting: Setting, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Scalars, FLOPs and peak memory of a contender that is alone in memory."""
    ready = _warm(name, setting, batch)
    counts = {
        "trainable": sum(value.numel() for value in ready.values),
        "chosen": ready.chosen,
        "note": ready.note,
        **_flops(ready, batch),
    }
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        ready.step(batch)
        return counts | {"peak_memory_bytes": torch.cuda.max_memory_allocated()}
    with TensorMemory() as memory:
        ready.step(batch)
    return counts | {"peak_memory_bytes": memory.peak}


def _timed(
    name: str, setting: Setting, batch: dict[str, Tensor], steps: int, alive: dict[str, Ready]
) -> tuple[list[float], list[float]]:
    """Seconds of a contender's steps, and of its merging alone. On a CPU it stays alive."""
    ready = alive[name] if name in alive else _warm(name, setting, batch)
    if setting.device.type == "cpu":
        alive[name] = ready
    seconds = [_seconds(lambda: ready.step(batch), setting.device) for _ in range(steps)]
    merge = None if ready.adapter is None else ready.adapter.merge
    merges = [_seconds(merge, setting.device) for _ in range(steps)] if merge is not None else []
    return seconds, merges


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget(device: torch.device) -> None:
    """Free the last contender."""
    if "peft.tuners.shira.layer" in sys.modules:
        # peft remembers for ever which SHiRA layers it has warned about, and their weights with it
        sys.modules["peft.tuners.shira.layer"]._warn_once_about_module_hooks.cache_clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _attention_flops(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Scores of every query with every key, and the weighted values: two products."""
    rows, heads, queries, width = query
    return int(2 * 2 * rows * heads * queries * key[2] * width)


def _attention_backward_flops(grad: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Five products, of which one is the scores again."""
    return 5 * _attention_flops(query, key) // 2


# torch has formulas for its attention on CUDA only
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def _flops(ready: Ready, batch: dict[str, Tensor]) -> dict[str, Any]:
    """Products and sums of matrix products and attention in a step, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as forward:
        loss = ready.forward(batch)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as backward:
        loss.backward()  # type: ignore[no-untyped-call]
    ready.update()
    ahead, back = forward.get_total_flops(), backward.get_total_flops()
    return {
        "forward_flops": ahead,
        "backward_flops": back,
        "total_flops": ahead + back,
        "backward_to_forward": back / ahead,
    }


def _summary(seconds: list[float]) -> dict[str, Any]:
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return {
        "step_seconds": middle,
        "step_seconds_quartiles": [low, high],
        "fastest_step_seconds": min(seconds),
    }


def _shares(
    step: float, merge: float, setting: Setting, density: float, repeats: int
) -> dict[str, Any]:
    """What merging, and the gradient at the chosen places, take of a step.

    Gathering is what the gradient at the chosen places takes beyond the plain product that is a
    dense gradient; where sampling them is quicker than that product, it is nothing.
    """
    gradient = gather = 0.0
    for (outs, ins), count in _layer_shapes(setting).items():
        times = _gradient_seconds(setting, outs, ins, density, repeats)
        way = "sampled" if is_sampled("auto", density, setting.device) else "dense"
        gradient += count * times[way]
        gather += count * max(times[way] - times["product"], 0.0)
    return {
        "merge_seconds": merge,
        "gather_seconds": gather,
        "gradient_seconds": gradient,
        "merge_share": merge / step,
        "gather_share": gather / step,
        "gradient_share": gradient / step,
    }


def _layer_shapes(setting: Setting) -> dict[tuple[int, int], int]:
    """How many linear layers there are of each shape (out_features, in_features)."""
    backbone = empty_backbone(load_architecture(setting.config.model))
    shapes: dict[tuple[int, int], int] = {}
    for layer in _linear_layers(backbone).values():
        shape = (layer.out_features, layer.in_features)
        shapes[shape] = shapes.get(shape, 0) + 1
    return shapes


def _gradient_seconds(
    setting: Setting, outs: int, ins: int, density: float, repeats: int
) -> dict[str, float]:
    """Median seconds, on random operands: the product alone, the dense and the sampled way."""
    draw = torch.Generator(setting.device).manual_seed(0)
    options: Any = {"generator": draw, "device": setting.device}
    count = setting.rows * setting.tokens
    dtype = setting.precision.model_dtype
    grad = torch.randn(count, outs, **options).to(dtype)
    x = torch.randn(count, ins, **options).to(dtype)
    places = sample_indices(outs * ins, density, 0, "bench").to(setting.device)
    ways: dict[str, Callable[[], Tensor]] = {
        "product": lambda: grad.t() @ x,
        "dense": lambda: weight_gradient_at(grad, x, places, sampled=False),
        "sampled": lambda: weight_gradient_at(grad, x, places, sampled=True),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, work in ways.items():
            spent = _seconds(work, setting.device)
            if turn:  # the first is to warm up
                seconds[way].append(spent)
    return {way: statistics.median(spent) for way, spent in seconds.items()}


def _ratios(
    rows: dict[str, dict[str, Any]], seconds: dict[str, list[list[float]]], model_bytes: int
) -> list[dict[str, Any]]:
    """Every comparison whose two sides were measured, with its target."""
    ratios = []
    for what, mine, other, most in _targets():
        if mine in seconds and other in seconds:
            within = [
                statistics.median(a) / statistics.median(b)
                for a, b in zip(seconds[mine], seconds[other], strict=True)
            ]
            value = statistics.median(within)
            fastest = rows[mine]["fastest_step_seconds"] / rows[other]["fastest_step_seconds"]
            more = {
                "lowest_and_highest_round": [min(within), max(within)],
                "of_fastest_steps": fastest,
            }
            ratios.append(_ratio(f"{what} of {mine} / {other}", value, "≤", most) | more)
    for density in DENSITIES:
        mine, other = f"sparta-{density}", f"peft-sparta-{density}"
        if mine in seconds and other in seconds:
            less = rows[other]["peak_memory_bytes"] - rows[mine]["peak_memory_bytes"]
            what = f"peak memory of {mine} below {other}, in sizes of the weights"
            ratios.append(_ratio(what, less / model_bytes, "≥", 0.9))
        if mine in seconds:
            share = rows[mine]["merge_share"] + rows[mine]["gather_share"]
            ratios.append(_ratio(f"merging and gathering / step of {mine}", share, "<", 0.05))
    return ratios


def _ratio(what: str, value: float, sign: str, target: float) -> dict[str, Any]:
    reached = {"≤": value <= target, "<": value < target, "≥": value >= target}[sign]
    return {
        "what": what,
        "value": value,
        "target": f"{sign} {target:.2f}",
        "reached": reached,
    }


# ---------------------------------------------------------------------------------- crossover
def crossover(setting: Setting, repeats: int) -> dict[str, Any]:
    """Dense against sampled gradient, for each shape of linear layer and each density."""
    layers = []
    for outs, ins in _layer_shapes(setting):
        times = {
            str(density): _gradient_seconds(setting, outs, ins, density, repeats)
            for density in CROSSOVER_DENSITIES
        }
        faster = [d for d in CROSSOVER_DENSITIES if _sampled_wins(times[str(d)])]
        layers.append(
            {
                "out_features": outs,
                "in_features": ins,
                "seconds": times,
                "sampled_is_faster_up_to": max(faster, default=None),
            }
        )
    tokens = setting.rows * setting.tokens
    return {"model": setting.config.model.name, "tokens": tokens, "layers": layers}


def _sampled_wins(seconds: dict[str, float]) -> bool:
    return seconds["sampled"] <= seconds["dense"]


# ------------------------------------------------------------------------------------ showing
def as_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    device, dtypes = report["device"], report["dtypes"]
    packages = [
        f"{name} {version or 'not installed'}" for name, version in report["versions"].items()
    ]
    lines = [
        f"{device['name']} ({device['type']}, {device['threads']} threads), {report['date']}",
        f"weights {dtypes['model']}, trained values {dtypes['trained']}; {report['rounds']} rounds",
        ", ".join(packages),
    ]
    for setting in report.get("settings", []):
        lines += ["", *_setting_lines(setting)]
    for table in report.get("crossover", []):
        lines += ["", *_crossover_lines(table)]
    return "\n".join(lines)


def _setting_lines(setting: dict[str, Any]) -> list[str]:
    head = (
        "contender", "trained", "step, ms", "quartiles", "fastest", "TFLOP", "backward/forward",
        "peak, MB", "merge", "gather", "gradient", "",
    )  # fmt: skip
    body = []
    for row in setting["contenders"]:
        if "step_seconds" not in row:
            body.append([row["name"], *[""] * (len(head) - 2), row["status"]])
            continue
        low, high = row["step_seconds_quartiles"]
        shares = [row.get(f"{part}_share") for part in ("merge", "gather", "gradient")]
        body.append(
            [
                row["name"],
                f"{row['trainable']:,}",
                f"{row['step_seconds'] * 1e3:.1f}",
                f"{low * 1e3:.1f} – {high * 1e3:.1f}",
                f"{row['fastest_step_seconds'] * 1e3:.1f}",
                f"{row['total_flops'] / 1e12:.3f}",
                f"{row['backward_to_forward']:.3f}",
                f"{row['peak_memory_bytes'] / 1e6:,.1f}",
                *("" if share is None else f"{share:.1%}" for share in shares),
                row["note"] or "",
            ]
        )
    ratios = []
    for ratio in setting["ratios"]:
        spread, fastest = ratio.get("lowest_and_highest_round"), ratio.get("of_fastest_steps")
        ratios.append(
            [
                ratio["what"],
                f"{ratio['value']:.3f}",
                "" if spread is None else f"{spread[0]:.3f} – {spread[1]:.3f}",
                "" if fastest is None else f"{fastest:.3f}",
                ratio["target"],
                "yes" if ratio["reached"] else "no",
            ]
        )
    return [
        f"{setting['model']}: {setting['parameters']:,} parameters, {setting['rows']} rows of "
        f"{setting['tokens']} tokens",
        "",
        *_table(head, body),
        "",
        *_table(("ratio", "value", "rounds", "of fastest", "target", "reached"), ratios),
    ]


def _crossover_lines(table: dict[str, Any]) -> list[str]:
    head = ("layer", *(f"{density:.2%}" for density in CROSSOVER_DENSITIES), "faster up to")
    body = []
    for layer in table["layers"]:
        ratios = [f"{times['sampled'] / times['dense']:.2f}" for times in layer["seconds"].values()]
        most = layer["sampled_is_faster_up_to"]
        shape = f"{layer['out_features']} × {layer['in_features']}"
        body.append([shape, *ratios, "never" if most is None else f"{most:.2%}"])
    return [
        f"{table['model']}, {table['tokens']:,} tokens: seconds of the sampled gradient / of the "
        "dense one, by layer (out × in) and density",
        "",
        *_table(head, body),
    ]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in [head, *body]) for place in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        return f"| {' | '.join(cells)} |"

    return [line(head), line(["-" * width for width in widths]), *map(line, body)]
