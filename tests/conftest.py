"""What all tests share. The environment is set before anything imports torch or transformers."""

from __future__ import annotations

import gc
import io
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from forks import Forks, Server, start_server
from quick import QUICK_RUN, write_few_rows

_HOME = tempfile.TemporaryDirectory(prefix="sparta-bench-tests-")
os.environ |= {
    "OMP_NUM_THREADS": "1",  # small tensors: more threads only wait for each other
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(Path(_HOME.name, "huggingface")),
    "XDG_CACHE_HOME": str(Path(_HOME.name, "cache")),
}
# No import leaves garbage, and looking for it takes a sixth of their time.
gc.disable()
# A shell without job control starts what it puts in the background deaf to Ctrl-C, and processes
# hand that on: those that the tests interrupt would never end.
signal.signal(signal.SIGINT, signal.default_int_handler)

_FORKED: list[Server] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those first that ask a process that forks: one worker of pytest-xdist then has them all,
    and no other starts such processes."""
    needed = {"forks", "forks_without"}
    items.sort(key=lambda item: needed.isdisjoint(getattr(item, "fixturenames", ())))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fork the server of `forks`: by now the tests have imported nearly all that it needs, and none
    has computed a gradient, which torch allows no child of a process that has."""
    gc.freeze()  # no later collection looks at what the imports have made
    gc.enable()
    if any("forks" in getattr(item, "fixturenames", ()) for item in session.items):
        _FORKED.append(start_server())


WORDS = (
    "<unk>", "<s>", "</s>", "Yes", "No", "Entail", "Neutral", "Contradict", "Response", ":", ".",
    "a", "b", "c", "d", "e", "good", "bad", "film", "Determine", "if", "the", "or", "Respond",
)  # fmt: skip


@pytest.fixture(scope="session")
def word_tokenizer() -> Any:
    """A word-level tokenizer that puts BOS first and has no pad token, as Mistral's has none."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Any]:
    """`tiny_config("task=tiny-rte", …)`: a configuration that writes below `tmp_path` only."""
    from sparta_bench.config.compose import compose

    def make(*overrides: str) -> Any:
        folders = [f"results_dir='{tmp_path}/results'", f"cache_dir='{tmp_path}/cache'"]
        return compose([*folders, *overrides])

    return make


@pytest.fixture(scope="session")
def composed_once() -> Callable[[list[str]], Any]:
    """`compose` that asks Hydra once a session for the same overrides: each time takes as long as a
    small model's step. Configurations are frozen; faults are told anew."""
    from sparta_bench.config.compose import compose

    @cache
    def made(overrides: tuple[str, ...]) -> Any:
        return compose(list(overrides))

    return lambda overrides: made(tuple(overrides))


@pytest.fixture(scope="session", autouse=True)
def _few_rows() -> None:
    write_few_rows()


@pytest.fixture(scope="session")
def forks_without(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Forks]]:
    """`forks_without("torch", …)`: processes in which nobody can import these packages."""
    made: dict[tuple[str, ...], Forks] = {}

    def make(*forbidden: str) -> Forks:
        if forbidden not in made:
            server = start_server(*forbidden) if forbidden else _FORKED.pop()
            made[forbidden] = Forks(tmp_path_factory.mktemp("told"), server)
        return made[forbidden]

    yield make
    for process in made.values():
        process.close()


@pytest.fixture(scope="session")
def forks(forks_without: Callable[..., Forks]) -> Forks:
    """Commands of sparta-bench as processes."""
    return forks_without()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`trained("lora", …)`: configuration, record and saved folder of a tiny run, made once. Only
    to be read: all tests have the same ones, in all workers of pytest-xdist."""
    from sparta_bench.config.compose import compose
    from sparta_bench.runs.run import run

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # a run takes the record that another worker has made
    made: dict[tuple[str, ...], Any] = {}

    def make(method: str, *overrides: str) -> Any:
        key = (method, *overrides)
        if key not in made:
            name = sha256("\n".join(key).encode()).hexdigest()[:12]
            places = [f"results_dir={root}/trained-{name}", f"cache_dir={root}/cache"]
            save = "full" if method == "full_ft" else "adapter"
            settings = [f"method={method}", f"save={save}", *overrides]
            config = compose([*QUICK_RUN, *places, *settings])
            with redirect_stderr(io.StringIO()):  # its progress is not the test's output
                record, path, _ = run(config)
            assert record["status"] == "completed", record["error"]
            folders = [path.parent / name for name in ("adapter", "model")]
            made[key] = config, record, next(folder for folder in folders if folder.exists())
        return made[key]

    return make
