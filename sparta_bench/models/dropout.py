"""Dropout of a backbone: the attention's is a setting, the paper's; all other is off.

Architectures have dropout of many names, and some draw random numbers in other ways (routers,
skipped layers). Settings are found by their names; a forward pass shows whether any was missed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedConfig

from sparta_bench.errors import InputError, log

# Routers multiply their input by noise of this width. (Another, PhiMoE's `router_jitter_noise`,
# decides in evaluation as well, so it must stay.)
NOISE = ("jitter_noise", "input_jitter_noise")
PASSES = 3  # forward passes that are compared, where random numbers were drawn


class _Setting(NamedTuple):
    """`key` of `holder`; `owner` is the class that it belongs to, `name` its name there."""

    holder: Any
    key: str
    owner: str
    name: str

    @property
    def value(self) -> float:
        return float(getattr(self.holder, self.key))

    def set(self, value: float) -> None:
        kind = type(getattr(self.holder, self.key))  # configurations check their types
        setattr(self.holder, self.key, kind(value) if value == 0 else value)

    @property
    def of_attention(self) -> bool:
        """Whether it drops attention weights, and not the output of attention."""
        plain = self.name == "dropout" and "Attention" in self.owner  # OPT's
        return plain or self.name.startswith(("attention_", "attn_"))

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}"


def set_dropout(backbone: nn.Module, rate: float) -> None:
    """Set the attention's dropout to `rate`, and all else that draws random numbers to 0.

    Logs which settings other than the attention's were not 0. Raises InputError if the backbone
    draws random numbers that no setting turns off, or its attention takes no dropout.
    """
    named = type(backbone).__name__
    others = sorted({str(s) for s in _settings(backbone) if s.value and not s.of_attention})
    if others:
        log(f"dropout of {named}: {', '.join(others)} set to 0 (train.dropout is the attention's)")
    no_dropout(backbone)
    if _draws(backbone):
        raise InputError(
            f"train.dropout={rate}: use another model: in training {named} draws random numbers "
            "that no setting turns off"
        )
    if rate == 0:
        return
    attention = [setting for setting in _settings(backbone) if setting.of_attention]
    for setting in attention:
        setting.set(0.5)  # a small rate may drop nothing in a few tokens
    if not _draws(backbone):
        raise InputError(
            f"train.dropout={rate}: use 0: {named} has no attention dropout that could be set"
        )
    for setting in attention:
        setting.set(rate)


def no_dropout(backbone: nn.Module) -> None:
    """Set all dropout that the modules have to 0, and in their configurations, which some read."""
    values = [getattr(module, "config", None) for module in backbone.modules()]
    settings, seen = list(_settings(backbone)), set[int]()
    while values:
        config = values.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in seen:
            seen.add(id(config))
            values += vars(config).values()
            settings += _numbers(config, type(config).__name__)
    for setting in settings:
        setting.set(0)


def dropout_of(backbone: nn.Module) -> dict[str, float]:
    """The rates of the modules' dropout, by class and name there."""
    return dict(sorted({str(setting): setting.value for setting in _settings(backbone)}.items()))


def _settings(backbone: nn.Module) -> Iterator[_Setting]:
    for module in backbone.modules():
        owner = type(module).__name__
        for name, child in module.named_children():
            if isinstance(child, _DropoutNd):
                yield _Setting(child, "p", owner, name)
        if not isinstance(module, _DropoutNd):
            yield from _numbers(module, owner)


def _numbers(holder: Any, owner: str) -> Iterator[_Setting]:
    for name, value in list(vars(holder).items()):
        if ("drop" in name or name in NOISE) and type(value) in (int, float):
            yield _Setting(holder, name, owner, name)


def _draws(backbone: nn.Module) -> bool:
    """Whether random numbers change what the backbone computes in training."""
    was_training = backbone.training
    backbone.train()
    before = random_states(backbone)
    first = states_of_a_few_tokens(backbone)
    drawn = not same(before, random_states(backbone))
    others = (states_of_a_few_tokens(backbone) for _ in range(PASSES - 1))
    changed = drawn and any(not same([first], [other]) for other in others)
    backbone.train(was_training)
    return changed


@torch.no_grad()
def states_of_a_few_tokens(backbone: nn.Module) -> Tensor:
    """Final hidden states of eight different tokens (1 x 8 x hidden)."""
    embedding: nn.Embedding = backbone.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(8, device=embedding.weight.device)[None] % embedding.num_embeddings
    output = backbone(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    states: Tensor = output.last_hidden_state
    return states


def random_states(backbone: nn.Module) -> list[Tensor]:
    """The states of the generators that the backbone may draw from: layers are skipped by the
    CPU's, wherever the backbone is."""
    device = next(backbone.parameters()).device
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *cuda]


def same(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all are bit for bit equal, or both not a number."""
    pairs = zip(tensors, others, strict=True)
    return all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs)
