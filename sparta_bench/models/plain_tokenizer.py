"""An embedded model's tokenizer without transformers, whose import takes seconds.

transformers takes these `tokenizer.json` as they are, so that the ids are the same ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sparta_bench.files import json_of


class PlainTokenizer:
    """What `data` and `plan` ask of a tokenizer."""

    def __init__(self, folder: Path) -> None:
        self.backend_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        unknown = json_of(folder / "tokenizer_config.json")["unk_token"]
        self.unk_token_id: int | None = self.backend_tokenizer.token_to_id(unknown)

    def __call__(self, texts: str | list[str], **settings: Any) -> dict[str, Any]:
        """Token ids of a text, or of each, special tokens added."""
        if isinstance(texts, str):
            return {"input_ids": self.backend_tokenizer.encode(texts).ids}
        return {"input_ids": [one.ids for one in self.backend_tokenizer.encode_batch(texts)]}

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self.backend_tokenizer.decode(ids, skip_special_tokens=False))
