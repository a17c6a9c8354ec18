"""One base beside its tuned models: the change of every matrix, and what cannot be compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparta_bench.charts.chart import Figure
from sparta_bench.charts.text import counted
from sparta_bench.errors import InputError
from sparta_bench.ranks.checkpoint import Checkpoint, open_checkpoint
from sparta_bench.ranks.difference import EMBEDDING, LM_HEAD, Tuned, open_tuned
from sparta_bench.ranks.figure import Shown, spectra
from sparta_bench.ranks.layout import rank_table
from sparta_bench.ranks.progress import Progress, work_of
from sparta_bench.ranks.spectrum import Change, change_of
from sparta_bench.tables.table import Table

AT_MOST_NAMES = 20  # in a note; the others are counted


@dataclass(frozen=True)
class Compared:
    """What `compare` found; `changes` has a list for each of `tuned`."""

    base: Checkpoint
    tuned: Sequence[Tuned]
    changes: Sequence[Sequence[Change]]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        labels = ", ".join(tuned.label for tuned in self.tuned)
        return f"Rank of the change from {Path(self.base.label).name} to {labels}"

    def as_list(self) -> list[dict[str, Any]]:
        """A dictionary for each matrix of each tuned model (see `Change.as_dict`)."""
        return [change.as_dict() for found in self.changes for change in found]

    def table(self) -> Table:
        """The paper's layout, with the notes below."""
        labels = [tuned.label for tuned in self.tuned]
        return rank_table(self.changes, labels, self.title, self.notes)

    def figure(self, name: str) -> Figure:
        """The spectra."""
        shown = [
            Shown(tuned.label, tuned.method, changes)
            for tuned, changes in zip(self.tuned, self.changes, strict=True)
        ]
        return spectra(name, self.title, shown)


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
    eps = torch.finfo(dtype).eps
    name = str(dtype).removeprefix("torch.")
    notes = [
        "rank: how many singular values exceed the largest × max(rows, columns) × "
        f"{eps:.3g}, numpy's tolerance for {name}; computed in {name} on {device.type}",
        "above rounding: how many of these exceed what rounding the stored values can make of a "
        "matrix that did not change",
        "stable rank: squared Frobenius norm over squared spectral norm",
    ]
    plan: list[list[str]] = []
    for model in models:
        keys, about = _in_common(start, model)
        plan.append(keys)
        notes += [*model.notes, *(f"{model.label}: {line}" for line in about)]
        if not keys:
            raise InputError(f"{model.source}: has no matrix of {base} in the same shape", *about)
    work = {key: work_of(_matrix(start, key)) for keys in plan for key in keys}
    changes: list[list[Change]] = []
    with Progress(sum(map(len, plan)), sum(work[key] for keys in plan for key in keys)) as progress:
        for model, keys in zip(models, plan, strict=True):
            changes.append([])
            for key in keys:
                progress.begin(f"{model.label} {key}")
                changes[-1].append(change_of(model, key, dtype, device))
                progress.end(work[key])
    return Compared(start, models, changes, tuple(notes))


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
    vectors, others, shapes, kinds, mixed = 0, [], [], [], Counter[str]()
    both = [name for name in base.tensors if name in model.shapes]
    for name in both:
        shape, now = base.tensors[name].shape, model.shapes[name]
        dtypes = [str(dtype).removeprefix("torch.") for dtype in model.dtypes(name)]
        if shape != now:
            shapes.append(f"{name} ({_by(shape)}, now {_by(now)})")
        elif None in model.dtypes(name):
            kinds.append(name)
        elif len(shape) < 2:
            vectors += 1
        elif len(shape) > 2 or 0 in shape:
            others.append(f"{name} ({_by(shape)})")
        else:
            keys.append(name)
            if dtypes[0] != dtypes[1]:
                mixed[f"{dtypes[0]} in the base and {dtypes[1]} here"] += 1
    if LM_HEAD in keys and _is_tied(model):
        keys.remove(LM_HEAD)
        tied = ["the vocabulary head is the embedding, in both, and has no row of its own"]
    else:
        tied = []
    lines = [
        _listed("left out, only in the base", [n for n in base.tensors if n not in model.shapes]),
        _listed("left out, only here", [n for n in model.shapes if n not in base.tensors]),
        _listed("left out, of another shape", shapes),
        _listed("left out, no plain floating-point numbers", kinds),
        _listed("left out, no matrix", others),
        *tied,
        *(f"{counted(n, 'matrix is', 'matrices are')} {how}" for how, n in mixed.items()),
        f"{counted(vectors, 'vector', 'vectors')} left out" if vectors else "",
    ]
    return keys, [line for line in lines if line]


def _is_tied(model: Tuned) -> bool:
    """Whether base and tuned model hold their embedding a second time as the vocabulary head."""
    if model.shapes.get(EMBEDDING) != model.shapes[LM_HEAD]:
        return False
    rows = model.shapes[LM_HEAD][0]
    embedding, head = model.pair(EMBEDDING, 0, rows), model.pair(LM_HEAD, 0, rows)
    return all(torch.equal(one, two) for one, two in zip(embedding, head, strict=True))


def _listed(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:AT_MOST_NAMES])
    more = len(names) - AT_MOST_NAMES
    return f"{what}: {shown}" + (f" and {more:,} more" if more > 0 else "")


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "scalar"
