"""The hub as the real clients meet it: the command as a process, against a server on loopback."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from hub_server import Hub, Repository
from huggingface_hub.errors import OfflineModeIsEnabled
from pyarrow import parquet
from safetensors.torch import load, save
from test_cli import COMMAND

from sparta_bench.config.compose import compose
from sparta_bench.errors import InputError
from sparta_bench.hub import Bar, ways_out, why
from sparta_bench.models.source import source_fingerprint
from sparta_bench.models.stored_tensors import open_checkpoint

MODEL, DATA = ("models", "google/gemma-2b-it"), ("datasets", "nyu-mll/glue")
PINNED = (
    "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"  # the data set's revision in conf/task/sst2.yaml
)
TOKEN = "hf_aVerySecretTokenThatNobodyMaySee"
GEMMA = ["method=sparta", "method.density=0.05", "task=sst2", "model=gemma-2b-it"]
SHORT = ["train.max_steps=2", "train.eval_every=2", "train.batch_size=8"]
WAYS = (
    "accept its terms at https://huggingface.co/google/gemma-2b-it; log in with `hf auth login`; "
    "or give a folder with model.path=DIR"
)
CARD = """---
configs:
- config_name: sst2
  data_files:
  - {split: train, path: sst2/train-*}
  - {split: validation, path: sst2/validation-*}
  - {split: test, path: sst2/test-*}
dataset_info:
- config_name: sst2
  features:
  - {name: sentence, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': negative, '1': positive}}}
  - {name: idx, dtype: int32}
---
# GLUE, a part of it
"""


def table(rows: int, label: int | None = None) -> bytes:
    """A parquet file with the hub's columns; labels alternate unless one is given."""
    labels = [row % 2 if label is None else label for row in range(rows)]
    words = [f"a {'good' if one else 'bad'} film, number {row} " for row, one in enumerate(labels)]
    out = io.BytesIO()
    parquet.write_table(
        pyarrow.table({
            "sentence": words,
            "label": pyarrow.array(labels, pyarrow.int64()),
            "idx": pyarrow.array(range(rows), pyarrow.int32()),
        }),
        out,
    )  # fmt: skip
    return out.getvalue()


def tiny_model() -> Repository:
    folder = resources.files("sparta_bench") / "tiny_models" / "tiny-gemma-it"
    return Repository({path.name: path.read_bytes() for path in folder.iterdir()})


def glue() -> Repository:
    files = {"train": table(1200), "validation": table(40), "test": table(10, label=-1)}
    parts = {f"sst2/{name}-00000-of-00001.parquet": content for name, content in files.items()}
    return Repository({"README.md": CARD.encode(), **parts}, pinned=PINNED)


@pytest.fixture
def hub() -> Any:
    with Hub({MODEL: tiny_model(), DATA: glue()}) as hub:
        yield hub


class Command:
    """`sparta-bench` as a user of one machine calls it: an own home, cache and results folder."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(
        self, endpoint: str, *arguments: str, seconds: float = 300, **environment: str
    ) -> tuple[int, list[str], list[str]]:
        """Exit code, lines of standard output, lines of standard error."""
        ours = {
            name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ
        }
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.home,
            env=ours
            | {
                "HOME": str(self.home),
                "HF_HOME": str(self.home / "hf"),
                "HF_ENDPOINT": endpoint,
                "XDG_CACHE_HOME": str(self.home / "cache"),
                "OMP_NUM_THREADS": "1",
                "NO_PROXY": "*",
            }
            | environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    def records(self) -> list[dict[str, Any]]:
        paths = sorted((self.home / "results").rglob("result.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]

    def blobs(self) -> set[int]:
        """Sizes of what is in the hub's cache as whole files."""
        return {
            path.stat().st_size
            for path in (self.home / "hf" / "hub").glob("*/blobs/*")
            if not path.name.endswith(".incomplete")
        }


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def everything_below(folder: Path) -> bytes:
    return b"".join(
        str(path).encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file()
    )


# --------------------------------------------------------------------------- what must work
@pytest.mark.slow
def test_a_run_from_the_hub_and_the_same_command_without_it(hub: Hub, command: Command) -> None:
    started = time.monotonic()
    code, out, err = command(hub.url, *GEMMA, *SHORT, HF_TOKEN=TOKEN)
    first = time.monotonic() - started
    assert code == 0, err
    (record,) = command.records()
    assert record["status"] == "completed"
    commit = hub.repositories[MODEL].commit
    assert record["base_model"] == {"name": "gemma-2b-it", "fingerprint": commit}
    assert [record["data"][split] for split in ("train", "dev", "test")] == [200, 1000, 40]
    assert "sparta-bench: downloading model.safetensors, 0.4 MB" in err

    # the token goes to the hub, not to the store of large files, and to nothing that is kept
    seen = {(asked.origin, asked.token) for asked in hub.asked if "/agent-" not in asked.path}
    assert seen == {(hub.url[7:], f"Bearer {TOKEN}"), (hub.store[7:], None)}
    assert TOKEN not in "\n".join([*out, *err])
    assert TOKEN.encode() not in everything_below(command.home)

    hub.__exit__()
    started = time.monotonic()
    code, again, err = command(hub.url, *GEMMA, *SHORT)
    assert (code, len(command.records())) == (0, 1)
    assert again[1] == f"{out[1]} (there already)" and again[2:] == out[2:]
    assert err == ["sparta-bench: 127.0.0.1 does not answer (ConnectError); only the cache is used"]
    assert time.monotonic() - started < first + 20, "the client alone takes a minute and a half"


@pytest.mark.slow
def test_a_data_set_of_the_hub_needs_no_file_of_conf(hub: Hub, command: Command) -> None:
    words = ["task=own", "task.hub={path: nyu-mll/glue, name: sst2}", "task.test_examples=100"]
    code, out, err = command(hub.url, "plan", "--json", *words, "task.columns=[sentence]")
    assert (code, err) == (0, [])
    planned = json.loads("\n".join(out))
    assert planned["task"] == "glue"
    assert planned["data"]["labels"] == {
        "train": {"negative": 550, "positive": 550},
        "dev": {"negative": 20, "positive": 20},
        "test": {"negative": 50, "positive": 50},
    }
    # the hub's test set has no labels
    _, out, _ = command(hub.url, "plan", *words[:2], "task.columns=[sentence]")
    assert out[-1].startswith("nyu-mll/glue, split test, row 1: label -1 is none of 0 (negative)")
    _, out, _ = command(hub.url, "plan", *words, "task.columns=[nope]")
    assert "column nope is missing (there are: sentence, label, idx)" in out[-1]


@pytest.mark.slow
def test_other_runs_and_predictions_from_the_cache(hub: Hub, command: Command) -> None:
    assert command(hub.url, *GEMMA, *SHORT)[0] == 0
    (adapter,) = command.home.rglob("adapter")
    hub.__exit__()
    told = "sparta-bench: 127.0.0.1 does not answer (ConnectError); only the cache is used"
    for seed, offline in ((1, "1"), (2, "0")):
        code, _, err = command(hub.url, *GEMMA, *SHORT, f"seed={seed}", HF_HUB_OFFLINE=offline)
        assert code == 0, err
        assert (told in err) == (offline == "0")
    runs = command.records()
    assert [record["status"] for record in runs] == ["completed"] * 3
    commit = hub.repositories[MODEL].commit
    assert {record["base_model"]["fingerprint"] for record in runs} == {commit}
    assert len({record["data"]["fingerprint"] for record in runs}) == 1
    code, out, err = command(hub.url, "predict", str(adapter), "a good film", "a bad film")
    assert (code, err) == (0, []), "the base is in the cache by its commit: nobody is asked"
    assert len(out) == 2 and {line.split("\t")[0] for line in out} <= {"negative", "positive"}


@pytest.mark.slow
def test_another_commit_is_another_run(hub: Hub, command: Command) -> None:
    assert command(hub.url, *GEMMA, *SHORT)[0] == 0
    before = hub.repositories[MODEL].commit
    tensors = load(hub.repositories[MODEL].files["model.safetensors"])
    tensors["model.norm.weight"] += 0.5
    hub.repositories[MODEL].files["model.safetensors"] = save(tensors, {"format": "pt"})
    assert command(hub.url, *GEMMA, *SHORT)[0] == 0
    found = {record["base_model"]["fingerprint"] for record in command.records()}
    assert found == {before, hub.repositories[MODEL].commit} and len(found) == 2


@pytest.mark.slow
def test_a_download_that_breaks_off_is_taken_up(hub: Hub, command: Command) -> None:
    files, end = hub.repositories[MODEL].files, "train-00000-of-00001.parquet"
    large = {"lm_head.weight": torch.zeros(100_000, 64)}  # not read, since the head is tied
    files["model.safetensors"] = save(load(files["model.safetensors"]) | large, {"format": "pt"})
    hub.cut |= {"model.safetensors": 1, end: 1}
    code, _, err = command(hub.url, *GEMMA, *SHORT)
    assert code == 0, err
    asked = [(one.path.rpartition("/")[2], one.part) for one in hub.asked if "/store/" in one.path]
    # what the client has written when the connection ends: whole pieces of ten mebibytes
    assert [part for name, part in asked if name == "model.safetensors"] == [
        None, f"bytes={10 * 2**20}-",
    ]  # fmt: skip
    assert [part for name, part in asked if name == end] == [None, None]
    sizes = {len(content) for one in hub.repositories.values() for content in one.files.values()}
    assert command.blobs() <= sizes and len(files["model.safetensors"]) in command.blobs()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "line"),
    [
        (
            "model.safetensors",
            "model=gemma-2b-it: model.safetensors cannot be had: the connection broke off "
            "(RemoteProtocolError); the same command tries again",
        ),
        (
            "tokenizer.json",
            "model=gemma-2b-it: google/gemma-2b-it cannot be loaded from the hub: the connection "
            "broke off (RemoteProtocolError); the same command tries again. Ways out: give a "
            "folder with model.path=DIR",
        ),
        (
            "train-00000-of-00001.parquet",
            "task.hub=nyu-mll/glue: cannot be loaded from the hub: the connection broke off "
            "(RemoteProtocolError); the same command tries again. Ways out: download the files "
            "and set task.data_dir=DIR",
        ),
    ],
)
def test_half_a_file_is_never_taken_for_the_whole(
    hub: Hub, command: Command, end: str, line: str
) -> None:
    hub.cut[end] = 100
    code, out, err = command(hub.url, *GEMMA, *SHORT)
    assert (code, out, err[-1]) == (2, [], f"sparta-bench: {line}")
    sizes = {
        len(content) for found in hub.repositories.values() for content in found.files.values()
    }
    assert command.blobs() <= sizes
    if end == "model.safetensors":
        hub.cut.clear()
        code, _, err = command(hub.url, *GEMMA, *SHORT)
        assert code == 0, err


@pytest.mark.slow
def test_a_download_that_stalls_ends(hub: Hub, command: Command) -> None:
    hub.stalled = "model.safetensors"
    code, out, err = command(hub.url, *GEMMA, *SHORT, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert (code, out) == (2, [])
    assert err[-1] == (
        "sparta-bench: model=gemma-2b-it: model.safetensors cannot be had: the connection broke "
        "off (ReadTimeout); the same command tries again"
    )


@pytest.mark.slow
def test_a_slow_download_says_what_it_waits_for(hub: Hub, command: Command) -> None:
    hub.pause = 0.5
    code, _, err = command(hub.url, *GEMMA, *SHORT)
    assert code == 0
    assert "unknown to the tokenizer of gemma-2b-it" in err[1]  # it has a dozen words
    assert err[2] == "sparta-bench: downloading model.safetensors, 0.4 MB"
    assert err[3].startswith("step 0/2 ")


@pytest.mark.slow
def test_a_hub_that_never_answers(hub: Hub, command: Command) -> None:
    hub.silent = True
    code, out, err = command(hub.url, *GEMMA, HF_HUB_ETAG_TIMEOUT="2")
    assert (code, out) == (2, [])
    assert err == [
        "sparta-bench: 127.0.0.1 does not answer (ReadTimeout); only the cache is used",
        "sparta-bench: model=gemma-2b-it: google/gemma-2b-it cannot be loaded from the "
        "hub: 127.0.0.1 cannot be reached, and the cache does not have it. Ways out: give the same "
        "command with a connection; where it is gated, accept its terms at "
        "https://huggingface.co/google/gemma-2b-it first and log in with `hf auth login`; or give "
        "a folder with model.path=DIR",
    ]


# ------------------------------------------------------------------------ what it refuses
def refused(hub: Hub, command: Command, *arguments: str, **environment: str) -> str:
    code, out, err = command(hub.url, *GEMMA, *arguments, **environment)
    assert (code, out) == (2, [])
    assert command.records() == []
    lines = [line for line in err if line.startswith("sparta-bench: ")]
    return lines[-1].removeprefix("sparta-bench: ")


GATED = "its terms have not been accepted, or not with this login"
UNSEEN = "there is no such repository, or none that this login may see"
NO_TOKEN = (401, "", "Invalid credentials in Authorization header")


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ((403, "GatedRepo", "You are not in the authorized list"), GATED),
        pytest.param((401, "GatedRepo", "Please log in"), GATED, marks=pytest.mark.slow),
        pytest.param((404, "RepoNotFound", "Not found"), UNSEEN, marks=pytest.mark.slow),
        pytest.param(
            NO_TOKEN,
            "127.0.0.1 answers 401: Invalid credentials in Authorization header",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.slow
def test_a_model_that_may_not_be_had(
    hub: Hub, command: Command, refusal: tuple[int, str, str], reason: str
) -> None:
    hub.repositories[MODEL].refusal = refusal
    line = refused(hub, command, HF_TOKEN=TOKEN)
    assert line == (
        "model=gemma-2b-it: google/gemma-2b-it cannot be loaded from the hub: "
        f"{reason}. Ways out: {WAYS}"
    )


def _without(name: str) -> Callable[[Hub], None]:
    return lambda hub: hub.repositories[MODEL].files.pop(name) and None


def _as_pickle(hub: Hub) -> None:
    files = hub.repositories[MODEL].files
    files["pytorch_model.bin"] = files.pop("model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "arguments", "line"),
    [
        (
            lambda hub: None,
            ["model.revision=v9"],
            "model=gemma-2b-it: google/gemma-2b-it at v9 cannot be loaded from the hub: it has no "
            "such revision. Ways out: give a folder with model.path=DIR",
        ),
        (
            _without("config.json"),
            [],
            "model=gemma-2b-it: google/gemma-2b-it cannot be loaded from the hub: it has "
            "no file config.json. Ways out: give a folder with model.path=DIR",
        ),
        (
            _as_pickle,
            [],
            "model=gemma-2b-it: holds pickles alone (pytorch_model.bin), which can run code and "
            "are never read; convert them where you trust them: "
            "AutoModelForCausalLM.from_pretrained('google/gemma-2b-it', use_safetensors=False)"
            ".save_pretrained(DIR), and the tokenizer's files to the same DIR",
        ),
        (
            lambda hub: hub.repositories[MODEL].files.update({"adapter_config.json": b"{}"}),
            [],
            "model=gemma-2b-it: an adapter is there (adapter_config.json); merge it into its base "
            "first, with peft's merge_and_unload, or give the base",
        ),
    ],
)
def test_a_repository_that_lacks_something(
    hub: Hub, command: Command, change: Callable[[Hub], None], arguments: list[str], line: str
) -> None:
    change(hub)
    assert refused(hub, command, *arguments) == line
    # a conversion of the pickle by somebody else, which transformers would look for
    assert not [asked.path for asked in hub.asked if "/commits/" in asked.path]


DATA_PAGE = (
    "Ways out: accept its terms at https://huggingface.co/datasets/nyu-mll/glue; log in with "
    "`hf auth login`; or download the files and set task.data_dir=DIR"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refusal", "arguments", "said"),
    [
        ((403, "GatedRepo", "Not in the list"), [], f"{GATED}. {DATA_PAGE}"),
        (
            None,
            ["task.hub.revision=v9"],
            "it has no such revision. Ways out: download the files and set task.data_dir=DIR",
        ),
        (
            None,
            ["task.hub.name=nope"],
            "BuilderConfig 'nope' not found. Available: ['sst2']. Ways out: download the files "
            "and set task.data_dir=DIR",
        ),
    ],
)
def test_data_that_cannot_be_had(
    hub: Hub,
    command: Command,
    refusal: tuple[int, str, str] | None,
    arguments: list[str],
    said: str,
) -> None:
    hub.repositories[DATA].refusal = refusal
    line = refused(hub, command, *arguments)
    assert line == f"task.hub=nyu-mll/glue: cannot be loaded from the hub: {said}"


@pytest.mark.parametrize(
    ("switch", "way"),
    [
        ("0", "give the same command with a connection; "),
        ("1", "give the same command with a connection, without HF_HUB_OFFLINE; "),
    ],
)
def test_ways_out_of_a_missing_connection(
    monkeypatch: pytest.MonkeyPatch, switch: str, way: str
) -> None:
    reason, cause = why(OfflineModeIsEnabled("no"))
    assert reason.endswith(" cannot be reached, and the cache does not have it")
    monkeypatch.setenv("HF_HUB_OFFLINE", switch)
    assert ways_out(cause, "https://page", "give a folder") == (
        f"Ways out: {way}where it is gated, accept its terms at https://page first and log in "
        "with `hf auth login`; or give a folder"
    )
    assert ways_out("other", "https://page", "give a folder") == "Ways out: give a folder"


@pytest.mark.slow
def test_another_revision_of_the_data_is_not_taken_from_the_cache(
    hub: Hub, command: Command
) -> None:
    assert command(hub.url, *GEMMA, *SHORT)[0] == 0
    other = "0" * 40
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        code, out, err = command(
            hub.url, *GEMMA, *SHORT, f"task.hub.revision={other}", **environment
        )
        assert (code, out) == (2, [])
        if environment:
            assert err == [
                f"sparta-bench: task.hub.revision={other}: cannot be had from the hub, and the "
                f"cache has only {PINNED} of nyu-mll/glue"
            ]
        else:
            assert "it has no such revision" in err[0]
    assert len(command.records()) == 1


def test_a_folder_of_the_hubs_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "google" / "gemma-2b-it").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="the cache does not have it"):
        source_fingerprint(compose(["model=gemma-2b-it", "task=sst2"]).model)
    with pytest.raises(InputError, match="the cache does not have it"):
        open_checkpoint("gemma-2b-it")


@pytest.mark.slow
def test_a_token_that_is_none_is_not_shown(hub: Hub, command: Command) -> None:
    assert refused(hub, command, HF_TOKEN="hf_ein Geheimnis \u4e2d") == (
        "model=gemma-2b-it: google/gemma-2b-it cannot be loaded from the hub: the token (HF_TOKEN, "
        f"or `hf auth login`) has letters that no token has. Ways out: {WAYS}"
    )


def test_a_download_is_told_of_once_where_nobody_watches(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Bar(desc="google/gemma-2b/model.safetensors", total=5_012_345_678, unit="B") as bar:
        bar.update(10)
    # as the client's own store has it
    with Bar(desc="a.safetensors: reconstructing file", total=None, position=1, leave=True) as bar:
        bar.update_transfer(10)
    assert capsys.readouterr().err.splitlines() == [
        "sparta-bench: downloading model.safetensors, 5,012.3 MB",
        "sparta-bench: downloading a.safetensors",
    ]


def test_the_pinned_revision_is_the_one_of_the_configuration() -> None:
    assert compose(["task=sst2"]).task.hub.revision == PINNED
