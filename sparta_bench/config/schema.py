"""One experiment's configuration: frozen dataclasses, checked and made by `config.check`.

What each setting means, its unit and its default stand beside it in `conf/`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

DTYPES = ("float32", "bfloat16")
TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")  # packages, and our extras
TINY_TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "imdb")  # generated


@dataclass(frozen=True)
class Hub:
    """Where a data set is on the Hugging Face hub."""

    path: str
    name: str | None
    revision: str


@dataclass(frozen=True)
class Tsv:
    """GLUE's TSV layout of one task. `columns` maps the hub's names to header names;
    `positions` and `fields` describe files without a header row."""

    folder: str
    files: dict[str, str] = field(hash=False)  # compared, but a dictionary has no hash
    columns: dict[str, str] = field(hash=False)
    positions: dict[str, int] | None = field(default=None, hash=False)
    fields: int | None = None


@dataclass(frozen=True)
class Dev:
    """Which rows of which raw split make up the dev set."""

    split: str
    take: str
    examples: int | None


@dataclass(frozen=True)
class Prompt:
    """How an instruction model is asked; `answers` are in label order."""

    instruction: str
    answers: tuple[str, ...]
    answers_text: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class ModelConfig:
    """The base model and its tokenizer; `conf/model/_base.yaml` says what each setting means."""

    name: str
    hub_id: str | None
    revision: str
    path: str | None
    tokenizer: str | None
    kind: str
    dtype: str
    embedded: bool
    shape: dict[str, Any] | None = field(hash=False)


@dataclass(frozen=True)
class TaskConfig:
    """The data, its splits and how a model reads it; see `conf/task/_base.yaml`. Columns, labels,
    sets and prompt are empty until `data.splits.complete` has found them in the data."""

    name: str
    hub: Hub | None
    data: str | None
    data_dir: str | None
    generated: str | None
    tsv: Tsv | None
    columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    train_split: str
    dev: Dev
    test_splits: tuple[str, ...]
    test_examples: int | None
    draw_seed: int
    max_train_examples: int | None
    cap_takes: str
    max_train_tokens: int
    truncate_eval: bool
    separator: str
    undo_spacing: bool
    on_bad_row: str
    prompt: Prompt


@dataclass(frozen=True)
class FullFtConfig:
    """Full fine-tuning has no settings of its own."""

    name: str


@dataclass(frozen=True)
class HeadConfig:
    """Training the head alone has no settings of its own."""

    name: str


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (appendix C); see `conf/method/lora.yaml`."""

    name: str
    r: int
    alpha: float
    targets: tuple[str, ...]
    lora_dropout: float


@dataclass(frozen=True)
class SpartaConfig:
    """SpaRTA (Algorithm 1): `density` lies inside (0, 1); see `conf/method/sparta.yaml`."""

    name: str
    density: float
    targets: str | tuple[str, ...]
    density_of: str
    pattern: str = "scalars"  # as in the records before there was another


MethodConfig = FullFtConfig | HeadConfig | LoraConfig | SpartaConfig
METHOD_CLASSES: dict[str, type] = {
    "full_ft": FullFtConfig,
    "head": HeadConfig,
    "lora": LoraConfig,
    "sparta": SpartaConfig,
}
METHODS = tuple(METHOD_CLASSES)


@dataclass(frozen=True)
class TrainConfig:
    """Training as the loop reads it, presets filled in; see `conf/train/default.yaml`."""

    learning_rate: float
    batch_size: int
    epochs: float
    weight_decay: float
    dropout: float
    max_grad_norm: float
    patience: int
    trained_dtype: str
    betas: tuple[float, ...]
    eps: float
    warmup_ratio: float
    schedule: str
    floor_ratio: float
    max_steps: int | None
    accumulation_steps: int
    eval_every: int | None
    eval_first: bool
    eval_tokens: int | None
    eval_batch_size: int | None
    min_improvement: float
    bucket_batches: int
    share_prefix: str | bool
    gradient_checkpointing: bool
    checkpoint_every: int | None
    sharding: str


@dataclass(frozen=True)
class SearchConfig:
    """Which settings of a grid are run, and how far; see `conf/search/race.yaml`."""

    name: str
    confirm: int
    margin: float
    rival: str | None


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as the plain values that a JSON file gives: lists, no tuples."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return values


@dataclass(frozen=True)
class Config:
    """One experiment, checked; see `conf/config.yaml`."""

    model: ModelConfig
    task: TaskConfig
    method: MethodConfig
    train: TrainConfig
    search: SearchConfig
    seed: int
    device: str
    results_dir: str
    cache_dir: str | None
    force: bool
    save: str
    runs_at_once: int | str
    logger: str
    limit: int | None

    def dtypes(self, device_kind: str) -> dict[str, str]:
        """What model and trained values are computed in, on `cpu` or `cuda`. `auto` is bfloat16 on
        CUDA, else float32: a CPU without instructions for bfloat16 is hundreds of times slower."""
        auto = "bfloat16" if device_kind == "cuda" else "float32"
        model = auto if self.model.dtype == "auto" else self.model.dtype
        return {"model": model, "trained": self.train.trained_dtype}

    def as_dict(self) -> dict[str, Any]:
        """The whole configuration as the plain values that a JSON file gives: lists, no tuples."""
        return plain(self)
