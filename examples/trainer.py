"""SpaRTA in transformers' own Trainer; the lines that it takes are marked.

    python examples/trainer.py [--model FOLDER_OR_NAME] [--out FOLDER]

Without `--model` it fine-tunes the small model that comes with sparta-bench, on generated
sentences, on a CPU, offline, in seconds.
"""

from __future__ import annotations

import argparse
from importlib import resources
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from sparta_bench.data.generated import generate
from sparta_bench.sparta import SpartaAdapter  # 1

EMBEDDED = str(resources.files("sparta_bench") / "tiny_models" / "tiny-gemma")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--out", default="sparta-adapter")
    options = parser.parse_args()

    if options.model == EMBEDDED:
        torch.set_num_threads(1)  # it is so small that threads only wait for each other
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=2, dtype=torch.float32
    )
    splits = generate("sst2")

    def encoded(rows: Any) -> list[dict[str, Any]]:
        ids = tokenizer([row["sentence"] for row in rows])["input_ids"]
        return [{"input_ids": i, "labels": row["label"]} for i, row in zip(ids, rows, strict=True)]

    train, dev = encoded(splits["train"][:-300]), encoded(splits["train"][-300:])
    test = encoded(splits["validation"])
    parameters = sum(parameter.numel() for parameter in model.parameters())

    adapter = SpartaAdapter(model, density=0.05, seed=0)  # 2
    trainer = Trainer(
        model,
        TrainingArguments(
            f"{options.out}-checkpoints",
            learning_rate=1e-2,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            save_total_limit=1,
            report_to=[],
            seed=0,
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        eval_dataset=dev,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p[0].argmax(-1) == p[1]))},
    )
    trainer.train()
    trained = trainer.evaluate(test)
    adapter.save(options.out)  # 3
    adapter.detach()  # the base model again, bit for bit
    base = trainer.evaluate(test)
    SpartaAdapter.load(model, options.out)  # 4: later, in another process, on the same base model
    again = trainer.evaluate(test)

    print(f"adapter in {options.out}, for a model of {parameters:,} scalars")
    for name, scores in (("base", base), ("trained", trained), ("loaded again", again)):
        print(f"{name}: loss {scores['eval_loss']:.4f}, accuracy {scores['eval_accuracy']:.2%}")


if __name__ == "__main__":
    main()
