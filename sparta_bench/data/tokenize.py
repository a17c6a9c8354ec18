"""Tokens: encoding with a cache, the length filter, and the counts that the record reports."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparta_bench.config.schema import Config, TaskConfig
from sparta_bench.data.classes import class_counts
from sparta_bench.data.examples import Examples
from sparta_bench.data.prompts import Reading, render
from sparta_bench.data.splits import Splits
from sparta_bench.data.tensor_cache import read_kept, try_to_keep
from sparta_bench.errors import InputError
from sparta_bench.files import hash_of

if TYPE_CHECKING:
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

    def select(self, rows: Sequence[int]) -> TokenRows:
        """The rows of these numbers, in this order."""
        chosen = [self[row] for row in rows]
        return TokenRows(np.concatenate(chosen), self.row_lengths[np.asarray(rows)])


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
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": labels,
        }


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
    folder = cache_folder(config)
    every, dev, test = (
        encode(getattr(splits, name), config.task, config.model.kind, tokenizer, folder, name)
        for name in ("train", "dev", "test")
    )
    train = _not_too_long(every, config.task.max_train_tokens)
    _check_train(train, config.task, context)
    kind, cut = config.model.kind, config.task.truncate_eval
    dev, test, truncated = fit_context(dev, test, config.task, kind, tokenizer, context, cut)
    lengths = train.lengths()
    summary = {
        "train": len(train),
        "train_dropped": len(every) - len(train),
        "dev": len(dev),
        "test": len(test),
        "labels": {
            name: class_counts(encoded.labels, config.task.labels)
            for name, encoded in (("train", train), ("dev", dev), ("test", test))
        },
        "max_train_tokens": config.task.max_train_tokens,
        "longest_train_tokens": max(lengths),
        "truncated": truncated,
        "longest_eval_tokens": max(dev.lengths() + test.lengths()),
        "mean_train_tokens": round(float(np.mean(lengths)), 2),
        "mean_eval_tokens": round(float(np.mean(dev.lengths() + test.lengths())), 2),
        "shared_prefix_tokens": shared_prefix_length(train.ids, dev.ids, test.ids),
        "unknown_train_share": _unknown_share(train, tokenizer),
        "empty_texts": {
            name: getattr(splits, name).empty_texts() for name in ("train", "dev", "test")
        },
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
    for place in range(longest):
        for ids, begin in zip(sets, starts, strict=True):
            if (ids.flat[begin + place] != first[place]).any():
                return place
    return max(longest, 0)


def shortest_and_longest(data: Encoded) -> dict[str, Tensor]:
    """A batch of two, or one where there is no other."""
    by_length = sorted(range(len(data)), key=data.lengths().__getitem__)
    return data.collate(list(dict.fromkeys((by_length[0], by_length[-1]))))


def _as_rows(ids: Sequence[Ids]) -> TokenRows:
    if isinstance(ids, TokenRows):
        return ids
    return TokenRows(np.concatenate(list(ids)), np.array([len(row) for row in ids]))


def _unknown_share(encoded: Encoded, tokenizer: Any) -> float | None:
    """Which part of all tokens is the tokenizer's unknown one; `None` where it has none."""
    if tokenizer.unk_token_id is None:
        return None
    return round(float(np.mean(np.concatenate(encoded.ids) == tokenizer.unk_token_id)), 4)


def _not_too_long(every: Encoded, limit: int) -> Encoded:
    lengths = every.lengths()
    kept = [row for row, tokens in enumerate(lengths) if tokens <= limit]
    if not kept:
        raise InputError(
            f"task.max_train_tokens={limit}: drops all {len(every)} training examples; the "
            f"shortest has {min(lengths)} tokens"
        )
    if len(kept) == len(every):
        return every
    assert isinstance(every.ids, TokenRows)
    return Encoded(every.ids.select(kept), [every.labels[row] for row in kept])


def _check_train(train: Encoded, task: TaskConfig, context: int | None) -> None:
    longer = sum(tokens > context for tokens in train.lengths()) if context else 0
    if longer:
        raise InputError(
            f"task.max_train_tokens={task.max_train_tokens}: must be at most {context}, the "
            f"model's context; {longer:,} training inputs are longer"
        )


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
    tail = _tail(reading, kind, tokenizer)

    def cut(ids: Ids) -> Ids:
        if len(ids) <= context:
            return ids
        return np.concatenate([ids[: context - tail], ids[len(ids) - tail :]])

    dev, test = (Encoded([cut(ids) for ids in one.ids], one.labels) for one in sets.values())
    return dev, test, longer


def _tail(reading: Reading, kind: str, tokenizer: Any) -> int:
    """Return how many tokens all inputs end with."""
    texts = [render((word,) * len(reading.columns), reading, kind) for word in ("a", "b")]
    one, other = tokenize(texts, tokenizer)
    same = (i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=False)) if a != b)
    return next(same, 0)


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

    path = folder / f"{_cache_key(texts(), tokenizer)}.safetensors"
    kept = read_kept(path, "numpy")  # the name is a hash of the content
    if kept is not None:
        ids = TokenRows(kept[0]["ids"], kept[0]["lengths"])
    else:
        ids = _token_rows(texts(), tokenizer)
        try_to_keep(path, {"ids": ids.flat, "lengths": ids.row_lengths})
    if not ids.row_lengths.all():
        row = int(np.argmin(ids.row_lengths)) + 1
        raise InputError(
            f"{split}, example {row}: an empty text, and the tokenizer adds no BOS token, so "
            "the model would have nothing to read"
        )
    return Encoded(ids, examples.labels)


def _token_rows(texts: Iterator[str], tokenizer: Any) -> TokenRows:
    flat: list[Ids] = []
    lengths: list[int] = []
    while chunk := list(islice(texts, TEXTS_AT_ONCE)):
        rows = tokenize(chunk, tokenizer)
        flat.append(np.fromiter(chain.from_iterable(rows), dtype=np.int32))
        lengths += map(len, rows)
    return TokenRows(np.concatenate(flat), np.asarray(lengths, dtype=np.int32))


def tokenize(texts: list[str], tokenizer: Any) -> list[list[int]]:
    """Token ids of each text, with what the tokenizer adds (BOS), never cut off."""
    # verbose off: the tokenizer warns of inputs over its nominal length, which are dropped here
    # (train) or read as they are (dev, test)
    return list(tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"])


def _cache_key(texts: Iterator[str], tokenizer: Any) -> str:
    digest = hashlib.sha256(tokenizer_fingerprint(tokenizer).encode())
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of everything that decides how the tokenizer cuts a text."""
    return hash_of(tokenizer.backend_tokenizer.to_str())
