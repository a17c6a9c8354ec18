"""What a tuned model's matrices are beside its base's; the singular values of their difference, and
what of them is more than noise.

Definitions, and what the precision is: docs/ranks.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparta_bench.adapters import read_folder
from sparta_bench.adapters.load_adapter import refuse_other_base
from sparta_bench.adapters.read_folder import Change, Tuned
from sparta_bench.errors import InputError
from sparta_bench.models.dtypes import DTYPES
from sparta_bench.models.stored_tensors import Checkpoint, is_head, open_checkpoint

WORK_DTYPES = {"float32": torch.float32, "float64": torch.float64}
# rows of a block over the columns: the QR of many blocks then costs a quarter more than one of all
_TALL = 4
_EXPONENT_OF = {
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}


class TunedModel:
    """A whole checkpoint, or an adapter on its base as it was in training: in the model's dtype
    then.

    `source` is what the user called it; `label` a short name, and `method` what trained it (None:
    not known). `shapes` are those of its tensors, by name in the backbone; `notes` is what a
    reader must know beside the numbers. `began_at_base`: whether training began with the very
    values of the base's file, so that these carry no error of rounding; of a whole model a run
    wrote down the base's name, of any other this is not known.
    """

    label: str
    method: str | None
    began_at_base: bool
    changes: Mapping[str, Change]
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype | None = None  # of the model in training, where that is known

    def __init__(self, source: str, base: Checkpoint) -> None:
        self.source, self.base = source, base
        self.notes: list[str] = []
        kind = read_folder.kind_of(Path(source))
        if kind == read_folder.AUTHORS:
            raise InputError(read_folder.why_unreadable(Path(source)))
        if kind == read_folder.ADAPTER:
            self._read_adapter()
            return
        tuned = open_checkpoint(source)
        self.method, trained_on = None, None
        if kind == read_folder.WHOLE:
            about = read_folder.read_manifest(Path(source))
            self.method, trained_on = about.method["name"], about.base_model["name"]
        self.began_at_base = trained_on == base.name
        self.label = self.method or tuned.name
        self.shapes = {name: stored.shape for name, stored in tuned.tensors.items()}
        self.changes = {name: Tuned(tuned, name) for name in tuned.tensors}
        if trained_on is not None and not self.began_at_base:
            self.notes.append(f"was trained on {trained_on}, by its {read_folder.WHOLE}")

    def _read_adapter(self) -> None:
        config = read_folder.read_config(Path(self.source))
        if "labels" in config:  # of what a script saved, the dtype of the model is not known
            self.dtype = DTYPES[read_folder.read_manifest(Path(self.source)).dtypes["model"]]
        own, expected = self.base.fingerprint(self.dtype), config.get("base_fingerprint")
        if own != expected and config.get("separator") == "sep_token":
            self.notes.append(
                "the run may have added a token's row to the embedding, so that its base cannot "
                "be checked"
            )
        else:
            refuse_other_base(expected, own, self.source, self.base.label)
        tensors = self.base.tensors.items()
        shapes = {name: stored.shape for name, stored in tensors if not is_head(name)}
        vector = read_folder.read_changes(Path(self.source), shapes)
        self.began_at_base, self.changes = True, vector.changes
        self.shapes = shapes | {name: tuple(head.shape) for name, head in vector.heads.items()}
        self.method = self.label = config["method"]["name"]
        if self.method == "lora":
            self.label += f" r={config['method']['r']}"
        elif isinstance(density := config.get("density"), float):
            self.label += f" {density:g}"

    def pair(self, name: str, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return rows of the base and of the tuned matrix, as they are compared (each at most
        stop - start x columns), in dtypes of their own."""
        base = self.base.rows(name, start, stop)
        base = base if self.dtype is None else base.to(self.dtype)
        change = self.changes.get(name)
        return base, base if change is None else change.tuned(base, start)

    def dtypes(self, name: str) -> tuple[torch.dtype | None, torch.dtype | None]:
        """Return those of the two matrices: the base's in its file, and the tuned one's; None where
        one is no plain floating-point one."""
        stored, change = self.base.tensors[name].dtype, self.changes.get(name)
        if isinstance(change, Tuned):
            return stored, change.checkpoint.tensors[name].dtype
        return stored, None if stored is None else self.dtype or stored


@dataclass(frozen=True)
class MatrixChange:
    """A matrix of a tuned model minus the base's.

    `values` are all min(rows, columns) singular values, falling, in the dtype of the computation;
    `rounding` estimates the largest singular value of what storing in `dtypes` (base, tuned)
    rounded away; `changed` scalars differ, which lie in `changed_rows` rows (no rank is larger);
    `name` is the base's own, `key` that in the backbone.
    """

    key: str
    name: str
    shape: tuple[int, int]
    dtypes: tuple[torch.dtype, torch.dtype]
    values: Tensor
    rounding: float
    changed: int
    changed_rows: int

    @property
    def largest(self) -> float:
        return float(self.values[0])

    def relative_tolerance(self, dtype: torch.dtype | None = None) -> float:
        """What a singular value must exceed to count, over the largest: max(rows, columns) times
        the spacing of numbers at 1, as numpy's `matrix_rank` has it."""
        return max(self.shape) * torch.finfo(dtype or self.values.dtype).eps

    def rank(self, dtype: torch.dtype | None = None) -> int:
        """How many singular values exceed the tolerance of a dtype (the computation's)."""
        return self._above(self.relative_tolerance(dtype) * self.largest)

    @property
    def rank_above_rounding(self) -> int:
        """How many exceed the noise of rounding and the tolerance."""
        return self._above(max(self.rounding, self.relative_tolerance() * self.largest))

    @property
    def stable_rank(self) -> float | None:
        """Squared Frobenius norm over squared spectral norm; None where nothing changed."""
        if self.largest == 0:
            return None
        return float((self.values.double() / self.largest).square().sum())

    def _above(self, bound: float) -> int:
        return int((self.values.double() > bound).sum())

    def as_dict(self) -> dict[str, Any]:
        """For programs. Tolerance and noise are absolute."""
        rank = self.rank()
        values = {
            "name": self.name,
            "shape": list(self.shape),
            "rank": rank,
            "deficiency": min(self.shape) - rank,
            "tolerance": self.relative_tolerance() * self.largest,
            "relative_tolerance": self.relative_tolerance(),
            "largest_singular_value": self.largest,
            "stable_rank": self.stable_rank,
            "rounding_noise": self.rounding,
            "rank_above_rounding": self.rank_above_rounding,
            "changed_scalars": self.changed,
            "changed_rows": self.changed_rows,
            "dtypes": [str(dtype).removeprefix("torch.") for dtype in self.dtypes],
            "computed_in": str(self.values.dtype).removeprefix("torch."),
        }
        if self.values.dtype == torch.float64:
            values["rank_at_float32_tolerance"] = self.rank(torch.float32)
        return values


class ModelChanges(NamedTuple):
    """All changes of one tuned model: its label, the method that trained it (None: not known),
    and the ranks that the paper prints, by name in the backbone."""

    label: str
    method: str | None
    changes: Sequence[MatrixChange]
    printed: Mapping[str, int]


def change_of(
    tuned: TunedModel, key: str, dtype: torch.dtype, device: torch.device
) -> MatrixChange:
    """Compute the change of one matrix in `dtype` on `device`; raises InputError if a value is not
    finite.

    Of a tall matrix never more than a block of rows is in memory (4 x columns x columns, of base,
    tuned and difference); a wide one is held whole, and turned.
    """
    rows, columns = tuned.shapes[key]
    stored = tuned.base.tensors[key]
    wide = rows < columns
    noise = Noise(tuned.began_at_base, columns)
    changed = torch.zeros(rows, dtype=torch.int64)  # scalars of each row
    size = rows if wide else _TALL * columns

    def blocks() -> Iterator[Tensor]:
        for start in range(0, rows, size):
            base, other = (side.to(device) for side in tuned.pair(key, start, start + size))
            difference = other.to(dtype) - base.to(dtype)
            if not difference.isfinite().all():
                what = tuned.source if base.isfinite().all() else tuned.base.label
                raise InputError(f"{what}: {stored.name} has values that are not finite numbers")
            noise.add(base, other)
            changed[start : start + len(base)] = difference.count_nonzero(dim=1).cpu()
            yield difference.T if wide else difference

    values = singular_values(blocks(), min(rows, columns)).cpu()
    before, after = tuned.dtypes(key)
    assert before is not None and after is not None
    return MatrixChange(
        key, stored.name, (rows, columns), (before, after), values, noise.largest(),
        int(changed.sum()), int(changed.count_nonzero()),
    )  # fmt: skip


def singular_values(blocks: Iterable[Tensor], columns: int) -> Tensor:
    """Return all `columns` singular values, falling, of the tall matrix of these blocks of rows.

    What is above is replaced by its triangle R (of the same singular values) before the next
    block is put below it, which is a QR decomposition in steps (Demmel et al., 2012, "TSQR"). It
    is backward stable: values are off by some eps of the largest, as those of an SVD of the whole.
    Rows of zeros are left out first, since they add nothing.
    """
    stacked: Tensor | None = None
    empty = torch.zeros(0, columns)
    for block in blocks:
        empty = block[:0]
        changed = block[block.any(dim=1)]
        if stacked is None:
            stacked = changed
        elif len(changed):
            triangle = torch.linalg.qr(stacked, mode="r").R
            stacked = torch.cat([triangle, changed])
    if stacked is None or len(stacked) == 0:
        return empty.new_zeros(columns)
    # LAPACK is eight times slower on a wide matrix than on the same one turned
    values = torch.linalg.svdvals(stacked if len(stacked) >= columns else stacked.T)
    return torch.cat([values, values.new_zeros(columns - len(values))])


class Noise:
    """An estimate of the largest singular value of the rounding error in a difference.

    An error is taken to be uniform within half a unit in the last place of the stored value, so its
    variance is ulp² / 12, and independent of all others. The largest singular value of such noise
    is about the square root of the largest sum of variances over a row, plus that over a column
    (for equal variances s²: s (√rows + √columns)). Values that are known to be those that training
    began with carry no error (`exact_base`).
    """

    def __init__(self, exact_base: bool, columns: int) -> None:
        self.exact_base = exact_base
        self.row = 0.0
        self.columns = torch.zeros(columns, dtype=torch.float64)

    def add(self, base: Tensor, tuned: Tensor) -> None:
        """Take in a block of rows of both matrices."""
        variance = _ulp(tuned).square_()
        if not self.exact_base:
            variance = variance + _ulp(base).square_()
        self.row = max(self.row, float(variance.sum(dim=1).max()))
        self.columns += variance.sum(dim=0).double().cpu()

    def largest(self) -> float:
        return (math.sqrt(self.row) + math.sqrt(float(self.columns.max()))) / math.sqrt(12)


def _ulp(values: Tensor) -> Tensor:
    """The distance from each value to the next number of its dtype (float32, or float64)."""
    limits = torch.finfo(values.dtype)
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    # the bits of the exponent alone are the power of two below a value
    bits, exponent = _EXPONENT_OF[wide.dtype]
    power = (wide.view(bits) & exponent).view(wide.dtype)
    return power.mul_(limits.eps).clamp_(min=limits.tiny * limits.eps)
