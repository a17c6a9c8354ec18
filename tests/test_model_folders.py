"""Model folders as people have them: what is missing, broken or dangerous in them is told in one
line, through the command, and nothing in them is ever executed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import QUICK_RUN
from safetensors.torch import load_file, save_file
from test_cli import call, records
from transformers import AutoModelForCausalLM

TWINS = resources.files("sparta_bench") / "tiny_models"
LAYER = "model.layers.1.mlp.up_proj.weight"
SINGLE, INDEX, SHARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
)
Change = Callable[[Path], Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of an embedded model."""
    return Path(shutil.copytree(str(TWINS / "tiny-gemma"), tmp_path / "my-model"))


def run(
    capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str
) -> tuple[int, str, list[str]]:
    root = folder.parent
    places = [f"results_dir={root}/results", f"cache_dir={root}/cache"]
    return call(
        capsys,
        "model=local",
        f"model.path={folder}",
        *QUICK_RUN,
        *places,
        "method=head",
        *overrides,
    )


# ------------------------------------------------------------------------- how it is changed
def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: str | bytes) -> Change:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def with_keys(name: str, **keys: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


def cut_to(name: str, size: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def with_tensors(make: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """`make` changes the tensors by name where they are."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / SINGLE)
        make(tensors)
        save_file(tensors, folder / SINGLE, {"format": "pt"})

    return change


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / SINGLE), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def as_shards(name: str, there: bool) -> Change:
    def change(folder: Path) -> None:
        places = dict.fromkeys(load_file(folder / SINGLE), name)
        (folder / SINGLE).rename(folder.parent / "outside.safetensors")
        if there:
            (folder.parent / "outside.safetensors").rename(folder / name)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return change


PICKLE_LINE = (
    "model.path={folder}: holds pickles alone ({name}), which can run code and are never read; "
    "convert them where you trust them: AutoModelForCausalLM.from_pretrained('{folder}', "
    "use_safetensors=False).save_pretrained(DIR), and the tokenizer's files to the same DIR"
)
CASES: dict[str, tuple[Change, str]] = {
    "no config": (without("config.json"), "model.path={folder}: the folder has no config.json"),
    "config cut": (
        cut_to("config.json", 100),
        "model.path={folder}: cannot be loaded: It looks like the config file at "
        "'{folder}/config.json' is not a valid JSON file",
    ),
    "config empty": (
        holding("config.json", "{}"),
        "model.path={folder}: cannot be loaded: Unrecognized model in {folder}. Should have a "
        "`model_type` key in its config.json",
    ),
    "config unknown": (
        with_keys("config.json", model_type="gemma9"),
        "model.path={folder}: cannot be loaded: The checkpoint you are trying to load has model "
        "type `gemma9` but Transformers does not recognize this architecture. This could be "
        "because of an issue with the checkpoint, or because your version of Transformers is out "
        "of date",
    ),
    "no weights": (
        without(SINGLE),
        f"model.path={{folder}}: neither {SINGLE} nor {INDEX} is there",
    ),
    "pickle": (as_pickle, PICKLE_LINE.replace("{name}", "pytorch_model.bin")),
    "shard missing": (
        as_shards(SHARD, there=False),
        f"model.path={{folder}}: {INDEX} names {SHARD}, which is not there",
    ),
    "shard outside": (
        as_shards("../outside.safetensors", there=False),
        f"{{folder}}/{INDEX}: names '../outside.safetensors', and shards are .safetensors beside "
        "it",
    ),
    "index cut": (
        lambda folder: (as_shards(SHARD, there=True)(folder), cut_to(INDEX, 50)(folder)),
        f"{{folder}}/{INDEX}: no index of shards (weight_map), or cut short",
    ),
    "index of numbers": (
        lambda folder: (
            without(SINGLE)(folder),
            holding(INDEX, '{"weight_map": {"x": 5}}')(folder),
        ),
        f"{{folder}}/{INDEX}: no index of shards (weight_map), or cut short",
    ),
    "weights cut": (
        cut_to(SINGLE, 400_000),
        f"{{folder}}/{SINGLE}: no safetensors file, or cut short (Error while deserializing "
        "header: incomplete metadata, file not fully covered)",
    ),
    "weights empty": (
        holding(SINGLE, b""),
        f"{{folder}}/{SINGLE}: no safetensors file, or cut short (Error while deserializing "
        "header: header too small)",
    ),
    "pointer of git-lfs": (
        holding(SINGLE, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 420728\n"),
        f"{{folder}}/{SINGLE}: no safetensors file, or cut short (Error while deserializing "
        "header: header too large)",
    ),
    "a tensor missing": (
        with_tensors(lambda tensors: tensors.pop(LAYER)),
        "model.path={folder}: 1 tensors are missing in the checkpoint, the first is "
        "layers.1.mlp.up_proj.weight",
    ),
    "a tensor too many": (
        with_tensors(lambda tensors: tensors.update({"model.vision.weight": torch.ones(2)})),
        "model.path={folder}: 1 tensors of the checkpoint have no place in the architecture of "
        "config.json, the first is model.vision.weight",
    ),
    "another shape": (
        with_keys("config.json", intermediate_size=191),
        "model.path={folder}: the checkpoint's layers.0.mlp.down_proj.weight has the shape (64, "
        "192), where (64, 191) follows from config.json",
    ),
    "quantised": (
        with_tensors(lambda tensors: tensors.update({LAYER: tensors[LAYER].to(torch.int8)})),
        f"model.path={{folder}}: {LAYER} is of kind I8; quantised models cannot train",
    ),
    "adapter": (
        holding("adapter_config.json", '{"base_model_name_or_path": "/elsewhere"}'),
        "model.path={folder}: an adapter is there (adapter_config.json); merge it into its base "
        "first, with peft's merge_and_unload, or give the base",
    ),
    "no tokenizer": (
        without("tokenizer.json"),
        "model.path={folder}: the folder has no tokenizer (tokenizer.json, tokenizer.model, "
        "vocab.json, vocab.txt)",
    ),
    "tokenizer cut": (
        cut_to("tokenizer.json", 3000),
        "{folder}/tokenizer.json: cannot be read, is not JSON, or cut short",
    ),
    "tokenizer empty": (
        holding("tokenizer.json", "{}"),
        "model.path={folder}: the tokenizer cannot be loaded: added_tokens is missing",
    ),
    "tokenizer's config cut": (
        cut_to("tokenizer_config.json", 30),
        "{folder}/tokenizer_config.json: cannot be read, is not JSON, or cut short",
    ),
    "too many tokens": (
        lambda folder: with_keys(
            "tokenizer_config.json", extra_special_tokens=[f"<{n}>" for n in range(9)]
        )(folder),
        "{folder}: its tokenizer has 312 tokens, and the model only 303 embeddings",
    ),
}


QUICK = (
    "no config", "no weights", "pickle", "shard outside", "weights cut", "a tensor missing",
    "adapter", "no tokenizer", "tokenizer cut",
)  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_a_broken_folder_is_told_of_in_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, case: str
) -> None:
    change, line = CASES[case]
    change(folder)
    code, out, err = run(capsys, folder)
    assert (code, out) == (2, "")
    assert [told for told in err if told.startswith("sparta-bench: ")] == [
        f"sparta-bench: {line.replace('{folder}', str(folder))}"
    ]
    assert records(folder.parent) == []


def test_a_tokenizer_that_cannot_be_built(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0eno model")
    code, out, err = run(capsys, folder)
    assert (code, out) == (2, "")
    start = "the tokenizer cannot be loaded: there is no tokenizer.json, and none can be built ("
    assert err[-1].startswith(f"sparta-bench: model.path={folder}: {start}")


def test_a_pickle_is_converted_as_the_line_says(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    before = load_file(folder / SINGLE)
    as_pickle(folder)
    out = tmp_path / "converted"
    AutoModelForCausalLM.from_pretrained(folder, use_safetensors=False).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, out)
    after = load_file(out / SINGLE)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    capsys.readouterr()
    assert run(capsys, out)[0] == 0


def test_weights_that_are_no_numbers(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with_tensors(lambda tensors: tensors[LAYER][0].fill_(float("nan")))(folder)
    code, out, _ = run(capsys, folder, "method=sparta")
    assert code == 1
    assert "the base model holds values that are no numbers, in backbone.layers.1.mlp.up" in out
    (record,) = records(folder.parent)
    assert (record["status"], record["test"]) == ("failed", None)


# ------------------------------------------------------------------------------ tokenizers
def test_answers_that_the_tokenizer_does_not_know(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    code, out, err = run(
        capsys, folder, "model.kind=instruct", "task.prompt.answers=['негативный','позитивный']"
    )
    assert (code, out) == (2, "")
    told = [line for line in err if line.startswith("sparta-bench: ")]
    assert told == [
        f"sparta-bench: task.prompt.answers: {word!r} is not one token's start after 'Response:' "
        "in this tokenizer (it reads '<unk>')"
        for word in ("негативный", "позитивный")
    ]


def without_bos_and_pad(folder: Path) -> None:
    with_keys("tokenizer.json", post_processor=None)(folder)
    with_keys("tokenizer_config.json", bos_token=None, pad_token=None)(folder)


def test_a_tokenizer_without_bos_and_pad_trains(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    without_bos_and_pad(folder)
    assert run(capsys, folder)[0] == 0
    (record,) = records(folder.parent)
    assert record["status"] == "completed"


def test_what_could_not_be_saved_is_told_before_the_training(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    without_bos_and_pad(folder)
    code, out, err = run(capsys, folder, "save=full")
    assert (code, out) == (2, "")
    assert err[-1] == (
        "sparta-bench: save=full: the tokenizer has neither a padding token of its own nor BOS to "
        "pad with"
    )
    assert not [line for line in err if line.startswith("step ")]


# ------------------------------------------------------------- code that comes with a model
CODE = """
from pathlib import Path
Path({canary!r}).write_text(__name__)
from transformers import GemmaConfig, GemmaModel, PreTrainedTokenizerFast
class Config(GemmaConfig):
    model_type = "other"
class Model(GemmaModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
MAP = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}


@pytest.fixture
def canary(folder: Path, tmp_path: Path) -> Path:
    """What the code in the folder would write, wherever transformers may look for such."""
    path = tmp_path / "canary"
    code = CODE.replace("{canary!r}", repr(str(path)))
    (folder / "custom_generate").mkdir()
    for name in ("evil", "modeling_gemma", "configuration_gemma", "custom_generate/generate"):
        (folder / f"{name}.py").write_text(code)
    return path


@pytest.mark.parametrize(
    "change",
    [
        with_keys("config.json", auto_map=MAP),
        with_keys(
            "tokenizer_config.json",
            auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]},
            tokenizer_class="Tokenizer",
        ),
    ],
    ids=["model", "tokenizer"],
)
def test_code_beside_a_known_model_is_not_run(
    capsys: pytest.CaptureFixture[str], folder: Path, canary: Path, change: Change
) -> None:
    change(folder)
    assert run(capsys, folder)[0] == 0
    assert not canary.exists()


def test_a_model_that_needs_its_own_code_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, canary: Path
) -> None:
    with_keys("config.json", auto_map=MAP, model_type="other")(folder)
    code, out, err = run(capsys, folder)
    assert (code, out) == (2, "")
    assert err == [
        f"sparta-bench: model.path={folder}: cannot be loaded: it needs code of its own (auto_map "
        "in config.json), which is never run here"
    ]
    assert not canary.exists()


class _Writes:
    """Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "unpickled")


@pytest.mark.parametrize("alone", [True, False])
def test_a_pickle_is_never_opened(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, alone: bool
) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        torch.save({"x": _Writes(tmp_path / "canary")}, folder / name)
    if alone:
        (folder / SINGLE).unlink()
    assert run(capsys, folder)[0] == (2 if alone else 0)
    assert not (tmp_path / "canary").exists()
    torch.load(folder / "optimizer.pt", weights_only=False)
    assert (tmp_path / "canary").read_text() == "unpickled"  # it would have been seen
