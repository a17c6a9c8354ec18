"""A classifier as one folder that transformers alone can use, with `classifier_config.json`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from sparta_bench.adapters.manifest import Manifest, portable
from sparta_bench.adapters.read_folder import WHOLE
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import write_json
from sparta_bench.models.classifier import Classifier
from sparta_bench.sparta import store


def write_whole(classifier: Classifier, tokenizer: Any, about: Manifest, folder: Path) -> str:
    """Write a classifier whose backbone is plain as a folder that transformers alone can use.

    The head stays in its own dtype in the file. transformers loads everything in the dtype of
    `config.json`, the backbone's, unless it is asked for another. Returns the token that inputs
    are padded with on the right; transformers pools a row's last token that is not it.
    """
    padding = padding_on_the_right(tokenizer)
    model = _empty_classifier(classifier, about.labels, padding.pad_token_id)
    setattr(model, model.base_model_prefix, classifier.backbone)
    model.score.weight = classifier.head_weight
    model.save_pretrained(folder)
    padding.save_pretrained(folder)
    write_json(folder / WHOLE, {"format": store.FORMAT, **portable(about)})
    return str(padding.pad_token)


def check_whole(classifier: Classifier, tokenizer: Any, labels: list[str]) -> None:
    """Raise InputError where `write_whole` would, which is better known before the training."""
    pad = tokenizer.convert_tokens_to_ids(padding_token(tokenizer))
    _empty_classifier(classifier, labels, pad)


def padding_on_the_right(tokenizer: Any) -> Any:
    """Return a copy of the tokenizer that pads with `padding_token`, as transformers' classifiers
    need it."""
    padding = copy.deepcopy(tokenizer)
    padding.pad_token = padding_token(padding)
    padding.padding_side = "right"
    return padding


def padding_token(tokenizer: Any) -> str:
    """Return a token that never ends an input, so that pooling finds the input's last token.

    The tokenizer's own, unless that is its end or unknown token as well; else BOS, which ends only
    an input without any text, and then is the first token, which transformers pools if all is
    padding. (A text that spells BOS out at its end is the exception.)
    """
    own = tokenizer.pad_token
    if own is not None and own not in (tokenizer.eos_token, tokenizer.unk_token):
        return str(own)
    if tokenizer.bos_token is None:
        raise InputError("the tokenizer has neither a padding token of its own nor BOS to pad with")
    return str(tokenizer.bos_token)


def _empty_classifier(classifier: Classifier, labels: list[str], pad: int) -> Any:
    """Return transformers' classifier of the same architecture, without memory."""
    config: Any = copy.deepcopy(classifier.backbone.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    config.pad_token_id = pad
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InputError(f"transformers has no such classifier: {reason_of(error)}") from None
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.score.bias is not None:
        raise InputError(
            f"{type(model).__name__}: its head is not one linear layer without bias, named score"
        )
    return model
