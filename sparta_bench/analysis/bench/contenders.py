"""Who is measured: the project's methods, and other packages' implementations."""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.config.schema import Config
from sparta_bench.methods import prepare
from sparta_bench.methods.trained import HEAD
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.counts import empty_backbone, shapes_of
from sparta_bench.models.dtypes import Precision
from sparta_bench.models.source import load_architecture
from sparta_bench.paper import PAPER_DENSITIES
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.sample import sample_all, sampled_tensors
from sparta_bench.training.optimizer import build_optimizer

# Full fine-tuning as mistral-7b's preset has it: bfloat16 values and moments, stochastic rounding.
FULL_FT_BFLOAT16 = "full_ft-bfloat16"
RATE = 1e-5  # the learning rate of all: no step is to lead anywhere
SPARSE = ("sparta", "peft-sparta", "shira")


def names() -> list[str]:
    """Who takes part where nobody chooses."""
    sparse = [f"{kind}-{density}" for density in PAPER_DENSITIES for kind in SPARSE]
    return ["full_ft", FULL_FT_BFLOAT16, "head", "lora", *sparse]


def read_name(name: str) -> tuple[str, str]:
    """Return kind and density of a sparse contender; another one is its own kind, without any."""
    sparse = re.fullmatch(rf"({'|'.join(SPARSE)})-(0\.\d+)", name)
    return (sparse[1], sparse[2]) if sparse else (name, "")


def is_contender(name: str) -> bool:
    """Those of `names`, and a sparse one at any other density, as sparta-0.2."""
    return name in names() or float(read_name(name)[1] or 0) > 0


def missing(name: str, device: torch.device) -> str | None:
    """Return why a contender cannot take part, if it cannot."""
    if name == FULL_FT_BFLOAT16 and device.type == "cpu":
        return "on CUDA only: a CPU computes slowly in bfloat16"
    if name.startswith("peft-sparta") and importlib.util.find_spec("peft_sparta") is None:
        return "peft-sparta is not installed"
    return None


@dataclass
class Ready:
    """A contender that can make steps. `values` train; `write` brings them into the weights.

    `chosen` is how many scalars of the backbone were chosen, None where the method chooses none.
    """

    model: nn.Module
    values: list[nn.Parameter]
    write: Callable[[], None]
    chosen: int | None = None
    note: str | None = None
    adapter: SpartaAdapter | None = None
    optimizer: Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = AdamW(self.values, lr=RATE, weight_decay=0.0, fused=True)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return F.cross_entropy(logits, batch["labels"])

    def step(self, batch: dict[str, Tensor]) -> Tensor:
        """Make a whole optimizer step; returns the loss before it."""
        loss = self.forward(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.update()
        return loss.detach()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.write()


def build(name: str, setting: Setting) -> Ready:
    if name == FULL_FT_BFLOAT16:
        own = setting.changed("method=full_ft", "train.trained_dtype=bfloat16")
        return with_own_optimizer(own.classifier(), own)
    kind, density = read_name(name)
    if kind == "peft-sparta":
        return _peft_sparta(setting, float(density))
    if kind == "shira":
        return _shira(setting, float(density))
    method = [f"method={kind}", *([f"method.density={density}"] if density else [])]
    config = setting.changed("train.trained_dtype=float32", *method).config
    return _ours(setting.classifier(), config, setting.precision)


def _ours(classifier: Classifier, config: Config, precision: Precision) -> Ready:
    trained = prepare(classifier, config, precision)
    adapter = getattr(trained, "sparta", None)
    values = [value for group in trained.groups(0.0) for value in group["params"]]
    return Ready(classifier, values, trained.write, trained.sampled, adapter=adapter)


def with_own_optimizer(classifier: Classifier, setting: Setting) -> Ready:
    """Return the setting's own method and dtypes, with the runner's optimizer, which knows
    bfloat16."""
    ready = _ours(classifier, setting.config, setting.precision)
    ready.optimizer = build_optimizer([{"params": ready.values}], setting.config.train)
    for group in ready.optimizer.param_groups:
        group["lr"] = RATE
    return ready


def _indices(setting: Setting, density: float) -> dict[str, Tensor]:
    """What our adapter draws for each tensor of the backbone: flat, int32, on the CPU."""
    backbone = empty_backbone(load_architecture(setting.config.model))
    shapes = {name: tensor.shape for name, tensor in backbone.named_parameters()}
    return sample_all(shapes, sampled_tensors(backbone, density), setting.config.seed)


def _peft_sparta(setting: Setting, density: float) -> Ready:
    """The authors' package, with our choice of scalars in place of its own."""
    from peft_sparta import sparta as package  # type: ignore[import-untyped, import-not-found]

    indices = _indices(setting, density)
    classifier = setting.classifier()
    embeddings = sorted(shapes_of(classifier.backbone).embeddings)
    theirs = package.SpaRTA(classifier, 1 - density, embeddings)
    rows: dict[str, Tensor] = {}
    for name, tensor in classifier.named_parameters():
        flat = indices.get(name.removeprefix("backbone."), torch.empty(0, dtype=torch.int32))
        if name == HEAD:  # trains in full, here as there
            flat = torch.arange(tensor.numel(), dtype=torch.int32)
        unraveled = torch.unravel_index(flat.to(tensor.device), tensor.shape)
        rows[name] = torch.stack(unraveled, dim=1).int()
    theirs.indices = package.BufferDict(rows)
    theirs.deltas = package.ParameterDict(
        {name: torch.zeros(len(chosen), device=setting.device) for name, chosen in rows.items()}
    )
    theirs.original_chosen_params = package.BufferDict(theirs.clone_chosen_params())
    return Ready(theirs, list(theirs.parameters()), lambda: None, sum(map(len, indices.values())))


def _shira(setting: Setting, density: float) -> Ready:
    """peft's SHiRA on every linear layer of the backbone, and the head."""
    from peft import ShiraConfig, get_peft_model

    wanted = sum(map(len, _indices(setting, density).values()))
    classifier = setting.classifier()
    layers = linear_layers(classifier.backbone)
    per_rank = sum(layer.in_features + layer.out_features for layer in layers.values())
    rank = max(round(wanted / per_rank), 1)
    seed, targets = setting.config.seed, list(layers)
    settings = ShiraConfig(r=rank, mask_type="random", random_seed=seed, target_modules=targets)
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]  # as it is; not said, torch warns
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers things under their old names
        classifier.backbone = get_peft_model(classifier.backbone, settings)  # type: ignore[arg-type]
    values = [value for value in classifier.backbone.parameters() if value.requires_grad]
    for value in values:
        value.data = value.data.to(setting.precision.trained_dtype)
    chosen = sum(value.numel() for value in values)
    classifier.head_weight.requires_grad_(True)
    note = f"r={rank}: {chosen / wanted:.2f} times as many scalars as sparta-{density}"
    return Ready(classifier, [*values, classifier.head_weight], lambda: None, chosen, note)


def linear_layers(backbone: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in backbone.named_modules() if isinstance(m, nn.Linear)}
