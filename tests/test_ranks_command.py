"""`sparta-bench ranks` on files: what is compared, what is left out, and what is refused."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import call
from test_ranks import low_rank, randn
from torch import Tensor

from sparta_bench.analysis.ranks import compare

UP, Q, NORM = "layers.0.mlp.up_proj.weight", "layers.0.self_attn.q_proj.weight", "norm.weight"
EMBED, HEAD = "embed_tokens.weight", "lm_head.weight"


def a_base() -> dict[str, Tensor]:
    """A checkpoint by names in the backbone, with an untied head (float32)."""
    shapes = {EMBED: (50, 8), Q: (8, 8), UP: (12, 8), "layers.1.mlp.up_proj.weight": (12, 8)}
    tensors = {
        name: randn(*shape, seed=i).float() for i, (name, shape) in enumerate(shapes.items())
    }
    return tensors | {NORM: torch.ones(8), HEAD: randn(50, 8, seed=9).float()}


def write(folder: Path, tensors: dict[str, Tensor], prefix: str = "model.") -> str:
    """A causal language model's folder; with another prefix a backbone's."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {name if name == HEAD else prefix + name: t for name, t in tensors.items()}
    save_file(named, folder / "model.safetensors")
    return str(folder)


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> str:
    """The same in two files, with their index."""
    single = load_file(Path(write(folder, tensors)) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(single)}
    for file in set(files.values()):
        part = {name: single[name].clone() for name, there in files.items() if there == file}
        save_file(part, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def ranks(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, list[str]]:
    """The rows of `--json`, and the lines of standard error without progress and definitions."""
    code, out, err = call(capsys, "ranks", *arguments, "--json", "--device", "cpu")
    assert code == 0, err
    starts = ("ranks: ", "sparta-bench: rank: ", "sparta-bench: above ", "sparta-bench: stable ")
    notes = [line.removeprefix("sparta-bench: ") for line in err if not line.startswith(starts)]
    return json.loads(out), notes


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines of standard error, of a call that must end with code 2 and print nothing else."""
    code, out, err = call(capsys, "ranks", *arguments)
    assert (code, out) == (2, "")
    assert not any("Traceback" in line for line in err)
    return [line.removeprefix("sparta-bench: ") for line in err]


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write(tmp_path / "base", a_base())


def tuned(tmp_path: Path, name: str = "tuned", **changes: Tensor | None) -> str:
    """The base with some tensors replaced, added, or (null) left out."""
    tensors: dict[str, Any] = a_base() | changes
    return write(tmp_path / name, {k: t for k, t in tensors.items() if t is not None})


# ----------------------------------------------------------------------------- what is found
def test_ranks_of_known_changes_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    start = a_base()
    changes = {
        EMBED: start[EMBED] + low_rank(50, 8, 3).float(),
        Q: start[Q] + low_rank(8, 8, 1).float(),
        UP: start[UP] + randn(12, 8, seed=30).float(),
        HEAD: start[HEAD] + low_rank(50, 8, 7).float(),
    }
    rows, notes = ranks(capsys, base, tuned(tmp_path, **changes))
    assert [(row["name"], row["shape"], row["rank"], row["deficiency"]) for row in rows] == [
        ("lm_head.weight", [50, 8], 7, 1),
        ("model.embed_tokens.weight", [50, 8], 3, 5),
        ("model.layers.0.mlp.up_proj.weight", [12, 8], 8, 0),
        ("model.layers.0.self_attn.q_proj.weight", [8, 8], 1, 7),
        ("model.layers.1.mlp.up_proj.weight", [12, 8], 0, 8),
    ]
    assert {row["tuned"] for row in rows} == {"tuned"}
    assert notes == ["tuned: 1 vector left out"]
    expected = {
        "name", "tuned", "shape", "rank", "deficiency", "tolerance", "relative_tolerance",
        "largest_singular_value", "stable_rank", "rounding_noise", "rank_above_rounding",
        "changed_scalars", "changed_rows", "dtypes", "computed_in",
    }  # fmt: skip
    assert all(row.keys() == expected for row in rows)
    assert rows[1]["tolerance"] == rows[1]["relative_tolerance"] * rows[1]["largest_singular_value"]
    assert rows[-1]["stable_rank"] is None and rows[-1]["changed_scalars"] == 0


def test_equal_tensors_have_rank_0(capsys: pytest.CaptureFixture[str], base: str) -> None:
    rows, _ = ranks(capsys, base, base)
    assert len(rows) == 5 and all(row["rank"] == row["rank_above_rounding"] == 0 for row in rows)
    assert [row["deficiency"] for row in rows] == [8] * 5


def test_missing_extra_and_changed_tensors_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    changes: dict[str, Tensor | None] = {
        UP: None,
        "layers.2.mlp.up_proj.weight": torch.ones(12, 8),
        EMBED: torch.ones(51, 8),
        Q: torch.ones(64),
    }
    rows, notes = ranks(capsys, base, tuned(tmp_path, **changes))
    assert [row["name"] for row in rows] == ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"]
    assert notes == [
        "tuned: left out, of another shape: embed_tokens.weight (50×8, now 51×8), "
        "layers.0.self_attn.q_proj.weight (8×8, now 64)",
        "tuned: left out, only in the base: layers.0.mlp.up_proj.weight",
        "tuned: left out, only here: layers.2.mlp.up_proj.weight",
        "tuned: 1 vector left out",
    ]


def test_a_long_list_of_names_is_cut(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    more = {f"layers.{n}.x.weight": torch.ones(2, 2) for n in range(25)}
    _, (line, _) = ranks(capsys, base, tuned(tmp_path, **more))
    assert line.startswith("tuned: left out, only here: layers.0.x.weight, ")
    assert line.count("layers.") == 20 and line.endswith(" and 5 more")


def test_what_is_no_matrix_of_plain_numbers_is_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    odd = {
        "experts.weight": torch.ones(2, 3, 4),
        "empty.weight": torch.ones(0, 4),
        "scale": torch.tensor(1.0),
        "whole.weight": torch.ones(3, 4, dtype=torch.int8),
        "small.weight": torch.ones(3, 4).to(torch.float8_e4m3fn),
    }
    start = write(tmp_path / "base", a_base() | odd)
    rows, notes = ranks(capsys, start, tuned(tmp_path, **odd))
    assert len(rows) == 5
    assert notes == [
        "tuned: left out, no matrix: empty.weight (0×4), experts.weight (2×3×4)",
        "tuned: left out, no plain floating-point numbers: small.weight, whole.weight",
        "tuned: 2 vectors left out",
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read_and_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str, dtype: torch.dtype
) -> None:
    name = str(dtype).removeprefix("torch.")
    start = {key: tensor.bfloat16() for key, tensor in a_base().items()}
    first = write(tmp_path / "first", start)
    other = {key: (tensor.float() + 1).to(dtype) for key, tensor in start.items()}
    rows, notes = ranks(capsys, first, write(tmp_path / "other", other))
    assert all(row["dtypes"] == ["bfloat16", name] for row in rows)
    if dtype == torch.float64:
        assert all(row["rank"] == 1 for row in rows)
    else:
        assert all(row["rank"] > 1 and row["rank_above_rounding"] == 1 for row in rows)
    mixed = [f"other: 5 matrices are bfloat16 in the base and {name} here"]
    assert notes == (mixed if name != "bfloat16" else []) + ["other: 1 vector left out"]


def test_a_backbone_a_causal_model_shards_and_a_file_are_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    changed = {EMBED: a_base()[EMBED] + low_rank(50, 8, 2).float()}
    one = tuned(tmp_path, **changed)
    bare = write(tmp_path / "bare" / "tuned", a_base() | changed, prefix="")
    shards = write_shards(tmp_path / "shards" / "tuned", a_base() | changed)
    whole = ranks(capsys, base, one)
    assert [row["rank"] for row in whole[0]] == [0, 2, 0, 0, 0]
    assert ranks(capsys, base, bare) == whole
    assert ranks(capsys, base, shards) == whole
    assert ranks(capsys, base, f"{one}/model.safetensors") == whole
    backwards, _ = ranks(capsys, shards, base)
    by_name = {row["name"]: row["rank"] for row in whole[0]}
    assert {row["name"]: row["rank"] for row in backwards} == by_name


def test_a_tied_head_has_no_row_and_an_untied_one_has(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before, after = randn(50, 8).float(), randn(50, 8, seed=1).float()
    tied = {EMBED: before, HEAD: before.clone()}
    start = write(tmp_path / "base", tied)
    rows, notes = ranks(capsys, start, write(tmp_path / "a", {EMBED: after, HEAD: after.clone()}))
    assert [row["name"] for row in rows] == ["model.embed_tokens.weight"]
    assert notes == ["a: the vocabulary head is the embedding, in both, and has no row of its own"]
    untied = {EMBED: after, HEAD: before + low_rank(50, 8, 2).float()}
    rows, notes = ranks(capsys, start, write(tmp_path / "b", untied))
    assert [(row["name"], row["rank"]) for row in rows] == [
        ("lm_head.weight", 2), ("model.embed_tokens.weight", 8),
    ]  # fmt: skip
    # the head alone is stored a second time, or in one of the two only
    rows, notes = ranks(capsys, start, write(tmp_path / "c", {EMBED: after}))
    assert [row["name"] for row in rows] == ["model.embed_tokens.weight"]
    assert notes == ["c: left out, only in the base: lm_head.weight"]
    rows, _ = ranks(capsys, start, write(tmp_path / "d", {HEAD: after}))
    assert [row["name"] for row in rows] == ["lm_head.weight"]


def test_how_many_tokens_rows_changed_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    embedding = a_base()[EMBED]
    embedding[[3, 7, 20]] += 1 + randn(3, 8, seed=40).float()
    rows, notes = ranks(capsys, base, tuned(tmp_path, **{EMBED: embedding}))
    assert (rows[1]["rank"], rows[1]["changed_rows"], rows[1]["changed_scalars"]) == (3, 3, 24)
    assert notes[-1] == "tuned: model.embed_tokens.weight changed in 3 of its 50 rows"


def test_several_models_stand_side_by_side(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    one = tuned(tmp_path / "x", "same", **{Q: a_base()[Q] + low_rank(8, 8, 2).float()})
    two = tuned(tmp_path / "y", "same", **{Q: a_base()[Q] + low_rank(8, 8, 5).float()})
    rows, _ = ranks(capsys, base, one, two)
    assert [row["tuned"] for row in rows] == ["same"] * 5 + ["same (2)"] * 5
    code, out, _ = call(capsys, "ranks", base, one, two)
    table = [line for line in out.splitlines() if line.startswith("|")]
    headings, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    assert code == 0 and headings[2:6] == ["tuned", "layers", "rank", "rank deficiency"]
    assert [row[2:6] for row in body if row[0] == "self attn q proj"] == [
        ["same", "0", "2", "6"], ["same (2)", "0", "5", "3"],
    ]  # fmt: skip
    assert [row[2:6] for row in body if row[0] == "mlp up proj"] == [
        ["same", "0,1", "0", "8"], ["same (2)", "0,1", "0", "8"],
    ]  # fmt: skip
    assert len(body) == 8 and "\n- same, same (2): 1 vector left out\n" in out


def test_float64_by_choice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    start, step = torch.zeros(40, 4, dtype=torch.float64), torch.eye(40, 4, dtype=torch.float64)
    first = write(tmp_path / "first", {UP: start})
    second = write(tmp_path / "second", {UP: step * torch.tensor([1.0, 0.1, 1e-8, 1e-20])})
    (row,), _ = ranks(capsys, first, second)
    assert (row["rank"], row["computed_in"]) == (2, "float32")
    (row,), _ = ranks(capsys, first, second, "--dtype", "float64")
    assert (row["rank"], row["computed_in"]) == (3, "float64")
    assert row["rank_at_float32_tolerance"] == 2


@pytest.mark.parametrize(
    ("names", "rows", "there"),
    [
        (("gemma-2b", "gemma-2b-it"), 256, True),
        (("gemma-2b", "gemma-2b-it"), 128, False),
        (("gemma-2b", "other"), 256, False),
    ],
)
def test_the_papers_values_stand_beside_its_own_models(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    names: tuple[str, str],
    rows: int,
    there: bool,
) -> None:
    key = "layers.0.self_attn.k_proj.weight"
    first = write(tmp_path / names[0], {key: torch.zeros(rows, 2048)})
    second = write(tmp_path / names[1], {key: torch.ones(rows, 2048)})
    (found,), _ = ranks(capsys, first, second)
    assert found["rank"] == 1
    assert found.get("rank_in_paper") == (256 if there else None)
    _, out, _ = call(capsys, "ranks", first, second)
    assert ("rank in the paper" in out) is there
    assert ("| 1    | 255             | 256               | 0 (full rank)" in out) is there


# ------------------------------------------------------------------------------------ files
def test_json_is_all_of_standard_output_and_holds_no_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    code, out, err = call(capsys, "ranks", base, tuned(tmp_path), "--json")
    assert code == 0 and out.endswith("]\n") and len(out.splitlines()) == 1
    assert str(tmp_path) not in out
    assert [line.split(":")[0] for line in err] == ["ranks", *["sparta-bench"] * 4]


def test_out_holds_four_forms_of_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    out = tmp_path / "deep" / "out"
    other = tuned(tmp_path, **{Q: a_base()[Q] + low_rank(8, 8, 2).float()})
    code, printed, _ = call(capsys, "ranks", base, other, "--out", str(out))
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "ranks.csv", "ranks.json", "ranks.md", "ranks.tex",
    ]  # fmt: skip
    assert (out / "ranks.md").read_text() == printed
    assert json.loads((out / "ranks.json").read_text()) == ranks(capsys, base, other)[0]
    assert (
        (out / "ranks.csv").read_text().splitlines()[2].startswith('self attn q proj,"[8, 8]",0,')
    )
    assert "self attn q proj & [8, 8] & 0 & " in (out / "ranks.tex").read_text()
    for path in out.iterdir():
        assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("given", "made"),
    [("plots", "plots/spectrum"), ("plots/mine.png", "plots/mine"), ("mine.svg", "mine")],
)
def test_figures_are_two_files_with_a_curve_for_each_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str, given: str, made: str
) -> None:
    one = tuned(tmp_path, "one", **{Q: a_base()[Q] + low_rank(8, 8, 2).float()})
    two = tuned(tmp_path, "two", **{UP: a_base()[UP] + 1})
    code, _, _ = call(capsys, "ranks", base, one, two, "--figure", str(tmp_path / given))
    assert code == 0
    assert (tmp_path / f"{made}.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / f"{made}.svg").read_text()
    for text in ("self attn q proj", "mlp up proj", "one", "two", "tolerance"):
        assert f">{text}</text>" in svg
    assert ">tokens embed</text>" not in svg, "neither changed it"


def test_where_nothing_changed_there_is_nothing_to_draw(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    code, out, err = call(capsys, "ranks", base, base, "--figure", str(tmp_path / "x.png"))
    assert code == 0 and "self attn q proj" in out
    assert err[-1] == "sparta-bench: nothing changed, so there is no spectrum to draw"
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_what_was_computed_is_printed_where_it_cannot_be_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    (tmp_path / "out" / "ranks.json").mkdir(parents=True)
    (tmp_path / "out" / "ranks.json" / "x").touch()
    code, out, err = call(capsys, "ranks", base, base, "--json", "--out", str(tmp_path / "out"))
    assert code == 2 and len(json.loads(out)) == 5
    assert "cannot be written: Is a directory" in err[-1]


def test_progress_is_told_with_the_time_left(
    capsys: pytest.CaptureFixture[str], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "EVERY_SECONDS", 0)
    _, _, err = call(capsys, "ranks", base, base)
    told = [line for line in err if line.startswith("ranks: ")]
    assert [line.partition(" matrices, ")[0] for line in told] == [
        f"ranks: {done}/5" for done in range(1, 6)
    ]
    assert all(line.endswith(" s left") for line in told)


def test_an_interrupt_ends_with_130(
    capsys: pytest.CaptureFixture[str], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sparta_bench.analysis.ranks.compare.change_of", interrupted)
    assert call(capsys, "ranks", base, base) == (130, "", ["sparta-bench: interrupted"])


# ------------------------------------------------------------------------------ wrong input
def test_help_names_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "ranks", "--help")
    assert (code, err) == (0, [])
    for text in ("BASE TUNED [TUNED ...]", "--json", "--out DIR", "--figure PATH", "float64"):
        assert text in out


NO_INDEX = ".index.json: no index of shards (weight_map), or cut short"


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ("{", NO_INDEX),
        ("[]", NO_INDEX),
        ('{"weight_map": {"a": 5}}', NO_INDEX),
        ('{"weight_map": {"a": ["x"]}}', NO_INDEX),
        ('{"weight_map": {"a": "../base/model.safetensors"}}',
         ".index.json: names '../base/model.safetensors', and shards are .safetensors beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}',
         ".index.json: names '/etc/passwd', and shards are .safetensors beside it"),
        ('{"weight_map": {"a": "b.safetensors"}}',
         ": model.safetensors.index.json names b.safetensors, which is not there"),
    ],
)  # fmt: skip
def test_broken_indices_of_shards(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str, index: str, line: str
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(index)
    (told,) = refused(capsys, base, str(folder))
    assert told.startswith(str(folder)) and told.endswith(line)


@pytest.mark.parametrize("shards", [False, True])
def test_a_model_of_the_hub_is_read_from_the_cache(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str, shards: bool
) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    name = "shards" if shards else "whole"
    repository = Path(HF_HUB_CACHE, f"models--some--{name}")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    there = repository / "snapshots" / ("0" * 40)
    changed = a_base() | {Q: a_base()[Q] + low_rank(8, 8, 2).float()}
    (write_shards if shards else write)(there, changed)
    (there / "config.json").write_text("{}")  # what every model's repository has
    rows, _ = ranks(capsys, base, f"some/{name}")
    assert [(row["tuned"], row["rank"]) for row in rows] == [(name, n) for n in (0, 0, 0, 2, 0)]


def test_models_with_nothing_in_common(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    other = write(tmp_path / "other", {Q: torch.ones(9, 9), NORM: torch.ones(8)})
    told = refused(capsys, base, other)
    assert told[:2] == [
        f"{other}: has no matrix of {base} in the same shape",
        "left out, only in the base: lm_head.weight, embed_tokens.weight, "
        "layers.0.mlp.up_proj.weight, layers.1.mlp.up_proj.weight",
    ]
    assert "left out, of another shape: layers.0.self_attn.q_proj.weight (8×8, now 9×9)" in told


def test_values_that_are_not_finite(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str
) -> None:
    broken = a_base()[Q]
    broken[2, 3] = torch.nan
    other = tuned(tmp_path, **{Q: broken})
    for arguments in ([base, other], [other, base], [base, base, other]):
        told = refused(capsys, *arguments)
        assert told[-1] == f"{other}: model.{Q} has values that are not finite numbers"


def test_what_is_asked_for_must_be_there(
    capsys: pytest.CaptureFixture[str], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (told,) = refused(capsys, base, base, "--device", "cuda")
    assert told == "ranks: --device cuda: torch sees no CUDA device here; use cpu or auto"
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (told,) = refused(capsys, base, base, "--figure", "x")
    assert told == "ranks --figure: the figures need matplotlib: pip install 'sparta-bench[plots]'"
    assert not Path("x").exists()


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    (told,) = refused(capsys, base, base, "--out", str(tmp_path / "out"))
    assert told == f"ranks: --out {tmp_path}/out: {tmp_path} cannot be written to"
