"""One base beside its tuned models: the change of every matrix, and what cannot be compared."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from sparta_bench.analysis.ranks.rank_tables import place_of, printed_ranks
from sparta_bench.analysis.ranks.spectrum import MatrixChange, ModelChanges, TunedModel, change_of
from sparta_bench.errors import InputError
from sparta_bench.models.stored_tensors import Checkpoint, open_checkpoint
from sparta_bench.text import as_duration, counted

AT_MOST_NAMES = 20  # in a note; the others are counted
EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"
ROWS = 4096  # of the vocabulary, that are compared at a time
EVERY_SECONDS = 10  # between two lines of progress where nobody is watching
BAR = "{desc} |{bar}| {remaining} left"


@dataclass(frozen=True)
class Compared:
    """The changes of each tuned model, in the order in which `compare` was asked for them."""

    base: str
    models: Sequence[ModelChanges]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        labels = ", ".join(model.label for model in self.models)
        return f"Rank of the change from {self.base} to {labels}"

    def as_list(self) -> list[dict[str, Any]]:
        """Return a dictionary for each matrix of each tuned model (`MatrixChange.as_dict`)."""
        return [
            {"name": change.name, "tuned": model.label}
            | change.as_dict()
            | ({"rank_in_paper": model.printed[change.key]} if change.key in model.printed else {})
            for model in self.models
            for change in model.changes
        ]


def compare(base: str, tuned: Sequence[str], dtype: torch.dtype, device: torch.device) -> Compared:
    """Compute the change of every matrix that the base and each tuned model have in one shape;
    raises InputError if they have none, one cannot be read, or an adapter is of another base.

    `base` and `tuned` are what `open_checkpoint` opens, `tuned` adapter folders too. `dtype` is
    that of the computation, and the tolerance follows from it.
    """
    start = open_checkpoint(base)
    models = [TunedModel(source, start) for source in tuned]
    seen: Counter[str] = Counter()
    for model in models:  # those of one label get numbers
        seen[model.label] += 1
        if seen[model.label] > 1:
            model.label = f"{model.label} ({seen[model.label]})"
    notes: dict[str, list[str]] = {}  # each with the models that it is about
    plan: list[list[str]] = []
    for model in models:
        keys, lines = _in_common(start, model)
        if not keys:
            raise InputError(f"{model.source}: has no matrix of {base} in the same shape", *lines)
        plan.append(keys)
        for line in (*model.notes, *lines):
            notes.setdefault(line, []).append(model.label)
    results = _all_changes(start, models, plan, dtype, device)
    for result in results:
        for (
            change
        ) in result.changes:  # outside the layers mostly of tokens, and a bound of the rank
            rows, changed = change.shape[0], change.changed_rows
            if place_of(change.key).layer is None and 0 < changed < rows:
                line = f"{change.name} changed in {changed:,} of its {rows:,} rows"
                notes.setdefault(line, []).append(result.label)
    name, eps = str(dtype).removeprefix("torch."), torch.finfo(dtype).eps
    definitions = (
        f"rank: how many singular values exceed the largest × max(rows, columns) × {eps:.3g}, "
        f"numpy's tolerance for {name}; computed in {name} on {device.type}",
        "above rounding: how many of these exceed what rounding the stored values can make of a "
        "matrix that did not change",
        "stable rank: squared Frobenius norm over squared spectral norm; changed: scalars that "
        "differ at all",
    )
    lines = [f"{', '.join(labels)}: {line}" for line, labels in notes.items()]
    return Compared(start.name, results, (*definitions, *lines))


def _all_changes(
    base: Checkpoint, models: Sequence[TunedModel], plan: Sequence[Sequence[str]],
    dtype: torch.dtype, device: torch.device,
) -> list[ModelChanges]:  # fmt: skip
    """Compute the matrices of each model that the plan names, and show how far it is: a bar where
    somebody is watching, else a line now and then."""
    shapes = {key: base.tensors[key].shape for keys in plan for key in keys}
    matrices = sum(map(len, plan))
    work = sum(_work_of(shapes[key]) for keys in plan for key in keys)
    results: list[ModelChanges] = []
    done, done_work, started, shown = 0, 0.0, perf_counter(), perf_counter()
    with tqdm(total=work, disable=None, leave=False, bar_format=BAR) as bar:
        for model, keys in zip(models, plan, strict=True):
            changes: list[MatrixChange] = []
            for key in keys:
                bar.set_description_str(f"{done + 1:,}/{matrices:,} {model.label} {key}")
                changes.append(change_of(model, key, dtype, device))
                done, done_work = done + 1, done_work + _work_of(shapes[key])
                bar.update(_work_of(shapes[key]))
                now = perf_counter()
                if bar.disable and (done == matrices or now - shown >= EVERY_SECONDS):
                    shown, left = now, (now - started) * (work / done_work - 1)
                    print(
                        f"ranks: {done:,}/{matrices:,} matrices, {as_duration(now - started)}, "
                        f"{as_duration(left)} left",
                        file=sys.stderr, flush=True,
                    )  # fmt: skip
            printed = printed_ranks(base.name, model.label, {key: shapes[key] for key in keys})
            results.append(ModelChanges(model.label, model.method, changes, printed))
    return results


def _work_of(shape: tuple[int, ...]) -> float:
    """The time that a matrix takes, in some unit: its QR decomposition, and the singular values of
    the triangle, which are slower per operation (a fit to times on a CPU)."""
    short, long = sorted(shape)
    return float(long * short**2 + 5 * short**3)


def _in_common(base: Checkpoint, model: TunedModel) -> tuple[list[str], list[str]]:
    """Return the matrices to compare, by name in the backbone, and lines about other tensors."""
    keys: list[str] = []
    left: dict[str, list[str]] = {}
    mixed: Counter[str] = Counter()
    for name in base.tensors:
        reason = _left_out(base, model, name)
        if reason is not None:
            left.setdefault(reason[0], []).append(reason[1])
            continue
        keys.append(name)
        before, after = (str(dtype).removeprefix("torch.") for dtype in model.dtypes(name))
        if before != after:
            mixed[f"{before} in the base and {after} here"] += 1
    lines = []
    if LM_HEAD in keys and _is_tied(model):
        keys.remove(LM_HEAD)
        lines.append("the vocabulary head is the embedding, in both, and has no row of its own")
    if added := [name for name in model.shapes if name not in base.tensors]:
        left["only here"] = added
    lines += [f"{counted(n, 'matrix is', 'matrices are')} {how}" for how, n in mixed.items()]
    vectors = left.pop("vectors", [])
    for why, names in left.items():
        more = len(names) - AT_MOST_NAMES
        text = ", ".join(names[:AT_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")
        lines.append(f"left out, {why}: {text}")
    if vectors:
        lines.append(f"{counted(len(vectors), 'vector', 'vectors')} left out")
    return keys, lines


def _left_out(base: Checkpoint, model: TunedModel, name: str) -> tuple[str, str] | None:
    """Why a tensor of the base is not compared, and what to call it; None where it is."""
    before, after = base.tensors[name].shape, model.shapes.get(name)
    if after is None:
        return "only in the base", name
    if before != after:
        return "of another shape", f"{name} ({_by(before)}, now {_by(after)})"
    if None in model.dtypes(name):
        return "no plain floating-point numbers", name
    if len(before) < 2:
        return "vectors", name
    if len(before) > 2 or 0 in before:
        return "no matrix", f"{name} ({_by(before)})"
    return None


def _is_tied(model: TunedModel) -> bool:
    """Whether base and tuned model hold their embedding a second time as the vocabulary head."""
    shape = model.shapes[LM_HEAD]
    if not (model.shapes.get(EMBEDDING) == model.base.shape_of(EMBEDDING) == shape):
        return False
    for start in range(0, shape[0], ROWS):
        embedding = model.pair(EMBEDDING, start, start + ROWS)
        head = model.pair(LM_HEAD, start, start + ROWS)
        if not all(torch.equal(one, two) for one, two in zip(embedding, head, strict=True)):
            return False
    return True


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
