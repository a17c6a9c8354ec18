"""What all tests share. The environment is set before anything imports torch or transformers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_HOME = tempfile.TemporaryDirectory(prefix="sparta-bench-tests-")
os.environ |= {
    "OMP_NUM_THREADS": "1",  # small tensors: more threads only wait for each other
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(Path(_HOME.name, "huggingface")),
    "XDG_CACHE_HOME": str(Path(_HOME.name, "cache")),
}

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
    from sparta_bench.compose import compose

    def make(*overrides: str) -> Any:
        folders = [f"results_dir='{tmp_path}/results'", f"cache_dir='{tmp_path}/cache'"]
        return compose([*folders, *overrides])

    return make
