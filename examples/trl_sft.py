"""SpaRTA in TRL's SFTTrainer: a language model learns to answer, 5 % of its scalars trained.

    python examples/trl_sft.py [--model FOLDER_OR_NAME] [--out FOLDER]

Without `--model` it takes the small model that comes with sparta-bench: offline, on a CPU, in
seconds. Needs `pip install trl`.
"""

from __future__ import annotations

import argparse
from importlib import resources

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sparta_bench.data.generated import generate
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.trainer_callback import AdapterCheckpoints

EMBEDDED = str(resources.files("sparta_bench") / "tiny_models" / "tiny-gemma")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--out", default="sparta-sft")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.bos_token
    tokenizer.eos_token = tokenizer.eos_token or tokenizer.bos_token
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    rows = [{"text": row["sentence"]} for row in generate("sst2")["train"][:256]]

    adapter = SpartaAdapter(model, density=0.05, seed=0)
    trainer = SFTTrainer(
        model,
        SFTConfig(
            f"{options.out}-checkpoints",
            learning_rate=1e-2,
            num_train_epochs=1,
            per_device_train_batch_size=16,
            max_length=64,
            logging_steps=4,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            seed=0,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[AdapterCheckpoints(adapter)],  # a checkpoint is as small as the adapter
    )
    trainer.train()
    adapter.save(options.out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.4f} at first, {losses[-1]:.4f} at last; adapter in {options.out}")


if __name__ == "__main__":
    main()
