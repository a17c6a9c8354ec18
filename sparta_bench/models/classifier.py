"""A decoder with a classification head in place of its vocabulary head (section 6.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparta_bench.models.packed_attention import knows_last_layer
from sparta_bench.sparta.sharded import is_sharded, whole


class Classifier(nn.Module):
    """Any Hugging Face decoder without its vocabulary head, and a linear head without bias (classes
    x hidden, in the dtype of what trains) on the last real token's final hidden state."""

    def __init__(self, backbone: nn.Module, head_weight: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        classes, hidden = head_weight.shape
        self.head = nn.Linear(
            hidden, classes, bias=False, dtype=head_weight.dtype, device=head_weight.device
        )
        self.head.weight = nn.Parameter(head_weight)
        # whether FSDP has cut the backbone: its forward pass is then for all processes together
        self.sharded = any(map(is_sharded, backbone.parameters()))
        # how the backbone reads a batch: `TokensOnce.pooled` computes less
        self.pool: Callable[[nn.Module, Tensor, Tensor], Tensor] = pooled_right_padded

    @property
    def head_weight(self) -> nn.Parameter:
        """The head's only tensor (classes x hidden)."""
        weight = self.head.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    @property
    def base_model(self) -> nn.Module:
        """The backbone, by the name that transformers' models have for it."""
        return self.backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (rows x classes, at least float32) of token ids and mask (rows x longest)."""
        return logits_of(self.features(input_ids, attention_mask), self.head.weight)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """What the head reads: the last real token's final hidden state (rows x hidden, in the
        dtype of the logits)."""
        states = self.pool(self.backbone, input_ids, attention_mask)
        return states.to(logits_dtype(self.head.weight))


def logits_of(features: Tensor, head_weight: Tensor) -> Tensor:
    """Logits (rows x classes, at least float32) of features (rows x hidden) under a head (classes x
    hidden). A head of bfloat16 is widened for the product: logits of 8 bits score too coarsely."""
    wide = logits_dtype(head_weight)
    return F.linear(features.to(wide), head_weight.to(wide))


def logits_dtype(head_weight: Tensor) -> torch.dtype:
    """The head's dtype, but at least float32."""
    return torch.promote_types(head_weight.dtype, torch.float32)


def pooled(backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The last real token's final hidden state (rows x hidden, in the backbone's dtype)."""
    states: Tensor = backbone(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return states[torch.arange(len(states), device=states.device), last_token(attention_mask)]


def pooled_right_padded(backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """`pooled` for inputs whose padding is on the right, which no token sees that is read. Where
    tokens see only those before them, the backbone gets no mask then: the states are the same bit
    for bit (a gradient's sums may have another order), no mask is made, and no GPU waits to learn
    whether one is needed. Other inputs are refused there; on CUDA some time later."""
    if not knows_last_layer(backbone):
        return pooled(backbone, input_ids, attention_mask)
    last = last_token(attention_mask)
    right = (attention_mask.sum(dim=1) == last + 1).all()
    torch._assert_async(right, "inputs that are padded on the left")  # type: ignore[no-untyped-call]
    states: Tensor = backbone(input_ids=input_ids, use_cache=False).last_hidden_state
    return states[torch.arange(len(states), device=states.device), last]


def checkpoint_gradients(backbone: Any) -> None:
    """Let each layer of a transformers model compute its activations again in the backward pass."""
    # transformers renames the method, and warns of the old name
    enable = getattr(backbone, "activation_checkpointing_enable", None)
    (enable or backbone.gradient_checkpointing_enable)({"use_reentrant": False})


def why_not_finite(model: nn.Module) -> str:
    """The probable cause, in words, where a model's output is not finite before any training."""
    for name, tensor in model.named_parameters():
        if not whole(tensor).isfinite().all():
            return f"the base model holds values that are no numbers, in {name}"
    return "the forward pass overflows; try model.dtype=float32"


def last_token(attention_mask: Tensor) -> Tensor:
    """The index of each row's last token that is not padding (int64, rows)."""
    indices = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return torch.argmax(attention_mask * indices, dim=1)


def random_head(classes: int, hidden: int, seed: int) -> Tensor:
    """Normal with standard deviation 0.06 / sqrt(hidden), float32, the same on every device: the
    loss then starts near ln(classes) (section 6.3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, hidden, generator=generator) * (0.06 / math.sqrt(hidden))
