"""A plain `Trainer` script, as one writes it without this project; `end_to_end.py` runs it.

    python scripts/trainer_baseline.py --model DIR --data DIR --method lora --out DIR ...

Reads train.jsonl, dev.jsonl and test.jsonl (`text`, `label`), trains with batches grouped by
length, keeps the checkpoint with the lowest dev loss, scores test, and writes `scores.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main() -> None:
    """Train, score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--method", choices=("full_ft", "lora", "peft-sparta"), required=True)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--eval-every", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=2, dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    wrapped = _with_method(model, options.method, options.density)
    splits = {name: _encoded(options.data / f"{name}.jsonl", tokenizer) for name in SPLITS}
    keeps_best = options.method != "peft-sparta"
    trainer = Trainer(
        wrapped,
        TrainingArguments(
            str(options.out / "checkpoints"),
            learning_rate=options.rate,
            num_train_epochs=1,
            warmup_steps=0.05,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=2 * options.batch,
            train_sampling_strategy="group_by_length",
            eval_strategy="steps",
            eval_steps=options.eval_every,
            # the Trainer can neither save nor load the authors' module: its last state is scored
            save_strategy="steps" if keeps_best else "no",
            save_steps=options.eval_every,
            save_total_limit=1,
            load_best_model_at_end=keeps_best,
            metric_for_best_model="eval_loss",
            label_names=["labels"],
            logging_steps=options.eval_every,
            remove_unused_columns=False,  # the names of a wrapped model's arguments cannot be read
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=0,
        ),
        train_dataset=splits["train"],
        eval_dataset=splits["dev"],
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float((p[0].argmax(-1) == p[1]).mean())},
    )
    trainer.train()
    if not keeps_best:
        wrapped.save(str(options.out), merged=False)  # type: ignore[operator]
    scores = trainer.evaluate(splits["test"])
    trained = sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
    (options.out / "scores.json").write_text(
        json.dumps({
            "test_loss": scores["eval_loss"],
            "test_accuracy": scores["eval_accuracy"],
            "trained": trained,
        })
    )  # fmt: skip


SPLITS = ("train", "dev", "test")


def _with_method(model: Any, method: str, density: float) -> nn.Module:
    if method == "lora":
        from peft import LoraConfig, get_peft_model

        # the paper's: r = 8 on query and value projections; no dropout
        wrapped: nn.Module = get_peft_model(
            model,
            LoraConfig(
                task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]
            ),
        )
        return wrapped
    if method == "peft-sparta":
        from peft_sparta.sparta import SpaRTA  # type: ignore[import-untyped, import-not-found]

        # it counts embeddings and head in; ours are drawn from the rest, and the head is on top
        total = sum(value.numel() for value in model.parameters())
        rest = total - model.get_input_embeddings().weight.numel() - model.score.weight.numel()
        trained = density * rest + model.score.weight.numel()
        wrapped = SpaRTA(model, 1 - trained / total, ["embed_tokens"])
        theirs = type(wrapped)

        def train(self: Any, mode: bool = True) -> Any:
            """The package's takes no mode and returns nothing, which the Trainer counts on."""
            (theirs.train if mode else theirs.eval)(self)
            return self

        wrapped.__class__ = type("SpaRTAInTrainer", (theirs,), {"train": train})
        return wrapped
    return model  # type: ignore[no-any-return]


def _encoded(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ids = tokenizer([row["text"] for row in rows])["input_ids"]
    return [{"input_ids": i, "labels": row["label"]} for i, row in zip(ids, rows, strict=True)]


if __name__ == "__main__":
    main()
