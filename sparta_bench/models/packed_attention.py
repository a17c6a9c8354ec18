"""Attention of a packed batch, one row that holds the shared prefix, then each input's own tokens;
and the last decoder layer for each input's last token, the only one that a classifier reads.

All else in a decoder works token by token and needs no change; attention alone must know which
tokens see which. The layout travels with the arguments that transformers' models hand down to
their attention, so it is there again where gradient checkpointing runs a layer twice.
The last layer needs the keys and values of all tokens, but query, output projection, residuals,
norms and MLP of the last token alone. A hook computes keys and values, then hands the layer the
last tokens: its own code does the rest.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

LAYOUT = "packed_layout"  # the argument's name
KINDS = ("sdpa", "eager")
# of which attention and layer are known to be as `_last_tokens_alone` takes them
ARCHITECTURES = ("gemma", "gemma2", "llama", "mistral", "qwen2")


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
        self._masks: dict[Any, Tensor] = {}  # what layers need again

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

    def mask(self, part: str, window: int | None, like: Tensor, kind: str) -> Tensor | None:
        """Which keys the queries of a part see, as the kind of attention takes it: those of the
        `prefix` itself; those of `own` tokens, or of the `last`, all of their input.

        A boolean, 1 or rows x 1 x queries x keys; for eager attention what is added to the scores;
        None where fused attention knows it: all keys up to the query's own.
        """
        queries = self.prefix if part == "prefix" else self.own
        square = part == "prefix" or (part == "own" and not self.prefix)
        if kind == "sdpa" and square and (window is None or window >= queries):
            return None
        if (part, window) in self._masks:
            return self._masks[part, window]
        tokens = torch.arange(self.prefix + self.own, device=like.device)
        keys = tokens[: self.prefix] if part == "prefix" else tokens
        if part == "last":
            at = self.prefix + self.last[:, None, None, None]
        else:
            at = (keys if part == "prefix" else tokens[self.prefix :])[None, None, :, None]
        mask = keys <= at
        if window is not None:
            mask &= keys > at - window
        if kind == "eager":
            lowest = torch.finfo(like.dtype).min
            mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, lowest)
        self._masks[part, window] = mask
        return mask


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


def _sdpa(module: Any, *states: Any, **named: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return _attention("sdpa", sdpa_attention_forward, module, *states, **named)


def _eager(module: Any, *states: Any, **named: Any) -> Any:
    plain = sys.modules[type(module).__module__].eager_attention_forward
    return _attention("eager", plain, module, *states, **named)


def _attention(
    kind: str, plain: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any,
    **named: Any,
) -> Any:  # fmt: skip
    layout: Layout | None = named.pop(LAYOUT, None)
    if layout is None:
        return plain(module, query, key, value, mask, **named)
    window = named.get("sliding_window")

    def attend(part: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = plain(module, q, k, v, layout.mask(part, window, q, kind), **named)[0]
        return out.reshape(1, -1, *out.shape[2:])  # tokens x heads x size

    if isinstance(layout, LastTokens):
        one_each = query[0].transpose(0, 1)[:, :, None]
        return attend("last", one_each, layout.keys, layout.values), None
    (shared_q, q), (shared_k, k), (shared_v, v) = map(layout.parts, (query, key, value))
    out = attend("own", q, layout.with_prefix(shared_k, k), layout.with_prefix(shared_v, v))
    if layout.prefix:
        out = torch.cat([attend("prefix", shared_q, shared_k, shared_v), out], dim=1)
    return out, None


# ------------------------------------------------------------------- what a model can do of it
def plain_model(backbone: nn.Module) -> Any:
    """transformers' own model, also where peft has wrapped it."""
    unwrap = getattr(backbone, "get_base_model", None)
    return backbone if unwrap is None else unwrap()


def is_causal(backbone: nn.Module) -> bool:
    """Whether tokens see only those before them."""
    config = plain_model(backbone).config
    both_ways = getattr(config, "use_bidirectional_attention", False)
    return getattr(config, "is_causal", True) and not both_ways


def knows_last_layer(backbone: nn.Module) -> bool:
    """Whether the last layer can be cut to the last token."""
    config = plain_model(backbone).config
    known = config.model_type in ARCHITECTURES
    return known and is_causal(backbone) and config._attn_implementation in KINDS


def cannot_share(backbone: nn.Module) -> str | None:
    """Why inputs cannot share a prefix, in words, by what the architecture says of itself."""
    model = plain_model(backbone)
    config, name = model.config, type(model).__name__
    if config._attn_implementation not in KINDS or not model._supports_attention_backend:
        return f"{name}'s attention is not transformers' common one"
    if not is_causal(backbone):
        return f"{name}'s tokens see the tokens after them"
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds):
        return f"{name}'s positions depend on the length of the input"
    return None


def cut_last_layer(backbone: nn.Module) -> None:
    """Let the last layer compute the last tokens alone. Without a layout it is as it was."""
    layer = plain_model(backbone).layers[-1]
    if _last_tokens_alone not in layer._forward_pre_hooks.values():
        layer.register_forward_pre_hook(_last_tokens_alone, with_kwargs=True)


def _last_tokens_alone(layer: Any, args: Any, named: dict[str, Any]) -> Any:
    layout = named.get(LAYOUT)
    if not isinstance(layout, Layout) or not layout.cuts_last_layer:
        return None
    (hidden,) = args
    attention, read = layer.self_attn, layout.last_tokens
    cos, sin = named["position_embeddings"]
    normed = layer.input_layernorm(hidden)
    by_head = (*hidden.shape[:-1], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(by_head).transpose(1, 2)
    values = attention.v_proj(normed).view(by_head).transpose(1, 2)
    _, keys = sys.modules[type(attention).__module__].apply_rotary_pos_emb(keys, keys, cos, sin)
    return (hidden[:, read],), named | {
        LAYOUT: LastTokens(layout, *(layout.with_prefix(*layout.parts(s)) for s in (keys, values))),
        "position_ids": named["position_ids"][:, read],
        "position_embeddings": (cos[:, read], sin[:, read]),
    }
