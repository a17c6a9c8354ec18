"""What a run finds of earlier runs: whatever is wrong in it, the run ends with the same numbers.

Tokens, features and checkpoints are kept to save time, so nothing in them is believed that is not
as it was written. The record of a run that was made before stands, or the run is made again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from fuzzing import Told, assert_told_well, command, examples
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed_file

import sparta_bench.runs.experiment as experiment
from sparta_bench.files import read_kept, write_kept

ROWS = "".join(f"a film, number {number}\t{number % 2}\n" for number in range(24))
SETTINGS = (
    "model=tiny-gemma", "task=sst2", "task.dev.examples=8", "task.dev.split=train",
    "task.test_splits=[validation]", "train.batch_size=4", "train.max_steps=4",
    "train.eval_every=2", "train.checkpoint_every=3", "save=none",
)  # fmt: skip


def words(folder: Path, method: str) -> list[str]:
    """A run on a few rows, with all that it keeps below the folder."""
    places = {"task.data_dir": "data", "results_dir": "results", "cache_dir": "cache"}
    return [*SETTINGS, f"method={method}", *(f"{k}={folder / v}" for k, v in places.items())]


def outcome(folder: Path) -> dict[str, Any]:
    """The numbers of the only record."""
    (path,) = folder.rglob("result.json")
    record = json.loads(path.read_text())
    return {key: record[key] for key in ("status", "data", "dev", "test", "history")}


def prepared(folder: Path, method: str) -> dict[str, Any]:
    """Data, and a run that was cut off when its training had ended: with all that is kept."""
    (folder / "data").mkdir(parents=True)
    for split in ("train", "dev"):
        (folder / "data" / f"{split}.tsv").write_text("sentence\tlabel\n" + ROWS)
    whole = folder / "whole"
    shutil.copytree(folder / "data", whole / "data")
    assert command(words(whole, method)).code == 0
    expected = outcome(whole)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "save", interrupted)
        assert command(words(folder, method)).code == 130
    shutil.rmtree(whole)
    return expected


@examples(30)
@given(st.data())
def test_what_is_kept_is_read_as_it_was_written_or_not_at_all(data: st.DataObject) -> None:
    """This is what tokens, features and checkpoints are written and read with."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        tensors = {
            "one": torch.arange(12, dtype=torch.int32),
            "two": torch.ones(2, 3, dtype=torch.bfloat16),
            "three": torch.tensor(4.0),
        }
        write_kept(path, tensors, '{"step": 3}')
        path.write_bytes(data.draw(changed_file(path), "content"))
        found = read_kept(path)
    if found is not None:
        assert found[1] == '{"step": 3}' and found[0].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[0][name].dtype == tensor.dtype and torch.equal(found[0][name], tensor)


def is_left_alone(told: Told) -> bool:
    """Whether the record that was changed says that it is of another schema."""
    return told.code == 2 and "; this version reads schema 1; move it away, " in told.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "method", "few"),
    [
        ("cache/[!f]*.safetensors", "sparta", 6),
        ("cache/features-*.safetensors", "head", 6),
        ("results/**/checkpoint.safetensors", "sparta", 10),
        ("results/**/checkpoint.safetensors", "lora", 6),
        ("results/**/result.json", "sparta", 6),
    ],
)
def test_nothing_that_was_kept_changes_a_number(
    tmp_path_factory: pytest.TempPathFactory, pattern: str, method: str, few: int
) -> None:
    root = tmp_path_factory.mktemp("kept")
    expected = prepared(root / "cut", method)
    paths = sorted(path.relative_to(root / "cut") for path in (root / "cut").glob(pattern))
    assert paths

    @examples(few)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(paths), "file")
        content = data.draw(changed_file(root / "cut" / path), "content")
        shutil.rmtree(root / "now", ignore_errors=True)
        shutil.copytree(root / "cut", root / "now")
        (root / "now" / path).write_bytes(content)
        told = command(words(root / "now", method))
        if not is_left_alone(told):
            assert_told_well(told, 0)
            assert outcome(root / "now") == expected

    fuzz()


def test_a_completed_record_stands_or_is_made_again(tmp_path: Path) -> None:
    expected = prepared(tmp_path / "cut", "head")
    assert command(words(tmp_path / "cut", "head")).code == 0
    (record,) = (tmp_path / "cut").rglob("result.json")
    valid = record.read_bytes()

    @examples(2)
    @given(changed_file(record), st.sampled_from([[], ["-m"]]))
    def fuzz(content: bytes, before: list[str]) -> None:
        record.write_bytes(content)
        told = command([*before, *words(tmp_path / "cut", "head")])
        record.write_bytes(valid)
        if not is_left_alone(told):
            assert_told_well(told, 0)

    fuzz()
    assert outcome(tmp_path / "cut") == expected
