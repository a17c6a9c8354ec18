"""Attention of a packed batch: one row that holds the shared prefix, then each input's own tokens.

All else in a decoder works token by token and needs no change; attention alone must know which
tokens see which. The layout travels with the arguments that transformers' models hand down to
their attention, so it is there again where gradient checkpointing runs a layer twice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LAYOUT = "packed_layout"  # the argument's name
KINDS = ("sdpa", "eager")


class Layout:
    """Where tokens stand in a packed batch: `prefix` tokens, then `rows` times `own` ones.

    Padding is on the right, where no token that is read sees it. `last` is which own token of
    each input is read (int64, rows); `cuts_last_layer` says whether the last layer computes these
    alone.
    """

    def __init__(
        self, prefix: int, rows: int, own: int, last: Tensor, cuts_last_layer: bool
    ) -> None:
        self.prefix, self.rows, self.own, self.last = prefix, rows, own, last
        self.cuts_last_layer = cuts_last_layer
        self._seen: dict[Any, Tensor] = {}  # what layers need again

    @property
    def positions(self) -> Tensor:
        """Of each packed token in its input (1 x tokens)."""
        of_input = torch.arange(self.prefix + self.own, device=self.last.device)
        own = of_input[self.prefix :].repeat(self.rows)
        return torch.cat([of_input[: self.prefix], own])[None]

    @property
    def last_tokens(self) -> Tensor:
        """Where in the packed row the tokens stand that are read (rows)."""
        rows = torch.arange(self.rows, device=self.last.device)
        return self.prefix + rows * self.own + self.last

    def parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Of queries, keys or values (1 x heads x tokens x size) the prefix's, and those of each
        input's own tokens (rows x heads x own x size)."""
        prefix, own = torch.split(states, [self.prefix, self.rows * self.own], dim=2)
        by_row = own[0].view(own.shape[1], self.rows, self.own, own.shape[3])
        return prefix, by_row.transpose(0, 1)

    def with_prefix(self, prefix: Tensor, own: Tensor) -> Tensor:
        """Keys or values of each input (rows x heads x tokens x size) from their parts."""
        return torch.cat([prefix.expand(self.rows, -1, -1, -1), own], 2) if self.prefix else own

    def seen(self, part: str, window: int | None, like: Tensor, kind: str) -> Tensor | None:
        """Which keys the queries of a part see, as the kind of attention takes it: those of the
        `prefix` itself; those of `own` tokens, or of the `last`, all of their input.

        A boolean, 1 or rows x 1 x queries x keys; for eager attention what is added to the scores;
        None where fused attention knows it: all keys up to the query's own.
        """
        queries = self.prefix if part == "prefix" else self.own
        square = part == "prefix" or (part == "own" and not self.prefix)
        if kind == "sdpa" and square and (window is None or window >= queries):
            return None
        if (part, window) not in self._seen:
            self._seen[part, window] = self._mask(part, window, like, kind)
        return self._seen[part, window]

    def _mask(self, part: str, window: int | None, like: Tensor, kind: str) -> Tensor:
        tokens = torch.arange(self.prefix + self.own, device=like.device)
        before, after = tokens[: self.prefix], tokens[self.prefix :]
        keys = before if part == "prefix" else tokens
        if part == "last":
            queries = self.prefix + self.last[:, None, None, None]
        else:
            queries = (before if part == "prefix" else after)[None, None, :, None]
        seen = keys <= queries
        if window is not None:
            seen &= keys > queries - window
        if kind == "sdpa":
            return seen
        lowest = torch.finfo(like.dtype).min
        return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill(
            ~seen, lowest
        )


class LastTokens(Layout):
    """The same batch in the last layer: only the tokens that are read are queries; `keys` and
    `values` of all (rows x heads x tokens x size) are there."""

    def __init__(self, layout: Layout, keys: Tensor, values: Tensor) -> None:
        super().__init__(layout.prefix, layout.rows, layout.own, layout.last, False)
        self.keys, self.values = keys, values


def know_layouts(kind: str) -> None:
    """Let transformers' attention of this kind (`sdpa`, `eager`) know layouts. Without one it
    does what it did."""
    from transformers import AttentionInterface  # seconds, which a plan need not wait

    AttentionInterface.register(kind, {"sdpa": _sdpa, "eager": _eager}[kind])


def _sdpa(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return _attention("sdpa", sdpa_attention_forward, module, query, key, value, mask, named)


def _eager(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any) -> Any:
    plain = sys.modules[type(module).__module__].eager_attention_forward
    return _attention("eager", plain, module, query, key, value, mask, named)


def _attention(
    kind: str,
    plain: Callable[..., Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    named: dict[str, Any],
) -> Any:
    layout: Layout | None = named.pop(LAYOUT, None)
    if layout is None:
        return plain(module, query, key, value, mask, **named)
    window = named.get("sliding_window")

    def attend(part: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = plain(module, q, k, v, layout.seen(part, window, q, kind), **named)[0]
        return out.reshape(1, -1, *out.shape[2:])  # tokens x heads x size

    if isinstance(layout, LastTokens):
        one_each = query[0].transpose(0, 1)[:, :, None]
        return attend("last", one_each, layout.keys, layout.values), None
    (shared_q, q), (shared_k, k), (shared_v, v) = map(layout.parts, (query, key, value))
    out = attend("own", q, layout.with_prefix(shared_k, k), layout.with_prefix(shared_v, v))
    if layout.prefix:
        out = torch.cat([attend("prefix", shared_q, shared_k, shared_v), out], dim=1)
    return out, None
