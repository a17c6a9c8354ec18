"""The settings of a run that takes seconds."""

from __future__ import annotations

QUICK_RUN = ["train.max_steps=4", "train.eval_every=2", "task.max_train_examples=200"]
