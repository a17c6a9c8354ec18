"""Singular values in blocks of rows, what counts as rank, and what rounding makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparta_bench.analysis.ranks.rank_tables import (
    ON_THE_HUB,
    TABLES,
    Place,
    as_ranges,
    kind_order,
    place_of,
    printed_ranks,
    rank_table,
)
from sparta_bench.analysis.ranks.spectrum import (
    MatrixChange,
    ModelChanges,
    Noise,
    TunedModel,
    change_of,
    singular_values,
)
from sparta_bench.errors import InputError
from sparta_bench.models.stored_tensors import Checkpoint, open_checkpoint

CPU = torch.device("cpu")
KEY = "layers.0.mlp.up_proj.weight"


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(rows: int, columns: int, rank: int, seed: int = 1) -> Tensor:
    return randn(rows, rank, seed=seed) @ randn(rank, columns, seed=seed + 1)


def with_values(values: Tensor, rows: int) -> Tensor:
    """A tall matrix with these singular values (float64)."""
    columns = len(values)
    left = torch.linalg.qr(randn(rows, columns, seed=2)).Q
    right = torch.linalg.qr(randn(columns, columns, seed=3)).Q
    return left * values @ right


def change(
    base: Tensor, tuned: Tensor, folder: Path, dtype: torch.dtype = torch.float32
) -> MatrixChange:
    """What `ranks` finds between two matrices, each stored as it is."""
    folder.mkdir(exist_ok=True)
    for name, tensor in (("base", base), ("tuned", tuned)):
        save_file({KEY: tensor.contiguous()}, folder / f"{name}.safetensors")
    start = open_checkpoint(str(folder / "base.safetensors"))
    return change_of(TunedModel(str(folder / "tuned.safetensors"), start), KEY, dtype, CPU)


# ----------------------------------------------------------------------------- the precision
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lowest", [0, -3, -6, -9])
@pytest.mark.parametrize(("rows", "columns"), [(4096, 64), (1500, 160)])
def test_blocks_give_the_values_of_the_whole_to_a_few_roundings(
    rows: int, columns: int, lowest: int, dtype: torch.dtype
) -> None:
    whole = with_values(torch.logspace(0, lowest, columns, dtype=torch.float64), rows).to(dtype)
    exact = torch.linalg.svdvals(whole.double())
    eps = torch.finfo(dtype).eps
    for size in (columns, 3 * columns + 7, rows):
        found = singular_values(whole.split(size), columns)
        assert found.dtype == dtype and found.shape == (columns,)
        error = float((found.double() - exact).abs().max() / exact[0])
        # the tolerance of the rank is `rows` eps, at least forty times that
        assert error < 32 * eps


@pytest.mark.parametrize(("dtype", "smallest"), [(torch.float32, 5e-5), (torch.float64, 1e-11)])
def test_a_gram_matrix_would_lose_what_counts(dtype: torch.dtype, smallest: float) -> None:
    """Its squares drown in eps of the largest: the reason why this is done by QR."""
    values = torch.ones(64, dtype=torch.float64)
    values[-8:] = smallest
    tall = with_values(values, 256).to(dtype)
    tolerance = 256 * torch.finfo(dtype).eps
    assert smallest > 1.5 * tolerance
    by_qr = singular_values(tall.split(100), 64)
    assert int((by_qr > tolerance * by_qr[0]).sum()) == 64
    assert float((by_qr[-8:].double() / smallest - 1).abs().max()) < 0.02
    by_gram = torch.linalg.eigvalsh(tall.T @ tall).clamp(min=0).sqrt().flip(0)
    assert float((by_gram[-8:].double() / smallest - 1).abs().max()) > 0.5


def test_rows_of_zeros_and_short_blocks_change_nothing() -> None:
    tall = randn(90, 20)
    exact = torch.linalg.svdvals(tall)
    spread = torch.zeros(500, 20, dtype=torch.float64)
    spread[torch.randperm(500, generator=torch.Generator().manual_seed(4))[:90].sort().values] = (
        tall
    )
    spread[:60] = 0
    kept = torch.linalg.svdvals(spread)
    for size in (1, 7, 60, 499, 1000):
        assert torch.allclose(singular_values(spread.split(size), 20), kept, atol=1e-13)
    assert torch.allclose(singular_values(tall.split(7), 20), exact, atol=1e-13)
    assert torch.equal(singular_values([torch.zeros(9, 4)], 4), torch.zeros(4))
    few = singular_values([torch.zeros(9, 4), torch.eye(2, 4), torch.zeros(3, 4)], 4)
    assert few.tolist() == [1, 1, 0, 0]


# ------------------------------------------------------------------------------------- rank
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (64, 64)])
@pytest.mark.parametrize("rank", [0, 1, 3, 19])
def test_rank_is_numpys(
    tmp_path: Path, shape: tuple[int, int], rank: int, dtype: torch.dtype
) -> None:
    base = torch.zeros(shape, dtype=dtype)
    tuned = low_rank(*shape, rank).to(dtype)
    found = change(base, tuned, tmp_path, dtype)
    assert found.rank() == rank == np.linalg.matrix_rank(tuned.numpy())
    assert found.shape == shape and len(found.values) == min(shape)
    assert found.relative_tolerance() == max(shape) * np.finfo(str(dtype)[6:]).eps
    largest = float(torch.linalg.matrix_norm(tuned.double(), 2))
    assert found.largest == pytest.approx(largest, rel=1e-5)
    if rank == 0:
        assert (found.largest, found.stable_rank, found.changed, found.changed_rows) == (
            0, None, 0, 0,
        )  # fmt: skip
    else:
        square = float(tuned.double().square().sum())
        assert found.stable_rank == pytest.approx(square / largest**2, rel=1e-5)


def test_the_dtype_of_the_computation_sets_the_tolerance(tmp_path: Path) -> None:
    values = torch.tensor([1.0, 0.5, 1e-3, 1e-7, 1e-9, 1e-15], dtype=torch.float64)
    tuned = with_values(values, 40)
    in_double = change(torch.zeros_like(tuned), tuned, tmp_path, torch.float64)
    assert (in_double.rank(), in_double.rank(torch.float32)) == (5, 3)
    told = in_double.as_dict()
    assert (told["rank"], told["rank_at_float32_tolerance"], told["deficiency"]) == (5, 3, 1)
    assert change(torch.zeros_like(tuned), tuned, tmp_path).rank() == 3


def test_never_more_than_a_block_of_rows_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    read = Checkpoint.rows

    def rows(self: Checkpoint, name: str, start: int, stop: int) -> Tensor:
        block = read(self, name, start, stop)
        asked.append((start, len(block)))
        return block

    monkeypatch.setattr(Checkpoint, "rows", rows)
    found = change(torch.zeros(1000, 10), torch.ones(1000, 10), tmp_path)
    assert found.rank() == 1
    assert asked[::2] == asked[1::2] == [(start, 40) for start in range(0, 1000, 40)]


def test_changed_scalars_and_rows_are_counted_over_blocks(tmp_path: Path) -> None:
    tuned = torch.cat([torch.zeros(30, 4), torch.eye(3, 4), torch.ones(2, 4)])
    found = change(torch.zeros(35, 4), tuned, tmp_path)  # in blocks of 16 rows
    assert (found.changed, found.changed_rows) == (11, 5)


def test_a_change_in_97_rows_has_rank_97(tmp_path: Path) -> None:
    base = randn(3000, 128, dtype=torch.float32).bfloat16()
    tuned = base.clone()
    tuned[torch.arange(97) * 30] = randn(97, 128, seed=9, dtype=torch.float32).bfloat16()
    found = change(base, tuned, tmp_path)
    assert (found.rank(), found.changed_rows) == (97, 97)
    assert found.rank_above_rounding == 97


# --------------------------------------------------------------------------------- rounding
@pytest.mark.parametrize(("stored", "size"), [(torch.bfloat16, 0.02), (torch.float16, 0.002)])
def test_a_low_rank_change_that_is_rounded_becomes_full_rank(
    tmp_path: Path, stored: torch.dtype, size: float
) -> None:
    base = (0.02 * randn(512, 256)).to(stored)
    exact = base.double() + size * low_rank(512, 256, 8) / 8**0.5
    assert change(base.double(), exact, tmp_path, torch.float64).rank() == 8
    rounded = change(base, exact.to(stored), tmp_path)
    assert (rounded.rank(), rounded.rank_above_rounding) == (256, 8)
    assert rounded.dtypes == (stored, stored)
    in_float32 = change(base, exact.float(), tmp_path)
    assert (in_float32.rank(), in_float32.rank_above_rounding) == (8, 8)


def rounding_error(exact: Tensor, stored: torch.dtype) -> float:
    return float(torch.linalg.matrix_norm(exact.to(stored).double() - exact, 2))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(400, 400), (2000, 100), (50, 700)])
def test_the_estimate_of_the_noise_is_the_error_of_rounding_or_a_little_more(
    shape: tuple[int, int], stored: torch.dtype
) -> None:
    exact = randn(*shape, seed=5)
    noise = Noise(True, shape[1])
    for block in exact.to(stored).split(64):
        noise.add(block, block)
    assert 0.98 < noise.largest() / rounding_error(exact, stored) < 1.25


def test_the_noise_of_two_rounded_matrices_is_that_of_both() -> None:
    first, second = randn(300, 200, seed=6), randn(300, 200, seed=7)
    noise = Noise(False, 200)
    noise.add(first.bfloat16(), second.bfloat16())
    error = second.bfloat16().double() - second - first.bfloat16().double() + first
    assert 0.98 < noise.largest() / float(torch.linalg.matrix_norm(error, 2)) < 1.25


def test_a_square_change_is_deficient_by_its_noise_alone() -> None:
    """docs/ranks.md: (4 / π) n² eps r singular values of noise are below the tolerance of a largest
    one that is r times the noise's. In a matrix that is not square, none."""
    n, r, eps = 512, 1000, torch.finfo(torch.float32).eps
    square = torch.linalg.svdvals(randn(n, n))
    below = int((square < n * eps * r * square[0]).sum())
    assert below == pytest.approx(4 / torch.pi * n**2 * eps * r, rel=0.1)
    wide = torch.linalg.svdvals(randn(n // 8, n))
    assert int((wide < n * eps * r * wide[0]).sum()) == 0


def test_rows_and_columns_of_other_sizes_are_taken_at_their_largest() -> None:
    """Then the estimate may be above the error, and is not below it."""
    for exact in (
        randn(300, 200, seed=8) * torch.logspace(-3, 0, 300, dtype=torch.float64)[:, None],
        randn(300, 200, seed=8) * torch.logspace(-3, 0, 200, dtype=torch.float64),
    ):
        noise = Noise(True, 200)
        noise.add(exact.bfloat16(), exact.bfloat16())
        assert 0.98 < noise.largest() / rounding_error(exact, torch.bfloat16) < 1.6


def test_zeros_and_the_smallest_numbers_have_an_ulp() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        noise = Noise(True, 2)
        noise.add(torch.zeros(2, 2, dtype=dtype), torch.zeros(2, 2, dtype=dtype))
        assert 0 <= noise.largest() <= 2 * smallest


# ------------------------------------------------------------------------- faults of values
@pytest.mark.parametrize(("side", "value"), [(0, torch.nan), (1, torch.inf)])
def test_values_that_are_no_numbers_are_told_with_file_and_name(
    tmp_path: Path, side: int, value: float
) -> None:
    pair = [torch.zeros(50, 4), torch.ones(50, 4)]
    pair[side][37, 2] = value
    who = f"{tmp_path}/{'tuned' if side else 'base'}.safetensors"
    with pytest.raises(InputError) as caught:
        change(*pair, tmp_path)
    assert str(caught.value) == f"{who}: {KEY} has values that are not finite numbers"


# ---------------------------------------------------------------------------------- layout
@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([2, 9], "2,9"),
        ([7, 8], "7,8"),
        ([1, 3, 4, 5, 7, 8, 10, 11, 12, 13, 16, 17], "1,3-5,7,8,10-13,16,17"),
        (list(range(18)), "0-17"),
    ],
)
def test_ranges_are_written_as_in_table_7(layers: list[int], text: str) -> None:
    assert as_ranges(layers) == text


def test_matrices_are_called_as_in_the_paper_and_stand_in_its_order() -> None:
    names = {
        "embed_tokens.weight": Place("tokens embed", None),
        "layers.3.self_attn.q_proj.weight": Place("self attn q proj", 3),
        "layers.17.mlp.down_proj.weight": Place("mlp down proj", 17),
        "encoder.layer.2.attention.dense.weight": Place("encoder attention dense", 2),
        "h.11.attn.c_attn.weight": Place("attn c attn", 11),
        "layers.5.block_sparse_moe.experts.7.w1.weight": Place("block sparse moe experts 7 w1", 5),
        "encoder.block.4.layer.0.SelfAttention.q.weight": Place(
            "encoder layer 0 SelfAttention q", 4
        ),
        "pooler.dense.weight": Place("pooler dense", None),
        "lm_head.weight": Place("untied lm head", None),
    }
    assert {name: place_of(name) for name in names} == names
    kinds = [place.kind for place in names.values()]
    assert sorted(kinds, key=kind_order) == [
        "tokens embed", "self attn q proj", "mlp down proj", "attn c attn",
        "block sparse moe experts 7 w1", "encoder attention dense",
        "encoder layer 0 SelfAttention q", "pooler dense", "untied lm head",
    ]  # fmt: skip


def forged(key: str, values: Sequence[float], shape: tuple[int, int] = (4, 3)) -> MatrixChange:
    dtypes = (torch.float32, torch.float32)
    return MatrixChange(key, f"model.{key}", shape, dtypes, torch.tensor(values), 0.1, 6, 2)


def test_layers_of_equal_ranks_share_a_row_and_the_lowest_rank_comes_first() -> None:
    ranks = {0: [2.0, 1.0, 0.5], 1: [2.0, 2.0, 0.0], 2: [4.0, 0.2, 0.01], 3: [1.0, 0.0, 0.0]}
    first = [forged(f"layers.{layer}.mlp.up_proj.weight", s) for layer, s in ranks.items()]
    first.append(forged("lm_head.weight", [1.0, 1.0, 0.05]))
    table = rank_table([ModelChanges("one", None, first, {})], "title", ("note",))
    assert [heading.text for (row,) in [table.headings] for heading in row] == [
        "weight matrix", "dims", "layers", "rank", "rank deficiency", "above rounding",
        "stable rank", "changed, %", "tolerance / largest",
    ]  # fmt: skip
    full = "0 (full rank)"
    assert table.rows == (
        ("mlp up proj", "[4, 3]", "3", "1", "2", "1", "1.0", "50", "4.8e-07"),
        ("mlp up proj", "[4, 3]", "1", "2", "1", "2", "2.0", "50", "4.8e-07"),
        ("mlp up proj", "[4, 3]", "0,2", "3", full, "2 to 3", "1.0 to 1.3", "50", "4.8e-07"),
        ("untied lm head", "[4, 3]", "-", "3", full, "2", "2.0", "50", "4.8e-07"),
    )
    assert (table.title, table.notes) == ("title", ("note",))


def test_rows_of_one_kind_stand_together_and_the_papers_rank_beside_ours() -> None:
    up, more, q_proj = (f"layers.{n}.weight" for n in ("0.mlp.up_proj", "1.mlp.up_proj", "0.q"))
    one = ModelChanges(
        "one", None, [forged(up, [1.0, 1.0, 0.0]), forged(q_proj, [1.0, 0.0, 0.0])], {}
    )
    two = ModelChanges(
        "two", None, [forged(up, [0.0] * 3), forged(more, [1.0] * 3)], {more: 3, up: 2}
    )
    table = rank_table([one, two], "title")
    assert [heading.text for heading in table.headings[0]][2:8] == [
        "tuned", "layers", "rank", "rank deficiency", "rank in the paper",
        "deficiency in the paper",
    ]  # fmt: skip
    assert [(row[0], *row[2:10]) for row in table.rows] == [
        ("mlp up proj", "one", "0", "2", "1", "–", "–", "2", "2.0"),
        ("mlp up proj", "two", "0", "0", "3", "2", "1", "0", "–"),
        ("mlp up proj", "two", "1", "3", "0 (full rank)", "3", "0 (full rank)", "3", "3.0"),
        ("q", "one", "0", "1", "2", "–", "–", "1", "1.0"),
    ]


# ----------------------------------------------------------------------------- the paper's
def test_the_papers_ranks_are_found_by_names_and_shapes() -> None:
    shapes = {
        "embed_tokens.weight": (256000, 2048),
        "layers.0.self_attn.q_proj.weight": (2048, 2048),
        "layers.9.self_attn.q_proj.weight": (2048, 2048),
        "layers.17.self_attn.k_proj.weight": (256, 2048),
        "layers.18.self_attn.k_proj.weight": (256, 2048),  # the paper has 0 to 17
        "layers.1.mlp.up_proj.weight": (512, 192),
    }
    expected = dict(zip(list(shapes)[:4], (97, 2039, 2046, 256), strict=True))
    assert printed_ranks("gemma-2b", "gemma-2b-it", shapes) == expected
    assert printed_ranks("gemma-2b-it", "gemma-2b", shapes) == {}
    assert printed_ranks("gemma-2b", "sparta 0.05", shapes) == {}
    shapes = {"lm_head.weight": (32768, 4096), "layers.1.self_attn.q_proj.weight": (4096, 4096)}
    for base in ("mistral-7b", "Mistral-7B-v0.3"):
        for tuned in ("mistral-7b-it", "Mistral-7B-Instruct-v0.3"):
            assert list(printed_ranks(base, tuned, shapes).values()) == [4095, 3103]
    assert printed_ranks("mistral-7b", "gemma-2b-it", shapes) == {}


def test_names_on_the_hub_are_those_of_the_configuration() -> None:
    from sparta_bench.config.compose import compose

    for name in (name for pair in TABLES for name in pair):
        hub_id = compose([f"model={name}"]).model.hub_id
        assert hub_id is not None
        on_the_hub = hub_id.rpartition("/")[2]
        assert ON_THE_HUB.get(on_the_hub, on_the_hub) == name


@pytest.mark.parametrize(("pair", "table"), list(TABLES.items()))
def test_every_row_of_the_papers_tables_is_found(pair: tuple[str, str], table: str) -> None:
    from sparta_bench.paper import rows_of

    printed = rows_of(table)
    layers = {"table7": 18, "table8": 32}[table]
    shapes: dict[str, tuple[int, int]] = {}
    names = {"tokens embed": "embed_tokens", "untied lm head": "lm_head"}
    for row in printed:
        shape = int(row["rows"]), int(row["columns"])
        if row["layers"] == "-":
            shapes[f"{names[row['matrix']]}.weight"] = shape
            continue
        group, _, rest = row["matrix"].replace("self attn", "self_attn").partition(" ")
        for layer in range(layers):
            shapes[f"layers.{layer}.{group}.{rest.replace(' ', '_')}.weight"] = shape
    found = printed_ranks(*pair, shapes)
    assert found.keys() == shapes.keys()
    assert sorted(set(found.values())) == sorted({int(row["rank"]) for row in printed})
