"""Tokens: encoding with a cache, the length filter, the counts that the record reports, and which
examples stand together in a batch."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sparta_bench.config.schema import Config
from sparta_bench.data.examples import Examples, Reading, class_counts, render
from sparta_bench.data.splits import Splits
from sparta_bench.errors import InputError
from sparta_bench.files import hash_of, read_kept, try_to_keep

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Ids = np.ndarray[Any, np.dtype[np.int32]]
TEXTS_AT_ONCE = 10_000  # given to the tokenizer, whose own lists take kilobytes for each


class TokenRows(Sequence[Ids]):
    """Arrays of token ids (int32), held as one: `lengths` (int, one per example) cut `flat`."""

    def __init__(self, flat: Ids, lengths: np.ndarray[Any, Any]) -> None:
        self.flat, self.row_lengths = flat, lengths
        self.ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: Any) -> Any:
        end = self.ends[row]
        return self.flat[end - self.row_lengths[row] : end]


class BatchSource(Protocol):
    """Labelled examples that can be put together to batches, in any choice and order."""

    labels: list[int]

    def __len__(self) -> int: ...

    def lengths(self) -> list[int]:
        """Tokens of each example."""

    def collate(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """The classifier's arguments and `labels` (int64, rows), on the CPU."""


@dataclass
class Encoded:
    """Token ids (int32, one array per example, BOS included if the tokenizer adds it), labels."""

    ids: Sequence[Ids]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(ids) for ids in self.ids]

    def collate(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask` (int64, rows x longest) and `labels` (int64, rows).

        Padding, on the right, has id 0, whatever that token is: the mask alone says what is
        padding, so models without a pad token work, and a real EOS stays what it is.
        """
        import torch

        every = [self.ids[row] for row in rows]
        input_ids = np.zeros((len(rows), max(map(len, every))), dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for index, ids in enumerate(every):
            input_ids[index, : len(ids)] = ids
            mask[index, : len(ids)] = 1
        labels = torch.tensor([self.labels[row] for row in rows])
        arrays = {"input_ids": input_ids, "attention_mask": mask}
        return {name: torch.from_numpy(a) for name, a in arrays.items()} | {"labels": labels}


@dataclass
class EncodedSplits:
    """What the training loop reads, and the `data` part of the record."""

    train: Encoded
    dev: Encoded
    test: Encoded
    summary: dict[str, Any]


def encode_splits(
    config: Config, splits: Splits, tokenizer: Any, context: int | None = None
) -> EncodedSplits:
    """Encode all examples and drop the training examples that are too long (InputError if all are).

    A length equal to `task.max_train_tokens` stays; dev and test are never filtered (section 7.1).
    No input may be longer than `context`, the model's: `fit_context` says what is done.
    """
    task, kind, folder = config.task, config.model.kind, cache_folder(config)
    sets = {"train": splits.train, "dev": splits.dev, "test": splits.test}
    every, dev, test = (
        encode(examples, task, kind, tokenizer, folder, name) for name, examples in sets.items()
    )
    train, limit = every, task.max_train_tokens
    kept = [row for row, tokens in enumerate(every.lengths()) if tokens <= limit]
    if not kept:
        raise InputError(
            f"task.max_train_tokens={limit}: drops all {len(every)} training examples; the "
            f"shortest has {min(every.lengths())} tokens"
        )
    if len(kept) < len(every):
        train = Encoded(
            _as_rows([every.ids[row] for row in kept]), [every.labels[row] for row in kept]
        )
    if longer := sum(tokens > context for tokens in train.lengths()) if context else 0:
        raise InputError(
            f"task.max_train_tokens={limit}: must be at most {context}, the model's context; "
            f"{longer:,} training inputs are longer"
        )
    dev, test, truncated = fit_context(
        dev, test, task, kind, tokenizer, context, task.truncate_eval
    )
    lengths = train.lengths()
    unknown: float | None = None  # where the tokenizer has no such token
    if tokenizer.unk_token_id is not None:
        unknown = round(float(np.mean(np.concatenate(train.ids) == tokenizer.unk_token_id)), 4)
    encoded = {"train": train, "dev": dev, "test": test}
    labels = {name: class_counts(one.labels, task.labels) for name, one in encoded.items()}
    summary = {
        "train": len(train),
        "train_dropped": len(every) - len(train),
        "dev": len(dev),
        "test": len(test),
        "labels": labels,
        "max_train_tokens": limit,
        "longest_train_tokens": max(lengths),
        "truncated": truncated,
        "longest_eval_tokens": max(dev.lengths() + test.lengths()),
        "mean_train_tokens": round(float(np.mean(lengths)), 2),
        "mean_eval_tokens": round(float(np.mean(dev.lengths() + test.lengths())), 2),
        "shared_prefix_tokens": shared_prefix_length(train.ids, dev.ids, test.ids),
        "unknown_train_share": unknown,
        "empty_texts": {name: examples.empty_texts() for name, examples in sets.items()},
        "bad_rows": splits.bad_rows,
        "fingerprint": splits.fingerprint(),
    }
    return EncodedSplits(train, dev, test, summary)


def shared_prefix_length(*splits: Sequence[Ids]) -> int:
    """How many token ids all inputs of all splits begin with; at least one of each is left over."""
    sets = [_as_rows(ids) for ids in splits if len(ids)]
    if not sets:
        return 0
    first: Ids = sets[0][0]
    longest = min(int(ids.row_lengths.min()) for ids in sets) - 1
    starts = [ids.ends - ids.row_lengths for ids in sets]
    for index in range(longest):
        for ids, begin in zip(sets, starts, strict=True):
            if (ids.flat[begin + index] != first[index]).any():
                return index
    return max(longest, 0)


def shortest_and_longest(data: Encoded) -> dict[str, Tensor]:
    """A batch of two, or one where there is no other."""
    by_length = sorted(range(len(data)), key=data.lengths().__getitem__)
    return data.collate(list(dict.fromkeys((by_length[0], by_length[-1]))))


def _as_rows(ids: Sequence[Ids]) -> TokenRows:
    if isinstance(ids, TokenRows):
        return ids
    lengths = np.array([len(row) for row in ids], dtype=np.int32)
    return TokenRows(np.concatenate(list(ids)), lengths)


def fit_context(
    dev: Encoded,
    test: Encoded,
    reading: Reading,
    kind: str,
    tokenizer: Any,
    context: int | None,
    truncate: bool,
) -> tuple[Encoded, Encoded, dict[str, int]]:
    """Return dev and test with no input longer than the model's context, and how many were cut.

    An input is cut before what all inputs end with, so that a prompt keeps its end. Raises
    InputError for longer ones unless `truncate`: a model gives no answer, or a poor one, beyond
    its context.
    """
    sets = {"dev": dev, "test": test}
    longer = {
        name: sum(tokens > context for tokens in encoded.lengths()) if context else 0
        for name, encoded in sets.items()
    }
    if context is None or not any(longer.values()):
        return dev, test, longer
    if not truncate:
        longest = max(dev.lengths() + test.lengths())
        raise InputError(
            "task.truncate_eval=false: set it to true to cut inputs of dev and test (recorded), or "
            f"take a model with a longer context than {context:,} tokens: {longer['dev']:,} of dev "
            f"and {longer['test']:,} of test are longer, the longest has {longest:,}"
        )
    # how many tokens all inputs end with
    texts = [render((word,) * len(reading.columns), reading, kind) for word in ("a", "b")]
    one, other = tokenize(texts, tokenizer)
    pairs = enumerate(zip(one[::-1], other[::-1], strict=False))
    tail = next((index for index, (a, b) in pairs if a != b), 0)

    def cut(ids: Ids) -> Ids:
        if len(ids) <= context:
            return ids
        return np.concatenate([ids[: context - tail], ids[len(ids) - tail :]])

    dev, test = (Encoded([cut(ids) for ids in one.ids], one.labels) for one in sets.values())
    return dev, test, longer


def cache_folder(config: Config) -> Path:
    """Where encoded sets and their features are kept between runs."""
    if config.cache_dir is not None:
        return Path(config.cache_dir)
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "sparta-bench"


def encode(
    examples: Examples, reading: Reading, kind: str, tokenizer: Any, folder: Path, split: str
) -> Encoded:
    """Token ids of a set as a model of this kind reads it; kept in `folder` for the next time.
    Raises InputError if an input has no token at all."""

    def texts() -> Iterator[str]:  # made anew rather than kept: prompts are long
        return (render(text, reading, kind) for text in examples.texts)

    digest = hashlib.sha256(tokenizer_fingerprint(tokenizer).encode())
    for text in texts():
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    path = folder / f"{digest.hexdigest()[:32]}.safetensors"
    kept = read_kept(path, "numpy")
    if kept is not None:
        ids = TokenRows(kept[0]["ids"], kept[0]["lengths"])
    else:
        flat: list[Ids] = []
        lengths: list[int] = []
        remaining = texts()
        while chunk := list(islice(remaining, TEXTS_AT_ONCE)):
            rows = tokenize(chunk, tokenizer)
            flat.append(np.fromiter(chain.from_iterable(rows), dtype=np.int32))
            lengths += map(len, rows)
        ids = TokenRows(np.concatenate(flat), np.asarray(lengths, dtype=np.int32))
        try_to_keep(path, {"ids": ids.flat, "lengths": ids.row_lengths})
    if not ids.row_lengths.all():
        row = int(np.argmin(ids.row_lengths)) + 1
        raise InputError(
            f"{split}, example {row}: an empty text, and the tokenizer adds no BOS token, so "
            "the model would have nothing to read"
        )
    return Encoded(ids, examples.labels)


def tokenize(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of each text, with what the tokenizer adds (BOS), never cut off."""
    # verbose off: the tokenizer warns of inputs over its nominal length, which are dropped here
    # (train) or read as they are (dev, test)
    return list(tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of everything that decides how the tokenizer cuts a text."""
    return hash_of(tokenizer.backend_tokenizer.to_str())


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A batch on the device. A GPU fetches it from memory that stays where it is, while the
    processor goes on."""
    pinned = device.type == "cuda"
    return {
        name: (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)
        for name, tensor in batch.items()
    }


def training_batches(
    lengths: Sequence[int], batch_size: int, bucket_batches: int, seed: str
) -> list[list[int]]:
    """One epoch: every example exactly once, shuffled, examples of similar length together.

    Buckets of `bucket_batches` batches are sorted by length and cut into batches, and all batches
    are shuffled; with 0 the batches are cut from the shuffled examples, the smaller one last. The
    examples of a smaller batch, which weigh more in its mean loss, are drawn before anything is
    sorted, so that their weight does not depend on their length.
    """
    shuffler = random.Random(seed)
    order = list(range(len(lengths)))
    shuffler.shuffle(order)
    full = len(order) - len(order) % batch_size
    order, rest = order[:full], order[full:]
    if bucket_batches:
        size = bucket_batches * batch_size
        buckets = [order[start : start + size] for start in range(0, full, size)]
        order = [row for bucket in buckets for row in sorted(bucket, key=lambda r: lengths[r])]
    batches = [order[start : start + batch_size] for start in range(0, full, batch_size)]
    if rest:
        batches.append(rest)
    if bucket_batches:
        shuffler.shuffle(batches)
    return batches


def evaluation_batches(
    lengths: Sequence[int], most_examples: int, most_tokens: int | None = None
) -> list[list[int]]:
    """Every example exactly once, longest first, so that a lack of memory shows at once. A batch
    has at most so many examples, and at most so many tokens, padding counted, or one example."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches, start = [], 0
    while start < len(order):
        size = most_examples
        if most_tokens is not None:
            size = max(1, min(size, most_tokens // max(1, lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches
