"""What `sparta-bench merge` writes of one trained model: a baked folder, or another layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparta_bench.adapters.load_adapter import Loaded, load
from sparta_bench.adapters.read_folder import SCORE
from sparta_bench.adapters.whole_model import write_whole
from sparta_bench.errors import InputError
from sparta_bench.files import whole_folder
from sparta_bench.models.dtypes import DTYPES
from sparta_bench.sparta import SpartaAdapter, peft_sparta
from sparta_bench.sparta.weight_patch import write_patch

PATCH = "patch.safetensors"


def refuse_to_replace(folder: Path, out: Path, force: bool) -> None:
    """Raise InputError if `out` may not be written while `folder` is read, or is not empty."""
    if out.is_file():
        raise InputError(f"--out {out}: is a file")
    if out.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise InputError(f"--out {out}: holds the adapter that is to be read")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise InputError(f"--out {out}: is not empty (--force replaces the whole folder)")


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which replaces `out` when the block ends well. Raises
    InputError if it cannot be written."""
    try:
        with whole_folder(out) as temporary:
            yield temporary
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror}") from None


def bake(
    folder: Path,
    out: Path,
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write the classifier in `folder` (see `load_adapter`) as a plain transformers folder; returns
    a line that says what was written."""
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
    head = loaded.classifier.head_weight.detach()
    moved = float((head.to(DTYPES[dtype]).to(head.dtype) - head).norm() / head.norm())
    if moved > 0:
        line += (
            f"; the head is {loaded.about.dtypes['trained']} in the file: loaded in {dtype} it is "
            f"rounded by {moved:.2%} (root mean square), with dtype=torch.float32 not at all"
        )
    return line


def export(
    folder: Path,
    out: Path,
    base_name: str,
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write a SpaRTA adapter in the layout of peft-sparta, which is to load the base model from
    `base_name`: a name on the hub, or a folder. Returns a line that says what was written."""
    refuse_to_replace(folder, out, force)
    loaded, adapter = _load_sparta(folder, base, tokenizer, allow_pickle)
    with written(out) as temporary:
        peft_sparta.write(
            adapter.backbone,
            adapter.indices,
            adapter.deltas,
            loaded.classifier.head_weight,
            temporary,
            base_name,
            loaded.about.labels,
        )
    line = f"{out}: {adapter.chosen:,} deltas and the head, on {base_name}"
    words, dtype = len(loaded.tokenizer), loaded.about.dtypes["model"]
    rows = loaded.classifier.backbone.config.vocab_size  # type: ignore[union-attr]
    if words != rows:
        line += (
            f"; peft-sparta 0.0.3 will refuse it, because the tokenizer has {words} tokens and the "
            f"model {rows} embeddings"
        )
    if dtype != "bfloat16":
        line += (
            "; peft-sparta loads the base in bfloat16, where this was trained in "
            f"{dtype}, so its probabilities will differ a little"
        )
    return line


def export_patch(
    folder: Path,
    out: Path,
    base: str | None = None,
    tokenizer: str | None = None,
    allow_pickle: bool = False,
    force: bool = False,
) -> str:
    """Write a SpaRTA adapter as a patch of its base's tensors (`sparta.weight_patch`), with the
    head whole beside them. Returns a line that says what was written."""
    refuse_to_replace(folder, out, force)
    loaded, adapter = _load_sparta(folder, base, tokenizer, allow_pickle)
    about = {
        "base": str(loaded.about.base_model["name"]),
        "labels": json.dumps(loaded.about.labels),
    }
    with written(out) as temporary:
        head = {SCORE: loaded.classifier.head_weight}
        write_patch(adapter, temporary / PATCH, head, about)
    return (
        f"{out / PATCH}: {adapter.chosen:,} entries of {len(adapter.indices):,} tensors of "
        f"{about['base']} in {loaded.about.dtypes['model']}, and the head as {SCORE}"
    )


def _load_sparta(
    folder: Path, base: str | None, tokenizer: str | None, allow_pickle: bool
) -> tuple[Loaded, SpartaAdapter]:
    """Load a SpaRTA adapter whose changes are all in tensors of its base; raises InputError for
    anything else."""
    loaded = load(folder, base, tokenizer, allow_pickle)
    if loaded.sparta is None:
        name = loaded.about.method["name"]
        raise InputError(f"{folder}: an adapter of {name}; this layout is for SpaRTA's")
    if loaded.about.separator == "sep_token":
        raise InputError(f"{folder}: was trained with an added token, which is not exported")
    return loaded, loaded.sparta
