"""Labels of new texts, by a classifier from disk; as many texts as there are, batch by batch."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from sparta_bench.data.batches import evaluation_batches
from sparta_bench.data.encode import Encoded, tokenize
from sparta_bench.data.examples import BadRowError, is_unicode, parse_texts
from sparta_bench.data.local_files import json_object, numbered_lines
from sparta_bench.data.prompts import render
from sparta_bench.errors import InputError
from sparta_bench.models.classifier import why_not_finite
from sparta_bench.models.precision import DTYPES
from sparta_bench.saved import Description, Loaded

Texts = tuple[str, ...]  # of one example, in the model's reading order
Example = tuple[str, Texts]  # where it stands, for people, and what
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
        return json.dumps({"label": self.label, "probabilities": self.probabilities})


# ---------------------------------------------------------------------------------- reading
def lines_of(texts: Sequence[str], file: str | None) -> Iterator[Line]:
    """The lines to predict: the words of the command line, or of a file, `-` or null for standard
    input.

    Raises
    ------
    InputError
        If the file cannot be read, or there is no line.
    """
    if texts:
        for number, text in enumerate(texts, start=1):
            yield f"text {number}", text if is_unicode(text) else BadRowError("is no UTF-8")
        return
    name = "standard input" if file in (None, "-") else str(file)
    none = True
    with ExitStack() as stack:
        try:
            source: BinaryIO = sys.stdin.buffer
            if name == file:
                source = stack.enter_context(Path(name).open("rb"))
            for number, line in numbered_lines(source):
                none = False
                yield f"{name}, line {number}", line
        except OSError as error:
            raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    if none:
        raise InputError(f"{name}: is empty, there is nothing to predict")


def read_texts(lines: Iterable[Line], about: Description, jsonl: bool) -> Iterator[Example]:
    """The texts of each line: one, or a pair with a tab between; or, of `jsonl`, the task's
    columns by name (or `text`, where the task has one column). Empty lines of jsonl are left out.

    Raises
    ------
    InputError
        At the first line that is something else.
    """
    for place, line in lines:
        try:
            if isinstance(line, BadRowError):
                raise line
            if not jsonl:
                yield place, _fields(line, about.columns)
            elif line.strip():
                yield place, _columns(line, about.columns)
        except BadRowError as problem:
            raise InputError(f"{place}: {problem}") from None


def _fields(line: str, columns: list[str]) -> Texts:
    texts = tuple(line.split("\t"))
    if len(texts) != len(columns):
        if len(texts) > len(columns):
            hint = "texts with tabs in them can be given as jsonl"
        else:
            hint = "a tab stands between them, in a shell $'one\\tother'"
        belong = "1 belongs" if len(columns) == 1 else f"{len(columns)} belong"
        raise BadRowError(
            f"{len(texts)} tab-separated text{'s' * (len(texts) > 1)}, where {belong} "
            f"({', '.join(columns)}); {hint}"
        )
    return texts


def _columns(line: str, columns: list[str]) -> Texts:
    row = json_object(line)
    if isinstance(row, BadRowError):
        raise row
    if len(columns) == 1 and columns[0] not in row and "text" in row:
        columns = ["text"]
    return parse_texts(row, columns)


# ------------------------------------------------------------------------------- predicting
def ready(loaded: Loaded, device: torch.device, dtype: str | None) -> str:
    """Bring a classifier to where and how it is to compute; its weights keep the values that
    training left. Returns the dtype it computes in.

    Without a `dtype` that of training: the same predictions as in the run's evaluation. But on a
    CPU float32 instead of bfloat16, which is far slower there.
    """
    if loaded.sparta is not None:
        loaded.merge_for_good()
    trained = loaded.about.dtypes["model"]
    if dtype is None:
        dtype = "float32" if device.type == "cpu" else trained
    backbone = loaded.classifier.backbone
    if dtype != trained:
        for parameter in backbone.parameters():  # buffers, such as RoPE's, keep their own dtype
            parameter.data = parameter.data.to(DTYPES[dtype])
    loaded.classifier.to(device)
    return dtype


def predict(
    loaded: Loaded, examples: Iterable[Example], batch_size: int, batches: int = 1
) -> Iterator[list[Prediction]]:
    """Predictions in the order of the examples, `batch_size` times `batches` of them at a time,
    of which those of similar length go through the model together.

    Raises
    ------
    InputError
        If a text gives no token, or `examples` raises it: when all before have been predicted.
    """
    source = iter(examples)
    while True:
        some, fault = _take(source, batch_size * batches)
        encoded, fault = _encode(loaded, some, fault)
        if len(encoded):
            yield _predict(loaded, encoded, batch_size)
        if fault is not None:
            raise fault
        if len(some) < batch_size * batches:
            return


def _take(source: Iterator[Example], count: int) -> tuple[list[Example], InputError | None]:
    some: list[Example] = []
    try:
        for example in source:
            some.append(example)
            if len(some) == count:
                break
    except InputError as error:
        return some, error
    return some, None


def _encode(
    loaded: Loaded, some: list[Example], fault: InputError | None
) -> tuple[Encoded, InputError | None]:
    about = loaded.about
    inputs = [render(texts, about, about.model.kind) for _, texts in some]
    rows = tokenize(inputs, loaded.tokenizer) if inputs else []
    for number, row in enumerate(rows):
        if not row:
            place = some[number][0]
            fault = InputError(
                f"{place}: an empty text, and the tokenizer adds no BOS token, so the model would "
                "have nothing to read"
            )
            rows = rows[:number]
            break
    return Encoded([np.asarray(row, dtype=np.int32) for row in rows], [0] * len(rows)), fault


@torch.no_grad()
def _predict(loaded: Loaded, encoded: Encoded, batch_size: int) -> list[Prediction]:
    labels, classifier = loaded.about.labels, loaded.classifier
    device = classifier.head_weight.device
    logits = torch.zeros(len(encoded), len(labels), dtype=torch.float64)
    for rows in evaluation_batches(encoded.lengths(), batch_size):
        batch = encoded.collate(rows)
        out = classifier(batch["input_ids"].to(device), batch["attention_mask"].to(device))
        logits[torch.tensor(rows)] = out.cpu().double()
    if not logits.isfinite().all():
        raise InputError(f"no probabilities come out: {why_not_finite(classifier)}")
    return [
        Prediction(labels[place], dict(zip(labels, row, strict=True)))
        for place, row in zip(
            logits.argmax(dim=1).tolist(), logits.softmax(dim=1).tolist(), strict=True
        )
    ]
