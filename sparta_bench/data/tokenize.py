"""Tokens: encoding with a cache, the length filter, and the counts that the record reports."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparta_bench.config.schema import Config
from sparta_bench.data.examples import Examples
from sparta_bench.data.prompts import Reading, render
from sparta_bench.data.splits import Splits
from sparta_bench.data.tensor_cache import read_kept, try_to_keep
from sparta_bench.errors import InputError
from sparta_bench.files import hash_of

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
        longest = max(len(self.ids[row]) for row in rows)
        input_ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.int64)
        for index, row in enumerate(rows):
            ids = self.ids[row]
            input_ids[index, : len(ids)] = torch.from_numpy(ids)
            mask[index, : len(ids)] = 1
        labels = torch.tensor([self.labels[row] for row in rows])
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


@dataclass
class EncodedSplits:
    """What the training loop reads, and the `data` part of the record."""

    train: Encoded
    dev: Encoded
    test: Encoded
    summary: dict[str, Any]


def encode_splits(config: Config, splits: Splits, tokenizer: Any) -> EncodedSplits:
    """Encode all examples and drop the training examples that are too long (InputError if all are).

    A length equal to `task.max_train_tokens` stays; dev and test are never filtered (section 7.1).
    """
    folder = cache_folder(config)
    every, dev, test = (
        encode(getattr(splits, name), config.task, config.model.kind, tokenizer, folder, name)
        for name in ("train", "dev", "test")
    )
    train = _not_too_long(every, config.task.max_train_tokens)
    lengths = train.lengths()
    summary = {
        "train": len(train),
        "train_dropped": len(every) - len(train),
        "dev": len(dev),
        "test": len(test),
        "max_train_tokens": config.task.max_train_tokens,
        "longest_train_tokens": max(lengths),
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
    kept = read_kept(path)  # the name is a hash of the content
    if kept is not None:
        ids = TokenRows(kept[0]["ids"].numpy(), kept[0]["lengths"].numpy())
    else:
        ids = _token_rows(texts(), tokenizer)
        flat, lengths = torch.from_numpy(ids.flat), torch.from_numpy(ids.row_lengths)
        try_to_keep(path, {"ids": flat, "lengths": lengths})
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
