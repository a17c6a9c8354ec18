"""One trained model in another form: a folder that transformers alone can use (`save=full`, `merge
bake`; with `classifier_config.json`), or the layout of peft-sparta."""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from sparta_bench.adapters.load_adapter import Loaded, load
from sparta_bench.adapters.manifest import Manifest, portable
from sparta_bench.adapters.read_folder import SCORE, WHOLE
from sparta_bench.errors import InputError, reason_of
from sparta_bench.files import whole_folder, write_json
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dtypes import DTYPES
from sparta_bench.models.write_sharded import whole_tensors, write_weights
from sparta_bench.sparta import SpartaAdapter, peft_sparta, store
from sparta_bench.sparta.weight_patch import write_patch

PATCH = "patch.safetensors"


def refuse_to_replace(folder: Path, out: Path, force: bool) -> None:
    """Raise InputError if `out` may not be written while `folder` is read, or is not empty."""
    if out.is_file():
        raise InputError(f"--out {out}: is a file")
    if out.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise InputError(f"--out {out}: holds the adapter that is to be read")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise InputError(f"--out {out}: is not empty (--force replaces the whole folder)")


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which replaces `out` when the block ends well. Raises
    InputError if it cannot be written."""
    try:
        with whole_folder(out) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror}") from None


def bake(
    folder: Path,
    out: Path,
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write the classifier in `folder` (see `load_adapter`) as a plain transformers folder; returns
    a line that says what was written."""
    refuse_to_replace(folder, out, force)
    loaded = load(folder, base, tokenizer, allow_pickle)
    loaded.merge_and_unload()
    with written(out) as temporary:
        pad = write_whole(loaded.classifier, loaded.tokenizer, loaded.about, temporary)
    scalars = sum(parameter.numel() for parameter in loaded.classifier.parameters())
    dtype = loaded.about.dtypes["model"]
    line = f"{out}: {scalars:,} scalars in {dtype}, padded with {pad} on the right"
    if loaded.about.method["name"] == "lora":
        line += "; LoRA's product was added to them, which rounds"
    head = loaded.classifier.head_weight.detach()
    moved = float((head.to(DTYPES[dtype]).to(head.dtype) - head).norm() / head.norm())
    if moved > 0:
        line += (
            f"; the head is {loaded.about.dtypes['trained']} in the file: loaded in {dtype} it is "
            f"rounded by {moved:.2%} (root mean square), with dtype=torch.float32 not at all"
        )
    return line


def export(
    folder: Path,
    out: Path,
    base_name: str,
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write a SpaRTA adapter in the layout of peft-sparta, which is to load the base model from
    `base_name`: a name on the hub, or a folder. Returns a line that says what was written."""
    refuse_to_replace(folder, out, force)
    loaded, sparta = _load_sparta(folder, base, tokenizer, allow_pickle)
    about, head = loaded.about, loaded.classifier.head_weight
    with written(out) as temporary:
        tensors = (sparta.indices, sparta.deltas, head)
        peft_sparta.write(sparta.backbone, *tensors, temporary, base_name, about.labels)
    line = f"{out}: {sparta.chosen:,} deltas and the head, on {base_name}"
    words, dtype = len(loaded.tokenizer), about.dtypes["model"]
    rows = loaded.classifier.backbone.config.vocab_size  # type: ignore[union-attr]
    if words != rows:
        line += (
            f"; peft-sparta 0.0.3 will refuse it, because the tokenizer has {words} tokens and the "
            f"model {rows} embeddings"
        )
    if dtype != "bfloat16":
        line += (
            "; peft-sparta loads the base in bfloat16, where this was trained in "
            f"{dtype}, so its probabilities will differ a little"
        )
    return line


def export_patch(
    folder: Path,
    out: Path,
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write a SpaRTA adapter as a patch of its base's tensors (`sparta.weight_patch`), with the
    head whole beside them. Returns a line that says what was written."""
    refuse_to_replace(folder, out, force)
    loaded, adapter = _load_sparta(folder, base, tokenizer, allow_pickle)
    about = {
        "base": str(loaded.about.base_model["name"]),
        "labels": json.dumps(loaded.about.labels),
    }
    with written(out) as temporary:
        head = {SCORE: loaded.classifier.head_weight}
        write_patch(adapter, temporary / PATCH, head, about)
    return (
        f"{out / PATCH}: {adapter.chosen:,} entries of {len(adapter.indices):,} tensors of "
        f"{about['base']} in {loaded.about.dtypes['model']}, and the head as {SCORE}"
    )


def _load_sparta(
    folder: Path, base: str | None, tokenizer: str | None, allow_pickle: bool
) -> tuple[Loaded, SpartaAdapter]:
    """Load a SpaRTA adapter whose changes are all in tensors of its base; raises InputError for
    anything else."""
    loaded = load(folder, base, tokenizer, allow_pickle)
    if loaded.sparta is None:
        name = loaded.about.method["name"]
        raise InputError(f"{folder}: an adapter of {name}; this layout is for SpaRTA's")
    if loaded.about.separator == "sep_token":
        raise InputError(f"{folder}: was trained with an added token, which is not exported")
    return loaded, loaded.sparta


def write_whole(classifier: Classifier, tokenizer: Any, about: Manifest, folder: Path) -> str:
    """Write a classifier whose backbone is plain as a folder that transformers alone can use.

    The head stays in its own dtype in the file. transformers loads everything in the dtype of
    `config.json`, the backbone's, unless it is asked for another. Returns the token that inputs
    are padded with on the right; transformers pools a row's last token that is not it.
    """
    padding = padding_on_the_right(tokenizer)
    model = _full_classifier(classifier, about.labels, padding.pad_token_id)
    model.save_pretrained(folder)
    return _write_beside(padding, about, folder)


def write_whole_sharded(
    classifier: Classifier, tokenizer: Any, about: Manifest, out: Path, writes: bool
) -> None:
    """`write_whole` of a sharded backbone, as a whole folder, by the process that `writes`. All
    processes call this together."""
    padding = padding_on_the_right(tokenizer)
    model = _full_classifier(classifier, about.labels, padding.pad_token_id)
    values = whole_tensors(model)
    try:
        if writes:
            with whole_folder(out) as temporary:
                model.config.dtype = str(model.dtype).removeprefix("torch.")
                model.config.architectures = [type(model).__name__]
                model.config.save_pretrained(temporary)
                write_weights(model, values, temporary)
                _write_beside(padding, about, temporary)
    finally:
        # gathered by all processes together, also where one does not write, or cannot
        deque(values, maxlen=0)


def _write_beside(padding: Any, about: Manifest, folder: Path) -> str:
    """Write what is there beside the weights; returns the padding token."""
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


def _full_classifier(classifier: Classifier, labels: list[str], pad: int) -> Any:
    """Return transformers' classifier of the same tensors."""
    model = _empty_classifier(classifier, labels, pad)
    setattr(model, model.base_model_prefix, classifier.backbone)
    model.score.weight = classifier.head_weight
    return model


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
