"""The wording of messages, in one file: other tests look at exit codes and at what is named.

`SPARTA_BENCH_MESSAGES=write pytest tests/test_messages.py` writes messages.yaml as the messages are
now, for a person to read the difference.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from forks import Forks
from safetensors.torch import save_file
from test_cli import call

FILE = Path(__file__).with_name("messages.yaml")
HEADER = """\
# By command line, the lines that it prints on standard error, without `sparta-bench: ` before them;
# each ends with exit code 2. {base}: a folder with a model; {head}: an adapter; {files}: a folder
# with broken files. A line that ends in an ellipsis is compared up to there.
"""
MESSAGES: dict[str, str | list[str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
# which must be there before torch is
WITHOUT_TORCH = ("no/where", "ranks tiny-gema", "./no")


@pytest.fixture(scope="module")
def written() -> Iterator[dict[str, str | list[str]]]:
    """The messages as they are now; they go to the file where that is asked for."""
    found = dict(MESSAGES)
    yield found
    if os.environ.get("SPARTA_BENCH_MESSAGES") == "write":
        text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=10_000)
        FILE.write_text(HEADER + text, encoding="utf-8")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, trained: Any) -> dict[str, str]:
    """What stands for the words in braces."""
    root = tmp_path_factory.mktemp("files")
    for name in ("empty", "pickle", "run/adapter", "cut", "twice", "base"):
        (root / name).mkdir(parents=True)
    save_file({"model.norm.weight": torch.ones(8)}, root / "base" / "model.safetensors")
    both = {"norm.weight": torch.ones(8), "model.norm.weight": torch.ones(8)}
    save_file(both, root / "twice" / "model.safetensors")
    whole = (root / "twice" / "model.safetensors").read_bytes()
    (root / "cut" / "model.safetensors").write_bytes(whole[:-50])
    (root / "pickle" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (root / "text.json").write_text("{}")
    (root / "nothing").touch()
    head = str(trained("head")[2])
    return {"{base}": str(root / "base"), "{files}": str(root), "{head}": head}


@pytest.mark.parametrize("words", MESSAGES)
def test_a_fault_of_input_gives_its_lines(
    words: str,
    written: dict[str, str | list[str]],
    folders: dict[str, str],
    forks_without: Callable[..., Forks],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.chdir(tmp_path)
    arguments = shlex.split(words)
    for name, folder in folders.items():
        arguments = [argument.replace(name, folder) for argument in arguments]
    if any(part in words for part in WITHOUT_TORCH):
        heavy = ("torch", "transformers", "datasets", "peft", "accelerate")
        done = forks_without(*heavy).call(*arguments, cwd=tmp_path)
        code, out, err = done.code, done.out, done.err.splitlines()
    else:
        code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    lines = [line.removeprefix("sparta-bench: ") for line in err]
    for name, folder in folders.items():
        lines = [line.replace(folder, name) for line in lines]
    expected = MESSAGES[words]
    expected = [expected] if isinstance(expected, str) else expected
    if os.environ.get("SPARTA_BENCH_MESSAGES") == "write":
        now = [_cut(line, old) for line, old in zip(lines, [*expected, *lines], strict=False)]
        written[words] = now[0] if len(now) == 1 else now
        return
    assert [_cut(line, old) for line, old in zip(lines, expected, strict=True)] == expected


def _cut(line: str, pattern: str) -> str:
    """The line, as long as the pattern if that ends in an ellipsis."""
    return f"{line[: len(pattern) - 1]}…" if pattern.endswith("…") else line
