"""Labels of new texts, by a classifier from disk; as many texts as there are, batch by batch."""

from __future__ import annotations

import json
import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparta_bench.adapters.load_adapter import Loaded
from sparta_bench.adapters.manifest import Manifest
from sparta_bench.adapters.multi_head import MultiHead
from sparta_bench.data.examples import BadRowError, is_unicode, parse_texts, render
from sparta_bench.data.local_files import json_object, numbered_lines
from sparta_bench.data.tokenize import (
    Encoded,
    evaluation_batches,
    shared_prefix_length,
    shortest_and_longest,
    tokenize,
)
from sparta_bench.devices import is_lack_of_memory
from sparta_bench.errors import InputError, log
from sparta_bench.models.classifier import Classifier, why_not_finite
from sparta_bench.models.dtypes import DTYPES
from sparta_bench.models.source import context_of
from sparta_bench.models.tokens_once import TokensOnce, that_agrees, tokens_once

Texts = tuple[str, ...]  # of one example, in the model's reading order
Example = tuple[str, Texts]  # its source for messages (`FILE, line 3`), and what
Line = tuple[str, str | BadRowError]  # the same


@dataclass(frozen=True)
class Prediction:
    """The most probable label (the first of equals), and each label's probability (0 to 1)."""

    label: str
    probabilities: dict[str, float]

    def as_text(self) -> str:
        """The label and its probability, with a tab between them."""
        return f"{self.label}\t{self.probabilities[self.label]:.6f}"

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


# ---------------------------------------------------------------------------------- reading
def lines_of(texts: Sequence[str], file: str | None) -> Iterator[Line]:
    """The lines to predict: the words of the command line, or those of a file (`-` or None:
    standard input). Raises InputError if the file cannot be read, or there is no line."""
    if texts:
        for number, text in enumerate(texts, start=1):
            yield f"text {number}", text if is_unicode(text) else BadRowError("is no UTF-8")
        return
    name = "standard input" if file in (None, "-") else str(file)
    number = 0
    try:
        with Path(name).open("rb") if name == file else nullcontext(sys.stdin.buffer) as source:
            for number, line in numbered_lines(source):
                yield f"{name}, line {number}", line
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    if not number:
        raise InputError(f"{name}: is empty, there is nothing to predict")


def read_texts(lines: Iterable[Line], about: Manifest, jsonl: bool) -> Iterator[Example]:
    """The texts of each line: one, or a pair with a tab between; or, of `jsonl`, the task's
    columns by name (or `text`, where the task has one column). Empty lines of jsonl are left out.
    InputError comes at the first line that is something else."""
    for source, line in lines:
        try:
            if isinstance(line, BadRowError):
                raise line
            if not jsonl:
                yield source, _fields(line, about.columns)
            elif line.strip():
                row, columns = json_object(line), about.columns
                if isinstance(row, BadRowError):
                    raise row
                if len(columns) == 1 and columns[0] not in row and "text" in row:
                    columns = ["text"]
                yield source, parse_texts(row, columns)
        except BadRowError as problem:
            raise InputError(f"{source}: {problem}") from None


def _fields(line: str, columns: list[str]) -> Texts:
    texts = tuple(line.split("\t"))
    if len(texts) == len(columns):
        return texts
    hint = "a tab stands between them, in a shell $'one\\tother'"
    if len(texts) > len(columns):
        hint = "texts with tabs in them can be given as jsonl"
    belong = "1 belongs" if len(columns) == 1 else f"{len(columns)} belong"
    raise BadRowError(
        f"{len(texts)} tab-separated text{'s' * (len(texts) > 1)}, where {belong} "
        f"({', '.join(columns)}); {hint}"
    )


# ------------------------------------------------------------------------------- predicting
def ready(loaded: Loaded, device: torch.device, dtype: str | None) -> str:
    """Bring a classifier to the device and the dtype in which it is to compute; its weights keep
    the values that training left. Returns the dtype. Without one that of training: the same
    predictions as in the run's evaluation; but on a CPU float32, where bfloat16 is far slower."""
    if loaded.sparta is not None:
        loaded.merge_and_unload()
    return move(loaded.classifier, loaded.about.dtypes["model"], device, dtype)


def move(
    model: Classifier | MultiHead, trained: str, device: torch.device, dtype: str | None
) -> str:
    """`ready` of a model whose backbone is plain and was trained in that dtype."""
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else trained
    if dtype != trained:
        for parameter in model.backbone.parameters():  # buffers, such as RoPE's, keep their dtype
            parameter.data = parameter.data.to(DTYPES[dtype])
    model.to(device)
    return dtype


def predict(
    loaded: Loaded, examples: Iterable[Example], batch_size: int, batches: int = 1
) -> Iterator[list[Prediction]]:
    """Predictions in the order of the examples, `batch_size` times `batches` of them at a time, of
    which those of similar length go through the model together. Raises InputError for a text
    without a token, or where `examples` does; all before have been predicted then."""
    classifier = loaded.classifier
    model = MultiHead(classifier.backbone, {"": classifier.head_weight}).eval()
    reader = _Reader(model, loaded.tokenizer, {"": loaded.about})
    for chunk in _predict_all([reader], examples, batch_size, batches):
        yield [predictions[""] for predictions in chunk]


def predict_heads(
    loaded: MultiHead, examples: Iterable[Example], batch_size: int, batches: int = 1
) -> Iterator[list[dict[str, Prediction]]]:
    """The same of every head, by name: one forward pass for all that read a text alike (those of
    base models; instruction models have a prompt for each task)."""
    heads_by_reading: dict[str, dict[str, Manifest]] = {}
    for name, about in loaded.about.items():
        key = repr((about.prompt, about.separator, about.undo_spacing, about.model.kind))
        heads_by_reading.setdefault(key, {})[name] = about
    readers = [_Reader(loaded, loaded.tokenizer, heads) for heads in heads_by_reading.values()]
    for chunk in _predict_all(readers, examples, batch_size, batches):
        yield [{name: predictions[name] for name in loaded.about} for predictions in chunk]


def one_reading(heads: Mapping[str, Manifest]) -> Manifest:
    """The first head's task, by which lines are read. Raises InputError unless all heads read as
    many columns: some read a text, others a pair."""
    first_name, first = next(iter(heads.items()))
    for name, about in heads.items():
        if len(about.columns) != len(first.columns):
            raise InputError(
                f"{name} reads {len(about.columns)} text(s) ({', '.join(about.columns)}), and "
                f"{first_name} {len(first.columns)}; --head NAME chooses one"
            )
    return first


def as_text(predictions: Mapping[str, Prediction]) -> str:
    """One line for all heads: name, label and probability of each, with tabs between them."""
    return "\t".join(f"{name}\t{one.as_text()}" for name, one in predictions.items())


def as_json(predictions: Mapping[str, Prediction]) -> str:
    """One line of JSON: of each head, by name, what `Prediction.as_json` gives."""
    return json.dumps({name: asdict(one) for name, one in predictions.items()})


@dataclass
class _Reader:
    """A model, and those of its heads that read a text alike. `tried` is what of a batch it
    computes rightly, by whether inputs begin with the same tokens."""

    model: MultiHead
    tokenizer: Any
    heads: dict[str, Manifest]
    tried: dict[bool, TokensOnce] = field(default_factory=dict)

    def once_for(self, encoded: Encoded) -> TokensOnce:
        """What of these inputs is computed; tried on two of them, the first time."""
        if len(encoded) < 2:
            return TokensOnce()  # trying takes longer than one input
        prefix = shared_prefix_length(encoded.ids)
        once, _ = tokens_once(self.model.backbone, "auto", prefix)
        shares = once.prefix_tokens > 0
        if shares not in self.tried:
            device = next(self.model.parameters()).device
            batch = {name: t.to(device) for name, t in shortest_and_longest(encoded).items()}
            way, difference = that_agrees(self.model, once, batch)
            if difference is not None:
                log(f"more of each input is computed than need be: {difference}")
            self.tried[shares] = way or TokensOnce()
        way = self.tried[shares]
        return TokensOnce(prefix if way.prefix_tokens else 0, way.last_layer)


def _predict_all(
    readers: Sequence[_Reader], examples: Iterable[Example], batch_size: int, batches: int
) -> Iterator[list[dict[str, Prediction]]]:
    source = iter(examples)
    fault, more = None, True
    while more and fault is None:
        chunk: list[Example] = []
        try:
            for example in islice(source, batch_size * batches):
                chunk.append(example)
        except InputError as error:  # raised once what came before has been predicted
            fault = error
        more = len(chunk) == batch_size * batches
        by_reader: list[list[dict[str, Prediction]]] = []
        for reader in readers:
            encoded, fault = _encode(reader, chunk, fault)
            try:
                by_reader.append(_predict(reader, encoded, batch_size))
            except (RuntimeError, MemoryError) as error:
                if not is_lack_of_memory(error):
                    raise
                row = int(np.argmax(encoded.lengths()))
                raise InputError(
                    f"{chunk[row][0]}: {encoded.lengths()[row]:,} tokens, the most of those read "
                    "together, for which the memory does not suffice; a smaller --batch-size helps "
                    "where it is not this text alone"
                ) from None
        # a text without a token ends what one reader can give
        if merged := [dict(ChainMap(*parts)) for parts in zip(*by_reader, strict=False)]:
            yield merged
    if fault is not None:
        raise fault


def _encode(
    reader: _Reader, chunk: list[Example], fault: InputError | None
) -> tuple[Encoded, InputError | None]:
    about = next(iter(reader.heads.values()))
    inputs = [render(texts, about, about.model.kind) for _, texts in chunk]
    rows = tokenize(inputs, reader.tokenizer) if inputs else []
    context = context_of(reader.model.backbone.config)
    for number, row in enumerate(rows):
        problem = ""
        if not row:
            problem = (
                "an empty text, and the tokenizer adds no BOS token, so the model would have "
                "nothing to read"
            )
        elif context is not None and len(row) > context:
            problem = (
                f"shorten it; it has {len(row):,} tokens, and the model reads {context:,} at most"
            )
        if problem:
            rows, fault = rows[:number], InputError(f"{chunk[number][0]}: {problem}")
            break
    return Encoded([np.asarray(row, dtype=np.int32) for row in rows], [0] * len(rows)), fault


@torch.no_grad()
def _predict(reader: _Reader, encoded: Encoded, batch_size: int) -> list[dict[str, Prediction]]:
    device = next(reader.model.parameters()).device
    logits = {
        name: torch.zeros(len(encoded), len(about.labels), dtype=torch.float64)
        for name, about in reader.heads.items()
    }
    once = reader.once_for(encoded)
    for rows in evaluation_batches(encoded.lengths(), batch_size):
        batch = encoded.collate(rows)
        batch.pop("labels")
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        out = reader.model.logits(once.pooled(reader.model.backbone, **on_device))
        for name, values in logits.items():
            values[torch.tensor(rows)] = out[name].cpu().double()
    if not all(values.isfinite().all() for values in logits.values()):
        raise InputError(f"no probabilities come out: {why_not_finite(reader.model)}")
    predictions: list[dict[str, Prediction]] = [{} for _ in range(len(encoded))]
    for name, values in logits.items():
        labels = reader.heads[name].labels
        best, shares = values.argmax(dim=1).tolist(), values.softmax(dim=1).tolist()
        for by_head, index, row in zip(predictions, best, shares, strict=True):
            by_head[name] = Prediction(labels[index], dict(zip(labels, row, strict=True)))
    return predictions
