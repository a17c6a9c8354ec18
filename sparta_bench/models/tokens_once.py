"""Each token once: the hidden states that a classifier reads, without computing what is there.

Inputs that begin with the same tokens need these tokens' keys and values once, not once each; and
of the last layer a classifier reads the last token alone. Both are exact up to the order of
floating-point sums, where the backbone draws nothing at random.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparta_bench.errors import reason_of
from sparta_bench.models.classifier import Classifier, last_token, logits_of, pooled_right_padded
from sparta_bench.models.counts import MIN_PREFIX_TOKENS
from sparta_bench.models.packed_attention import (
    LAYOUT,
    Layout,
    cannot_share,
    cut_last_layer,
    know_layouts,
    knows_last_layer,
    plain_model,
)
from sparta_bench.sparta.sharded import whole

# What sums in another order may change: of the features, and of the first layer's gradient, as a
# share of their size. A key that is missed, or a position that is off, changes far more.
TOLERANCES = {
    torch.float64: (1e-6, 1e-5),
    torch.float32: (1e-4, 1e-3),
    torch.bfloat16: (0.1, 0.3),
    torch.float16: (0.03, 0.1),
}


class TokensOnce:
    """What of a batch is computed: without arguments, all of it.

    Parameters
    ----------
    prefix_tokens
        How many tokens all inputs begin with; each has at least one more, and its padding on the
        right. A batch for which that is not true is refused.
    last_layer
        Whether the last layer computes each input's last token alone (`knows_last_layer`).
    in_training
        Whether the prefix is shared in training mode too. Where dropout is drawn, an input's own
        would be drawn for all; in evaluation nothing is drawn.
    """

    def __init__(
        self, prefix_tokens: int = 0, last_layer: bool = False, in_training: bool = True
    ) -> None:
        self.prefix_tokens, self.last_layer = prefix_tokens, last_layer
        self.in_training = in_training

    def as_dict(self) -> dict[str, int | bool]:
        """The three as plain values."""
        return dict(vars(self))

    def pooled(self, backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The last real token's final hidden state (rows x hidden, in the backbone's dtype)."""
        shared = self.prefix_tokens if self.in_training or not backbone.training else 0
        if not shared and not self.last_layer:
            return pooled_right_padded(backbone, input_ids, attention_mask)
        last = last_token(attention_mask)
        same = (input_ids[:, :shared] == input_ids[:1, :shared]).all()
        right = (attention_mask.sum(dim=1) == last + 1).all() & (last >= shared).all()
        torch._assert_async(  # type: ignore[no-untyped-call]  # on CUDA nobody waits for the answer
            same & right, f"inputs that do not share {shared} tokens, or are padded on the left"
        )
        if len(input_ids) == 1:
            shared = 0  # nobody to share with
        own = input_ids[:, shared:]
        layout = Layout(shared, len(own), own.shape[1], last - shared, self.last_layer)
        know_layouts(plain_model(backbone).config._attn_implementation)
        if self.last_layer:
            cut_last_layer(backbone)
        named = {
            "input_ids": torch.cat([input_ids[0, :shared], own.flatten()])[None],
            "position_ids": layout.positions,
            # of four dimensions, so that the model takes it as it is; nobody looks at it
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=last.device),
            "use_cache": False,
            LAYOUT: layout,
        }
        states: Tensor = backbone(**named).last_hidden_state[0]
        return states if self.last_layer else states[layout.last_tokens]


def choose(
    classifier: Classifier,
    share: str | bool,
    prefix_tokens: int,
    batch: dict[str, Tensor],
    draws: bool,
) -> tuple[TokensOnce | None, str | None]:
    """What a run computes with `train.share_prefix`, tried on a batch of its own; and why that is
    less than was asked for. `draws`: as for `tokens_once`."""
    once, why_not = tokens_once(classifier.backbone, share, prefix_tokens, draws)
    way, difference = that_agrees(classifier, once, batch, draws)
    return way, difference or why_not


def that_agrees(
    model: Any, once: TokensOnce, batch: dict[str, Tensor], draws: bool = False
) -> tuple[TokensOnce | None, str | None]:
    """`once`, or else its last layer alone: the first that gives for a batch what the whole
    computation gives, None where neither does; and how the last that does not differs. `model` is
    as for `disagreement`."""
    ways = [once] if once.prefix_tokens else []
    if once.last_layer:
        ways.append(TokensOnce(0, True, once.in_training))
    difference = None
    for way in ways:
        last, difference = difference, disagreement(model, way, batch, draws)
        if difference is None:
            return way, last
    return None, difference


def tokens_once(
    backbone: nn.Module, share: str | bool, prefix_tokens: int, draws: bool = False
) -> tuple[TokensOnce, str | None]:
    """What to compute with `train.share_prefix` (auto, true or false); and why the prefix is not
    shared though it was asked for, in words. Where training `draws` dropout, `auto` shares in
    evaluation alone."""
    wanted = bool(share) and prefix_tokens >= (MIN_PREFIX_TOKENS if share == "auto" else 1)
    why_not = cannot_share(backbone) if wanted else None
    shared = prefix_tokens if wanted and why_not is None else 0
    return TokensOnce(shared, knows_last_layer(backbone), share is True or not draws), why_not


def disagreement(
    model: Any, once: TokensOnce, batch: dict[str, Tensor], draws: bool = False
) -> str | None:
    """Whether `once` gives for a batch what the whole computation gives: in words by how much it
    does not; None where it does.

    The features and, where something in the backbone trains, the gradient of its first tensors are
    compared, in training mode, or in evaluation mode where training `draws` dropout. No gradient
    is left behind. `model` is a `Classifier`; where gradients are off, and features are compared
    alone and in evaluation mode, anything that has a `backbone`.
    """
    was_training, trained = model.training, list[Tensor]()
    model.train(torch.is_grad_enabled() and not draws)
    if torch.is_grad_enabled():
        embeddings = [m for m in model.backbone.modules() if isinstance(m, nn.Embedding)]
        looked_up = {id(parameter) for m in embeddings for parameter in m.parameters()}
        every = (p for p in model.backbone.parameters() if p.requires_grad)
        # the first two: of LoRA's, the first one has no gradient at the beginning
        trained = [p for p in every if id(p) not in looked_up][:2]

    def computed(way: TokensOnce) -> tuple[Tensor, Tensor]:
        """Features and gradient, both as one vector of float64."""
        with torch.set_grad_enabled(bool(trained)):
            states = way.pooled(model.backbone, batch["input_ids"], batch["attention_mask"])
        if not trained:
            return states.double().flatten(), states.new_zeros(1, dtype=torch.float64)
        loss = F.cross_entropy(logits_of(states, model.head_weight), batch["labels"])
        grads = torch.autograd.grad(loss, trained, materialize_grads=True)
        flat = torch.cat([whole(g).double().flatten() for g in grads])
        return states.detach().double().flatten(), flat

    try:
        pairs = zip(computed(TokensOnce()), computed(once), strict=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # many kinds, where a model does not take a layout
        return f"{type(error).__name__}: {reason_of(error)}"
    finally:
        model.train(was_training)
    tolerances = TOLERANCES[next(model.backbone.parameters()).dtype]
    for what, tolerance, (a, b) in zip(("features", "gradients"), tolerances, pairs, strict=True):
        difference = (a - b).norm() / a.norm().clamp(min=torch.finfo(a.dtype).tiny)
        if not difference <= tolerance:
            return f"its {what} differ by {float(difference):.1e} of their size"
    return None
