"""Build the tokenizers and pretrain the four tiny language models that ship in the package.

    python scripts/pretrain_tiny.py [--only NAME] [--out DIR]

One thread on the CPU, float32, saved in bfloat16. On a busy two-core machine a plain model took 84
to 173 s and an instruct model 213 to 319 s.
The instruct models also see the eight tasks as instructions, in the prompts of ``conf/task``; of
their checkpoints the one with the best zero-shot accuracy on development data is kept.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import tiny_corpus
import torch
import yaml
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from sparta_bench.config.schema import TINY_TASKS
from sparta_bench.data import generated as data_sets

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("tiny-gemma", "tiny-gemma-it", "tiny-mistral", "tiny-mistral-it")


@dataclass(frozen=True)
class Plan:
    """How long and how fast to pretrain."""

    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup: int = 50
    check_every: int = 100
    instruction_share: float = 0.3
    seed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=NAMES, help="one model instead of all four")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "sparta_bench" / "tiny_models", help="target folder"
    )
    parser.add_argument("--conf", type=Path, default=ROOT / "conf" / "task", help="task YAMLs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bar()
    prompts = read_prompts(args.conf)
    for name in [args.only] if args.only else NAMES:
        started = time.perf_counter()
        build(name, args.out / name, prompts, Plan())
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)


def read_prompts(folder: Path) -> dict[str, dict[str, Any]]:
    """The ``prompt`` section of every task's YAML, by task."""
    return {
        task: yaml.safe_load((folder / f"{task}.yaml").read_text())["prompt"] for task in TINY_TASKS
    }


def render_prompt(prompt: dict[str, Any], row: data_sets.Row) -> str:
    """The instruction input of a row, up to and including ``Response:``."""
    texts = [str(value).strip() for column, value in row.items() if column != "label"]
    lines = [f"{field}: {text}" for field, text in zip(prompt["fields"], texts, strict=True)]
    head = f"{prompt['instruction']} Respond {prompt['answers_text']}."
    return "\n".join([head, *lines, "Response:"])


def answer(prompt: dict[str, Any], row: data_sets.Row) -> str:
    """The right answer's word."""
    return str(prompt["answers"][int(str(row["label"]))])


# ---------------------------------------------------------------------------------------------
# Tokenizer


def build_tokenizer(family: str, prompts: dict[str, dict[str, Any]]) -> PreTrainedTokenizerFast:
    """One token per word, mark or line break; BOS is put in front, as in the real ones."""
    specials = (
        ["<pad>", "<eos>", "<bos>", "<unk>"] if family == "gemma" else ["<unk>", "<s>", "</s>"]
    )
    bos, eos = ("<bos>", "<eos>") if family == "gemma" else ("<s>", "</s>")
    splitter = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    words = sorted(
        {
            word
            for text in _sample_texts(prompts)
            for word, _ in splitter.pre_tokenize_str(text.lower())
        }
    )
    vocabulary = {word: index for index, word in enumerate([*specials, *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = splitter
    core.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocabulary[bos])]
    )
    pad = {"pad_token": "<pad>"} if family == "gemma" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=bos, eos_token=eos, unk_token="<unk>",
        model_max_length=512, clean_up_tokenization_spaces=False, **pad,
    )  # fmt: skip


def _sample_texts(prompts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Enough text to meet every word of the grammar and of the prompts."""
    yield from itertools.islice(tiny_corpus.documents(seed=0, easy_first=0), 20_000)
    rng = Random("vocabulary")
    for task, prompt in prompts.items():
        for _ in range(500):
            yield render_prompt(prompt, data_sets.make_row(task, rng))
        yield " ".join(prompt["answers"])


# ---------------------------------------------------------------------------------------------
# Models


def build_model(family: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A fresh model of a few hundred thousand parameters, in float32."""
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 512,
        # At the usual 0.02 a frozen model this narrow shows nothing to a classification head.
        "initializer_range": 0.1,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "gemma":
        return GemmaForCausalLM(GemmaConfig(**shape, num_key_value_heads=1))
    return MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=None))


def build(name: str, folder: Path, prompts: dict[str, dict[str, Any]], plan: Plan) -> None:
    """Pretrain one tiny model and save it with its tokenizer."""
    family = name.split("-")[1]
    instruct = name.endswith("-it")
    tokenizer = build_tokenizer(family, prompts)
    torch.manual_seed(plan.seed)
    model = build_model(family, tokenizer)
    print(f"{name}: {model.num_parameters():,} parameters, {len(tokenizer)} words", flush=True)

    def render(task: str, row: data_sets.Row) -> str:
        return f"{render_prompt(prompts[task], row)} {answer(prompts[task], row)}"

    texts = tiny_corpus.documents(
        seed=plan.seed,
        easy_first=plan.steps * plan.batch_size // 4,
        render=render if instruct else None,
        instruction_share=plan.instruction_share,
    )
    pretrain(name, model, tokenizer, texts, plan, prompts if instruct else None)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # safetensors writes files that only their owner may read; these are to be installed for all.
    (folder / "model.safetensors").chmod(0o644)


def pretrain(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterator[str],
    plan: Plan,
    prompts: dict[str, dict[str, Any]] | None,
) -> None:
    """Train in place; with prompts, end on the checkpoint of the best zero-shot dev accuracy."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, plan))
    best_score, best_state = -1.0, None
    recent: list[float] = []
    model.train()
    for step, batch in enumerate(_batches(texts, tokenizer, plan.batch_size), start=1):
        loss = lm_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        recent = [*recent[-49:], loss.item()]
        if step % plan.check_every == 0 or step == plan.steps:
            line = f"{name}: step {step}, loss {sum(recent) / len(recent):.3f} nats"
            if prompts is not None:
                scores = {
                    task: zero_shot(model, tokenizer, prompts[task], task)
                    for task in (TINY_TASKS if step == plan.steps else ("sst2", "imdb"))
                }
                line += "".join(f", {task} {score:.3f}" for task, score in scores.items())
                score = (scores["sst2"] + scores["imdb"]) / 2
                if step >= plan.steps // 2 and score > best_score:
                    best_score = score
                    best_state = {k: v.clone() for k, v in model.state_dict().items()}
            print(line, flush=True)
        if step == plan.steps:
            break
    if best_state is not None:
        model.load_state_dict(best_state)


def _rate(step: int, plan: Plan) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def _batches(
    texts: Iterator[str], tokenizer: PreTrainedTokenizerFast, size: int
) -> Iterator[torch.Tensor]:
    """Token batches, -1 where padded; neighbours in length share a batch to save padding."""
    rng = Random("batches")
    while True:
        pool = list(itertools.islice(texts, size * 8))
        rows = sorted(tokenizer(pool)["input_ids"], key=len)
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        while batches:
            chosen = batches.pop(rng.randrange(len(batches)))
            ended = [torch.tensor([*row, tokenizer.eos_token_id]) for row in chosen]
            yield torch.nn.utils.rnn.pad_sequence(ended, batch_first=True, padding_value=-1)


def lm_loss(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss in nats over the tokens that are not padding."""
    # Right padding under a causal mask reaches no token that counts, so no mask is needed.
    logits = model(input_ids=batch.clamp(min=0)).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=-1
    )


@torch.no_grad()
def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: dict[str, Any],
    task: str,
    count: int = 400,
) -> float:
    """Accuracy of the answer words' logits after ``Response:`` on fresh development rows."""
    model.eval()
    rng = Random(f"zero-shot/{task}")
    answers = [
        tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in prompt["answers"]
    ]
    hits = 0
    for _ in range(count // 50):
        rows = [data_sets.make_row(task, rng) for _ in range(50)]
        encoded = tokenizer([render_prompt(prompt, row) for row in rows])["input_ids"]
        ends = torch.tensor([len(ids) - 1 for ids in encoded])
        tokens = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(ids) for ids in encoded], batch_first=True
        )
        logits = model(input_ids=tokens).logits[torch.arange(len(rows)), ends][:, answers]
        labels = torch.tensor([int(str(row["label"])) for row in rows])
        hits += int((logits.argmax(-1) == labels).sum())
    model.train()
    return hits / count


if __name__ == "__main__":
    main()
