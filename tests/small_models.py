"""Random models small enough for exact tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def backbone(
    model_type: str = "mistral", dtype: torch.dtype = torch.float64, **extra: Any
) -> nn.Module:
    """A decoder without a head, the same at each call."""
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(model_type, **SMALL | extra)).to(dtype).eval()


def classifier(
    model_type: str = "mistral", dtype: torch.dtype = torch.float32, **extra: Any
) -> nn.Module:
    """transformers' own classifier on such a decoder, two classes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        model_type, **SMALL | {"pad_token_id": 0, "num_labels": 2} | extra
    )
    return AutoModelForSequenceClassification.from_config(config).to(dtype)


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Some loss of a backbone."""
    return model(input_ids=ids, use_cache=False).last_hidden_state.pow(2).mean()


def batch(rows: int = 4, tokens: int = 9) -> dict[str, Tensor]:
    """Token ids and labels for `classifier`."""
    ids = torch.randint(1, 60, (rows, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": torch.arange(rows) % 2}


def values_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def same_values(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether the model has these parameters, with these bits and dtypes, and no other."""
    now = dict(model.named_parameters())
    return now.keys() == before.keys() and all(
        now[name].dtype == tensor.dtype and torch.equal(now[name], tensor)
        for name, tensor in before.items()
    )
