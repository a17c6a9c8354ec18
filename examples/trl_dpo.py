"""SpaRTA in TRL's DPOTrainer: a language model learns preferences, with no second model in memory.

    python examples/trl_dpo.py [--model FOLDER_OR_NAME] [--out FOLDER]

DPO compares with the model before training. An attached model is that model until the first step,
so `precompute_ref_log_probs=True` takes the reference's values from it; later, and in a loop of
your own, `with adapter.off():` gives the reference without a copy, as the last lines show. Without
`--model` it takes the small model that comes with sparta-bench: offline, on a CPU, in seconds.
Needs `pip install trl`.
"""

from __future__ import annotations

import argparse
from importlib import resources

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from sparta_bench.data.generated import generate
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.trainer_callback import AdapterCheckpoints

EMBEDDED = str(resources.files("sparta_bench") / "tiny_models" / "tiny-gemma")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--out", default="sparta-dpo")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.bos_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.bos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    rows = generate("sst2")["train"]
    liked = [row["sentence"] for row in rows if row["label"] == 1]
    disliked = [row["sentence"] for row in rows if row["label"] == 0]
    pairs = [
        {"prompt": "the", "chosen": f" {good}", "rejected": f" {bad}"}
        for good, bad in zip(liked[:128], disliked[:128], strict=True)
    ]

    adapter = SpartaAdapter(model, density=0.05, seed=0)
    trainer = DPOTrainer(
        model,
        args=DPOConfig(
            f"{options.out}-checkpoints",
            learning_rate=1e-2,
            num_train_epochs=2,
            per_device_train_batch_size=16,
            precompute_ref_log_probs=True,
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

    text = tokenizer(f"the {liked[0]}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        policy = model.eval()(text, labels=text).loss
        with adapter.off():
            reference = model(text, labels=text).loss
    print(f"nats per token of a liked text: {policy:.4f}, of the reference {reference:.4f}")


if __name__ == "__main__":
    main()
