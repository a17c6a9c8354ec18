"""What `sparta-bench merge` does with what a run has trained: bake it, or export it."""

from __future__ import annotations

from pathlib import Path

from sparta_bench.adapters.load_adapter import Loaded, load
from sparta_bench.adapters.output_folder import refuse_to_replace, written
from sparta_bench.adapters.whole_model import write_whole
from sparta_bench.errors import InputError
from sparta_bench.sparta import peft_sparta


def bake(
    folder: Path,
    out: Path,
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write the classifier in `folder` (see `load_adapter`) as a plain transformers folder.

    Returns a line that says what is there now.

    Raises
    ------
    InputError
        If there is nothing to bake, or `out` is not empty and `force` not given.
    """
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
    return line + _of_rounding(loaded)


def _of_rounding(loaded: Loaded) -> str:
    """How far the head's weights move when transformers loads them in the model's dtype."""
    weight = loaded.classifier.head_weight.detach()
    dtype = next(loaded.classifier.backbone.parameters()).dtype
    moved = float((weight.to(dtype).to(weight.dtype) - weight).norm() / weight.norm())
    if moved == 0:
        return ""
    name = str(dtype).removeprefix("torch.")
    return (
        f"; the head is {loaded.about.dtypes['trained']} in the file: loaded in {name} it is "
        f"rounded by {moved:.2%} (root mean square), with dtype=torch.float32 not at all"
    )


def export(
    folder: Path,
    out: Path,
    base_name: str,
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write a SpaRTA adapter in the layout of the authors' package peft-sparta.

    Parameters
    ----------
    base_name
        What their package is to load the base model from: a name on the hub, or a folder.

    Returns a line that says what is there now.

    Raises
    ------
    InputError
        If it is no SpaRTA adapter, or `out` is not empty and `force` not given.
    """
    refuse_to_replace(folder, out, force)
    loaded = load(folder, base, tokenizer, allow_pickle)
    if loaded.sparta is None:
        name = loaded.about.method["name"]
        raise InputError(f"{folder}: an adapter of {name}; peft-sparta's layout is for SpaRTA's")
    if loaded.about.separator == "sep_token":
        raise InputError(f"{folder}: was trained with an added token, which is not exported")
    with written(out) as temporary:
        peft_sparta.write(
            loaded.sparta.backbone,
            loaded.sparta.indices,
            loaded.sparta.deltas,
            loaded.classifier.head_weight,
            temporary,
            base_name,
            loaded.about.labels,
        )
    line = f"{out}: {loaded.sparta.chosen:,} deltas and the head, on {base_name}"
    return line + _what_theirs_does(loaded)


def _what_theirs_does(loaded: Loaded) -> str:
    """Where the authors' package will refuse what is exported, or compute something else."""
    told = ""
    words = len(loaded.tokenizer)
    rows = loaded.classifier.backbone.config.vocab_size  # type: ignore[union-attr]
    if words != rows:
        told += (
            f"; peft-sparta 0.0.3 will refuse it, because the tokenizer has {words} tokens and the "
            f"model {rows} embeddings"
        )
    dtype = loaded.about.dtypes["model"]
    if dtype != "bfloat16":
        told += (
            "; peft-sparta loads the base in bfloat16, where this was trained in "
            f"{dtype}, so its probabilities will differ a little"
        )
    return told
