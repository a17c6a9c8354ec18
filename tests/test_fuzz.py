"""Every reader of outside files, given files with something wrong in them.

No traceback, an exit code of the four, and of wrong input a line that says what is wrong. A reader
is a line in `READERS`; what the fuzz has found stands in test_fuzz_found.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from forged_records import forge, write
from fuzzing import TINY, assert_told_well, command, examples
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed_file
from pyarrow import csv, parquet
from safetensors.torch import load_file
from test_merge_pairs import pair_of

from sparta_bench.config.conf_folder import config_dir
from sparta_bench.config.sweeps import sweeps_of
from sparta_bench.files import sha256_of
from sparta_bench.records.read import record_of
from sparta_bench.records.record import LOCK, MERGE, RUNNING, Record
from sparta_bench.sparta import store
from sparta_bench.tables.paper_tables import LAYOUTS

Make = Callable[[Path, Any], None]  # fills a folder; gets conftest's `trained`
F, OUT = "{folder}", "{out}"  # in a command: the folder, and one to write to


@dataclass(frozen=True)
class Reader:
    """Files, in the folder that `make` fills, and the commands that read them."""

    name: str
    make: Make
    files: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    after: Callable[[Path], None] | None = None  # what a forger would do as well
    codes: tuple[int, ...] = (0, 2)

    def __str__(self) -> str:
        return self.name


# ------------------------------------------------------------------------------ valid folders
def records(folder: Path, trained: Any) -> None:
    """A completed one of a real run, forged ones of the paper's tables, and one that failed."""
    real = trained("sparta")[1]
    lora = forge("gemma-2b", "rte", "lora", training=real["training"], history=real["history"])
    failed = forge("gemma-2b", "rte", "sparta", status="failed", history=real["history"])
    write(folder, real, lora, failed)


def merges(folder: Path, trained: Any) -> None:
    """A pair of merged runs, and the two."""
    sst2, cola = (forge("gemma-2b", task, density=0.01) for task in ("sst2", "cola"))
    write(folder, sst2, cola)
    one, other = (record_of(Path("x"), raw) for raw in (sst2, cola))
    assert isinstance(one, Record) and isinstance(other, Record)
    (folder / "merges").mkdir()
    (folder / "merges" / MERGE).write_text(json.dumps(pair_of(one, other)))


def plans(folder: Path, trained: Any) -> None:
    for model, task in (("gemma-2b-it", "imdb"), ("mistral-7b-it", "rte")):
        data = {"train": 2165, "train_dropped": 25, "dev": 300, "test": 277}
        (folder / "plans").mkdir(exist_ok=True)
        text = json.dumps({"model": model, "task": task, "data": data})
        (folder / "plans" / f"{task}.json").write_text(text)


def running(folder: Path, trained: Any) -> None:
    """A run that a process is at: the lock is held as long as the tests run."""
    record = forge("tiny-gemma", "tiny-sst2", "head", status="interrupted")
    place = write(folder, record) / f"runs/tiny-sst2/tiny-gemma/head/{record['run_id']}"
    (place / "result.json").rename(place / RUNNING)
    FileLock(place / LOCK).acquire()
    HELD.append(place)


HELD: list[Path] = []
cached_sweeps = cache(sweeps_of)  # not what is tested, and slow to read


def list_of_tables(folder: Path, trained: Any) -> None:
    write(folder, forge())
    assert command(["tables", str(folder)]).code == 0


def adapter(method: str) -> Make:
    def make(folder: Path, trained: Any) -> None:
        shutil.copytree(trained(method)[2], folder, dirs_exist_ok=True)

    return make


def pair_adapter(folder: Path, trained: Any) -> None:
    made = trained("sparta", "model=tiny-mistral-it", "task=tiny-rte")
    shutil.copytree(made[2], folder, dirs_exist_ok=True)


def multi_head(folder: Path, trained: Any) -> None:
    folders = [str(trained(method)[2]) for method in ("sparta", "head")]
    arguments = ["multi-head", *folders, "--force", "--out", str(folder)]
    assert command(["merge", *arguments]).code == 0


def resealed(folder: Path) -> None:
    """Give the configuration the changed tensors' hash."""
    for name, tensors, key in (
        (store.CONFIG, store.TENSORS, "tensors_sha256"),
        ("multi_head_config.json", "heads.safetensors", "heads_sha256"),
    ):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            config[key] = sha256_of(folder / tensors)
            (folder / name).write_text(json.dumps(config))


def peft_sparta(folder: Path, trained: Any) -> None:
    arguments = ["--layout", "peft-sparta", "--base-name", "x/y", "--force", "--out", str(folder)]
    assert command(["merge", "export", str(trained("sparta")[2]), *arguments]).code == 0


def pickles(folder: Path, trained: Any) -> None:
    peft_sparta(folder, trained)
    spelt = load_file(folder / "sparse_deltas.safetensors")
    nested = {
        kind: {name.partition(".")[2]: t for name, t in spelt.items() if name.startswith(kind)}
        for kind in ("indices", "deltas")
    }
    torch.save(nested, folder / "sparse_deltas.pt")
    torch.save(load_file(folder / "head_init.safetensors")["head"], folder / "head_init.pt")
    for name in ("sparse_deltas", "head_init"):
        (folder / f"{name}.safetensors").unlink()


def base_model(folder: Path, trained: Any) -> None:
    shutil.copytree(TINY, folder, dirs_exist_ok=True)


def sharded(folder: Path, trained: Any) -> None:
    base_model(folder, trained)
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    names = load_file(folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def glue(folder: Path, trained: Any) -> None:
    lines = [f"a film, number {number}\t{number % 2}" for number in range(9)]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")


def table_files(end: str) -> Make:
    def make(folder: Path, trained: Any) -> None:
        glue(folder, trained)
        for split, name in (("train", "train"), ("dev", "validation")):
            table = csv.read_csv(
                folder / f"{split}.tsv", parse_options=csv.ParseOptions(delimiter="\t")
            )
            path = folder / f"{name}.{end}"
            if end == "parquet":
                parquet.write_table(table, path)
            elif end == "csv":
                csv.write_csv(table, path)
            else:
                path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
            (folder / f"{split}.tsv").unlink()

    return make


def lines(folder: Path, trained: Any) -> None:
    adapter("sparta")(folder, trained)
    (folder / "one.txt").write_text("good film\nbad film\n\nthe film\n")
    (folder / "one.jsonl").write_text('{"sentence": "good film"}\n{"text": "bad film"}\n')


def pairs(folder: Path, trained: Any) -> None:
    pair_adapter(folder, trained)
    (folder / "two.txt").write_text("a film\tthe film\nb\ta\n")
    (folder / "two.jsonl").write_text('{"sentence1": "a film", "sentence2": "the film"}\n')


def settings(folder: Path, trained: Any) -> None:
    shutil.copytree(config_dir(), folder, dirs_exist_ok=True)


PLAN = ("plan", "model=tiny-gemma", "task=sst2", f"task.data_dir='{F}'", "task.dev.examples=2")
PLAN += (f"cache_dir='{OUT}'", "task.dev.split=train", "task.test_splits=[validation]")
LOCAL = ("plan", "model=local", f"model.path='{F}'", f"cache_dir='{OUT}'")
WHOLE = ("classifier_config.json", "config.json", "tokenizer.json", "tokenizer_config.json")
PREDICT, RANKS = ("predict", F, "a good film", "bad"), ("ranks", TINY, F)
BAKE = ("merge", "bake", F, "--out", OUT, "--force")
MERGE_IT = ("merge", "multi-head", F, F, "--out", OUT, "--force")
OF_TENSORS = (PREDICT, RANKS, ("merge", "overlap", F, F))
EVALUATE = ("evaluate", F, "task.max_train_examples=50")
BASE = ("--base", TINY)
MULTI = ("-m", "+sweep=tiny_table3_head,table4_sparta")

READERS = [
    Reader("tables", records, ("runs/**/result.json",), (("tables", F, "--out", OUT),)),
    Reader("report", records, ("runs/**/result.json",), (("report", F, "--page-only"),)),
    Reader("figures", records, ("runs/**/result.json",), (("report", F, "--out", OUT),)),
    Reader("status", records, ("runs/**/result.json",), (("status", F),)),
    Reader("running", running, (f"**/{RUNNING}",), (("status", F),)),
    Reader("merges", merges, ("merges/*.json",), (("tables", F, "--out", OUT),)),
    Reader("plans", plans, ("plans/*.json",), (("tables", F),)),
    Reader("list of tables", list_of_tables, ("tables/.s*",), (("tables", F),)),
    Reader("adapter", adapter("sparta"), (store.CONFIG,), (PREDICT, RANKS, BAKE, MERGE_IT)),
    Reader("of pairs", pair_adapter, (store.CONFIG,), (("predict", F, "a\tb"),)),
    Reader("of LoRA", adapter("lora"), (store.CONFIG,), (PREDICT, RANKS)),
    Reader("of Head", adapter("head"), (store.CONFIG,), (PREDICT, RANKS)),
    Reader("changed tensors", adapter("sparta"), (store.TENSORS,), (PREDICT, RANKS)),
    Reader("deltas", adapter("sparta"), (store.TENSORS,), OF_TENSORS, after=resealed),
    Reader("matrices", adapter("lora"), (store.TENSORS,), OF_TENSORS, after=resealed),
    Reader("head", adapter("head"), (store.TENSORS,), OF_TENSORS, after=resealed),
    Reader("whole", adapter("full_ft"), WHOLE, (PREDICT, RANKS, BAKE)),
    Reader("whole's tensors", adapter("full_ft"), ("*.safetensors",), (PREDICT, RANKS)),
    Reader("heads", multi_head, ("multi_head_config.json",), (PREDICT, EVALUATE)),
    Reader("heads' tensors", multi_head, ("heads.safetensors",), (PREDICT,), after=resealed),
    Reader("peft-sparta", peft_sparta, ("config.json", "*.safetensors"), ((*PREDICT, *BASE),)),
    Reader("pickles", pickles, ("*.pt",), ((*PREDICT, *BASE, "--allow-pickle"),)),
    Reader("base", base_model, ("*.json",), (LOCAL,)),
    Reader("base's tensors", base_model, ("*.safetensors",), (("ranks", F, TINY),)),
    Reader("shards", sharded, ("*.index.json",), (RANKS, ("ranks", F, TINY))),
    Reader("tsv", glue, ("*.tsv",), (PLAN,)),
    Reader("csv", table_files("csv"), ("*.csv",), (PLAN,)),
    Reader("jsonl", table_files("jsonl"), ("*.jsonl",), (PLAN,)),
    Reader("parquet", table_files("parquet"), ("*.parquet",), (PLAN,)),
    Reader("lines", lines, ("one.txt",), (("predict", F, "--file", f"{F}/one.txt"),)),
    Reader("json lines", lines, ("one.jsonl",), (("predict", F, "--file", f"{F}/one.jsonl"),)),
    Reader("pairs", pairs, ("two.txt",), (("predict", F, "--file", f"{F}/two.txt"),)),
    Reader("json pairs", pairs, ("two.jsonl",), (("predict", F, "--file", f"{F}/two.jsonl"),)),
    Reader("sweeps", settings, ("sweep/tiny_table3.yaml", "sweep/table4.yaml"), (MULTI,)),
]


# ------------------------------------------------------------------------------------ the fuzz
@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, trained: Any) -> Iterator[Any]:
    """`folders(reader)`: the reader's folder, made once."""
    made: dict[str, Path] = {}

    def make(reader: Reader) -> Path:
        if reader.name not in made:
            made[reader.name] = tmp_path_factory.mktemp("valid")
            reader.make(made[reader.name], trained)
        return made[reader.name]

    return make


@pytest.mark.parametrize("reader", READERS, ids=str)
def test_a_file_with_something_wrong_in_it(
    reader: Reader, folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = folders(reader), tmp_path / "out"
    places = {"folder": folder, "out": out}
    paths = sorted(path for pattern in reader.files for path in folder.glob(pattern))
    assert paths
    if reader.make is settings:
        of_sweep = lambda group, name: folder / group / f"{name}.yaml"  # noqa: E731
        monkeypatch.setattr("sparta_bench.config.sweeps.file_of", of_sweep)
    monkeypatch.setattr("sparta_bench.cli.experiments._grid", lambda *_: 0)  # nothing runs
    monkeypatch.setattr("sparta_bench.runs.status.LAYOUTS", LAYOUTS[1:2])
    monkeypatch.setattr("sparta_bench.runs.status.sweeps_of", cached_sweeps)

    @examples(2)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(paths), "file")
        content = data.draw(changed_file(path), "content")
        words = data.draw(st.sampled_from(reader.commands), "command")
        before = {file: file.read_bytes() for file in [path, *folder.glob("*.json")]}
        path.write_bytes(content)
        try:
            if reader.after is not None:
                reader.after(folder)
            told = command([word.format(**places) for word in words])
        finally:
            for file, valid in before.items():
                file.write_bytes(valid)
        assert_told_well(told, *reader.codes)

    fuzz()
