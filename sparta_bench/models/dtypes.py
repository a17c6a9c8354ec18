"""The one dtype rule, the same for every method.

The model holds its weights, and computes, in `model_dtype`. What trains is held in
`trained_dtype` beside it, with its gradients and Adam's moments:

- full_ft: copies of all weights; each step ends with weight = round(copy). Where both dtypes are
  the same the weights themselves train.
- sparta: the deltas; each step ends with weight = round(original + delta).
- lora: the two low-rank matrices. In every method: the head.

The head's product and the logits are float32 in every case: bfloat16 logits would have 8 bits.

So all methods run the same forward computation, and with the default `trained_dtype` of float32
no update is lost to rounding: a bfloat16 weight of size 0.02 would swallow an Adam step of 1e-5
five times out of six. With `trained_dtype=bfloat16` the optimizer rounds stochastically, which
loses no update on average and needs the 8 bytes per trained scalar of the paper's section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparta_bench.config.schema import Config

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # that a model can compute in
STORED_DTYPES = {  # that weights can be stored in, by safetensors' names
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Precision:
    """The dtypes of the weights and the computation, and of what trains."""

    model_dtype: torch.dtype
    trained_dtype: torch.dtype

    def as_dict(self) -> dict[str, str]:
        """For the record."""
        return {
            "model": str(self.model_dtype).removeprefix("torch."),
            "trained": str(self.trained_dtype).removeprefix("torch."),
        }


def precision_of(config: Config, device: torch.device) -> Precision:
    """The dtypes of a run on this device (`Config.dtypes`)."""
    names = config.dtypes(device.type)
    return Precision(DTYPES[names["model"]], DTYPES[names["trained"]])
