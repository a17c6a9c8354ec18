"""SpaRTA in TRL's RewardTrainer: a reward model learns which of two texts is preferred.

    python examples/trl_reward.py [--model FOLDER_OR_NAME] [--out FOLDER]

Without `--model` it takes the small model that comes with sparta-bench: offline, on a CPU, in
seconds. Needs `pip install trl`.
"""

from __future__ import annotations

import argparse
from importlib import resources

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from sparta_bench.data.generated import generate
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.trainer_callback import AdapterCheckpoints

EMBEDDED = str(resources.files("sparta_bench") / "tiny_models" / "tiny-gemma")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--out", default="sparta-reward")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.bos_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.bos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    rows = generate("sst2")["train"]
    liked = [row["sentence"] for row in rows if row["label"] == 1]
    disliked = [row["sentence"] for row in rows if row["label"] == 0]
    pairs = [
        {"chosen": good, "rejected": bad}
        for good, bad in zip(liked[:256], disliked[:256], strict=True)
    ]

    adapter = SpartaAdapter(model, density=0.05, seed=0)  # the reward head trains in full
    trainer = RewardTrainer(
        model,
        RewardConfig(
            f"{options.out}-checkpoints",
            learning_rate=1e-2,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            max_length=64,
            logging_steps=4,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            seed=0,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[AdapterCheckpoints(adapter)],  # a checkpoint is as small as the adapter
    )
    trainer.train()
    adapter.save(options.out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last; adapter in {options.out}")


if __name__ == "__main__":
    main()
