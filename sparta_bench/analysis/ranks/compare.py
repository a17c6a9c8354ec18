"""One base beside its tuned models: the change of every matrix, and what cannot be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparta_bench.analysis.ranks.comparison_progress import Progress, work_of
from sparta_bench.analysis.ranks.difference import Tuned, open_tuned
from sparta_bench.analysis.ranks.printed import printed_ranks
from sparta_bench.analysis.ranks.rank_tables import place_of, rank_table
from sparta_bench.analysis.ranks.spectra_figure import spectra
from sparta_bench.analysis.ranks.spectrum import Change, Changes, change_of
from sparta_bench.errors import InputError
from sparta_bench.models.stored_tensors import Checkpoint, open_checkpoint
from sparta_bench.report.plots import Figure
from sparta_bench.tables.table import Table
from sparta_bench.text import counted

AT_MOST_NAMES = 20  # in a note; the others are counted
EMBEDDING, LM_HEAD = "embed_tokens.weight", "lm_head.weight"
ROWS = 4096  # of the vocabulary, that are compared at a time


@dataclass(frozen=True)
class Compared:
    """What `compare` found, by tuned model in the order in which they were asked for."""

    base: str
    found: Sequence[Changes]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """Of table and figure."""
        labels = ", ".join(one.label for one in self.found)
        return f"Rank of the change from {self.base} to {labels}"

    def as_list(self) -> list[dict[str, Any]]:
        """A dictionary for each matrix of each tuned model (see `Change.as_dict`)."""
        return [
            {"name": change.name, "tuned": one.label}
            | change.as_dict()
            | ({"rank_in_paper": one.printed[change.key]} if change.key in one.printed else {})
            for one in self.found
            for change in one.changes
        ]

    def table(self) -> Table:
        """The paper's layout, with the notes below."""
        return rank_table(self.found, self.title, self.notes)

    def figure(self, name: str) -> Figure:
        """The spectra."""
        return spectra(name, self.title, self.found)


def compare(base: str, tuned: Sequence[str], dtype: torch.dtype, device: torch.device) -> Compared:
    """The change of every matrix that the base and each tuned model have in one shape.

    Parameters
    ----------
    base, tuned
        What `open_checkpoint` opens; adapter folders too in `tuned`.
    dtype
        Of the computation, and of the tolerance that follows from it.

    Raises
    ------
    InputError
        If something cannot be read, an adapter is of another base, a value is not finite, or two
        models have no matrix in common.
    """
    start = open_checkpoint(base)
    models = [open_tuned(source, start) for source in tuned]
    _tell_apart(models)
    notes: dict[str, list[str]] = {}  # each with the models that it is about
    plan: list[list[str]] = []
    for model in models:
        keys, about = _in_common(start, model)
        if not keys:
            raise InputError(f"{model.source}: has no matrix of {base} in the same shape", *about)
        plan.append(keys)
        for line in (*model.notes, *about):
            notes.setdefault(line, []).append(model.label)
    found = _all_changes(start, models, plan, dtype, device)
    for one in found:
        for line in _about_rows(one.changes):
            notes.setdefault(line, []).append(one.label)
    told = [f"{', '.join(labels)}: {line}" for line, labels in notes.items()]
    return Compared(start.name, found, (*_definitions(dtype, device), *told))


def _all_changes(
    base: Checkpoint,
    models: Sequence[Tuned],
    plan: Sequence[Sequence[str]],
    dtype: torch.dtype,
    device: torch.device,
) -> list[Changes]:
    """Of each model the matrices that the plan names, while telling how far it is."""
    work = {key: work_of(_matrix(base, key)) for keys in plan for key in keys}
    found = []
    with Progress(sum(map(len, plan)), sum(work[key] for keys in plan for key in keys)) as progress:
        for model, keys in zip(models, plan, strict=True):
            changes = []
            for key in keys:
                progress.begin(f"{model.label} {key}")
                changes.append(change_of(model, key, dtype, device))
                progress.end(work[key])
            shapes = {key: _matrix(base, key) for key in keys}
            printed = printed_ranks(base.name, model.label, shapes)
            found.append(Changes(model.label, model.method, changes, printed))
    return found


def _definitions(dtype: torch.dtype, device: torch.device) -> list[str]:
    name = str(dtype).removeprefix("torch.")
    return [
        "rank: how many singular values exceed the largest × max(rows, columns) × "
        f"{torch.finfo(dtype).eps:.3g}, numpy's tolerance for {name}; computed in {name} on "
        f"{device.type}",
        "above rounding: how many of these exceed what rounding the stored values can make of a "
        "matrix that did not change",
        "stable rank: squared Frobenius norm over squared spectral norm; changed: scalars that "
        "differ at all",
    ]


def _matrix(base: Checkpoint, key: str) -> tuple[int, int]:
    rows, columns = base.tensors[key].shape
    return rows, columns


def _tell_apart(models: Iterable[Tuned]) -> None:
    """Number models of one label."""
    seen: Counter[str] = Counter()
    for model in models:
        seen[model.label] += 1
        if seen[model.label] > 1:
            model.label = f"{model.label} ({seen[model.label]})"


def _in_common(base: Checkpoint, model: Tuned) -> tuple[list[str], list[str]]:
    """The matrices to compare, by name in the backbone, and lines about all other tensors."""
    keys: list[str] = []
    left: dict[str, list[str]] = {}
    mixed: Counter[str] = Counter()
    for name in base.tensors:
        why = _left_out(base, model, name)
        if why is not None:
            left.setdefault(why[0], []).append(why[1])
            continue
        keys.append(name)
        before, after = (str(dtype).removeprefix("torch.") for dtype in model.dtypes(name))
        if before != after:
            mixed[f"{before} in the base and {after} here"] += 1
    lines = []
    if LM_HEAD in keys and _is_tied(model):
        keys.remove(LM_HEAD)
        lines.append("the vocabulary head is the embedding, in both, and has no row of its own")
    only_here = [name for name in model.shapes if name not in base.tensors]
    if only_here:
        left["only here"] = only_here
    lines += [f"{counted(n, 'matrix is', 'matrices are')} {how}" for how, n in mixed.items()]
    vectors = left.pop("vectors", [])
    lines += [f"left out, {why}: {_listed(names)}" for why, names in left.items()]
    if vectors:
        lines.append(f"{counted(len(vectors), 'vector', 'vectors')} left out")
    return keys, lines


def _left_out(base: Checkpoint, model: Tuned, name: str) -> tuple[str, str] | None:
    """Why a tensor of the base is not compared, and what to call it there; null where it is."""
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


def _is_tied(model: Tuned) -> bool:
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


def _about_rows(changes: Iterable[Change]) -> list[str]:
    """In how many rows, of tokens mostly, a matrix outside the layers changed: a bound of its
    rank."""
    return [
        f"{change.name} changed in {change.changed_rows:,} of its {change.shape[0]:,} rows"
        for change in changes
        if place_of(change.key).layer is None and 0 < change.changed_rows < change.shape[0]
    ]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:AT_MOST_NAMES])
    more = len(names) - AT_MOST_NAMES
    return shown + (f" and {more:,} more" if more > 0 else "")


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
