"""What is measured: a model shape, and a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from sparta_bench.config.compose import compose
from sparta_bench.config.schema import Config
from sparta_bench.models.classifier import Classifier, checkpoint_gradients, random_head
from sparta_bench.models.counts import Once, Shapes, planned, shapes_of
from sparta_bench.models.dropout import no_dropout
from sparta_bench.models.dtypes import Precision, precision_of
from sparta_bench.models.load import with_attention
from sparta_bench.models.source import load_architecture
from sparta_bench.models.tokens_once import TokensOnce


@dataclass(frozen=True)
class Setting:
    """A model shape and a batch: `rows` examples of `tokens` tokens each, without padding. All
    begin with the same `shared_tokens`."""

    overrides: tuple[str, ...]
    config: Config
    device: torch.device
    rows: int
    tokens: int
    shared_tokens: int = 0

    @property
    def precision(self) -> Precision:
        return precision_of(self.config, self.device)

    def changed(self, *overrides: str) -> Setting:
        words = (*self.overrides, *overrides)
        return replace(self, overrides=words, config=compose(list(words)))

    def with_checkpointing(self, on: bool) -> Setting:
        train = replace(self.config.train, gradient_checkpointing=on)
        return replace(self, config=replace(self.config, train=train))

    def classifier(self) -> Classifier:
        """Return the frozen classifier with random weights, always the same ones."""
        torch.manual_seed(self.config.seed)
        with self.device:
            backbone: Any = with_attention(
                lambda attention: AutoModel.from_config(
                    load_architecture(self.config.model),
                    dtype=self.precision.model_dtype,
                    attn_implementation=attention,
                )
            )
        no_dropout(backbone)
        if self.config.train.gradient_checkpointing:
            checkpoint_gradients(backbone)
        head = random_head(len(self.config.task.labels), backbone.config.hidden_size, 0)
        classifier = Classifier(backbone, head.to(self.device, self.precision.trained_dtype))
        return classifier.requires_grad_(False).train()

    def as_in_a_run(self) -> Classifier:
        """Return the classifier, which computes of a batch what a run does."""
        classifier = self.classifier()
        classifier.pool = TokensOnce(*self.once(shapes_of(classifier.backbone))).pooled
        return classifier

    def once(self, shapes: Shapes) -> Once:
        return planned(shapes, self.config.train, self.config.method, self.shared_tokens)

    def batch(self) -> dict[str, Tensor]:
        """Return random tokens and labels, always the same ones."""
        draw = torch.Generator().manual_seed(self.config.seed)
        vocabulary = load_architecture(self.config.model).vocab_size
        classes = len(self.config.task.labels)
        shape = (self.rows, self.tokens)
        ids = torch.randint(vocabulary, shape, generator=draw)
        ids[:, : self.shared_tokens] = ids[0, : self.shared_tokens].clone()
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones(shape, dtype=torch.int64),
            "labels": torch.randint(classes, (self.rows,), generator=draw),
        }
        return {name: tensor.to(self.device) for name, tensor in batch.items()}
