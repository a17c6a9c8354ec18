"""One training loop for every method, on accelerate.

Read `train` first: it is the experiment's protocol. The loop knows of the method only the values
that train and that they must be written into the model after they changed (`Trained`).

With several processes each takes its share of every batch; only the gradients of what trains
travel between them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from sparta_bench.config.schema import TrainConfig
from sparta_bench.data.batches import BatchSource, training_batches
from sparta_bench.errors import TrainingError, refusal_of
from sparta_bench.methods.trained import Trained
from sparta_bench.models.classifier import Classifier, why_not_finite
from sparta_bench.models.features import FeatureClassifier
from sparta_bench.training import checkpoint as ckpt
from sparta_bench.training.evaluation import evaluate, evaluation_batch_size
from sparta_bench.training.gradients import refuse_untrained
from sparta_bench.training.optimizer import build_optimizer, learning_rate_at
from sparta_bench.training.progress import Reporter
from sparta_bench.training.steps import plan_steps

# Looking at a loss makes a GPU wait for it; so losses are looked at in groups.
STEPS_BETWEEN_LOOKS = 10


@dataclass
class Progress:
    """Where the training is; all that a checkpoint needs beside tensors."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    evaluations_without_gain: int = 0
    stopped_early: bool = False
    train_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    examples: int = 0
    tokens: int = 0
    loss_sum: float = 0.0  # over the examples since the last evaluation
    loss_examples: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


class Training:
    """The training of one classifier with one method."""

    def __init__(
        self,
        accelerator: Accelerator,
        classifier: Classifier | FeatureClassifier,
        trained: Trained,
        train_set: BatchSource,
        dev_set: BatchSource,
        settings: TrainConfig,
        seed: int,
        checkpoint: ckpt.Checkpoint | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.classifier = classifier
        self.trained = trained
        self.train_set = train_set
        self.train_lengths = train_set.lengths()
        self.dev_set = dev_set
        self.settings = settings
        self.seed = seed
        self.checkpoint = checkpoint
        self.plan = plan_steps(len(train_set), settings)
        self.optimizer: Optimizer = build_optimizer(trained.groups(settings.weight_decay), settings)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ the protocol
    def train(
        self, reporter: Reporter, after_step: Callable[[int], None] | None = None
    ) -> Progress:
        """Train until the steps are used up or the dev loss no longer falls, then restore the
        state with the lowest dev loss.

        Raises
        ------
        TrainingError
            If a loss is not a number or infinite, or a value has no gradient in the first step.
        """
        resumed = self._resume(reporter)
        if not resumed:
            self._evaluate_dev(reporter)
        progress = self.progress
        looked_at = time.perf_counter()
        pending: list[tuple[int, Tensor, int]] = []
        for rows in self._batches_to_go():
            rate = learning_rate_at(progress.step, self.plan.steps, self.settings)
            pending.append((progress.step + 1, self._step(rows, rate), len(rows)))
            progress.step += 1
            evaluate = progress.step % self.plan.eval_every == 0 or progress.step == self.plan.steps
            save = self._checkpoint_is_due()
            if evaluate or save or len(pending) == STEPS_BETWEEN_LOOKS:
                loss = self._look_at(pending, rate)
                reporter.step(progress.step, loss, rate)
                progress.train_seconds += time.perf_counter() - looked_at
                looked_at = time.perf_counter()
            if evaluate:
                self._evaluate_dev(reporter)
            if save:
                self._save_checkpoint(reporter)
            if evaluate or save:  # neither is time of training
                looked_at = time.perf_counter()
            if after_step is not None:
                after_step(progress.step)
            if progress.stopped_early:
                break
        if self.best:
            self.trained.restore(self.best)
        return progress

    def evaluate(self, data: BatchSource) -> dict[str, float]:
        """Loss (nats per example), accuracy and mcc of the present state."""
        started = time.perf_counter()
        size = evaluation_batch_size(self.settings)
        scores = evaluate(self.accelerator, self.classifier, data, size)
        self.progress.evaluation_seconds += time.perf_counter() - started
        return scores

    # ------------------------------------------------------------------------- steps
    def _batches_to_go(self) -> Iterator[list[int]]:
        while self.progress.step < self.plan.steps and not self.progress.stopped_early:
            epoch, done = divmod(self.progress.step, self.plan.steps_per_epoch)
            batches = training_batches(
                self.train_lengths,
                self.settings.batch_size,
                self.settings.bucket_batches,
                f"{self.seed}:{epoch}",
            )
            left = self.plan.steps - self.progress.step
            yield from batches[done : done + left]

    def _step(self, rows: list[int], rate: float) -> Tensor:
        """One optimizer step; returns the batch's mean loss, still on the device."""
        self.classifier.train()
        # dropout is drawn by process, since each has other examples
        self._seed_step(self.accelerator.process_index)
        total = torch.zeros((), device=self.device)
        size = math.ceil(len(rows) / self.settings.accumulation_steps)
        for start in range(0, len(rows), size):
            total += self._backward(rows[start : start + size], len(rows))
        if self.progress.step == 0:
            refuse_untrained(self.accelerator, self.trained.values)
        values = [value for group in self.optimizer.param_groups for value in group["params"]]
        if self.accelerator.num_processes > 1:
            self._sum_over_processes(values)
            total = self.accelerator.reduce(total, "sum")
        if self.settings.max_grad_norm:
            grads = [value.grad for value in values if value.grad is not None]
            norm = get_total_norm(grads)
            clip_grads_with_norm_(values, self.settings.max_grad_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # stochastic rounding is not: all processes must go on with the same values
        self._seed_step("update")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.trained.write()
        self.progress.examples += len(rows)
        self.progress.tokens += sum(self.train_lengths[row] for row in rows)
        return total

    def _seed_step(self, stream: int | str) -> None:
        """Seed torch's generators for one stream of this step. Nothing that ran before changes what
        is drawn, so a resumed run draws the same."""
        text = f"{self.seed}:{(self.progress.step, stream)}"
        torch.manual_seed(int.from_bytes(sha256(text.encode()).digest()[:7]))

    def _backward(self, rows: list[int], batch_examples: int) -> Tensor:
        """Gradient of this process's share of `rows`, weighed so that all shares of a batch add
        up to its mean over examples."""
        rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        if not rows:
            return torch.zeros((), device=self.device)
        batch = self._to_device(self.train_set.collate(rows))
        labels = batch.pop("labels")
        loss = F.cross_entropy(self.classifier(**batch), labels, reduction="sum") / batch_examples
        self.accelerator.backward(loss)
        return loss.detach()

    def _sum_over_processes(self, values: list[Tensor]) -> None:
        for value in values:
            if value.grad is None:  # this process had no example of the batch
                value.grad = torch.zeros_like(value)
            value.grad = self.accelerator.reduce(value.grad, "sum")

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _look_at(self, pending: list[tuple[int, Tensor, int]], rate: float) -> float:
        """Add the pending losses up, refuse any that is no number; returns the last."""
        last = math.nan
        for step, loss, examples in pending:
            last = float(loss)
            if not math.isfinite(last):
                raise TrainingError(
                    f"the training loss is {last} at step {step}: {self._cause(step, rate)}"
                )
            self.progress.loss_sum += last * examples
            self.progress.loss_examples += examples
        pending.clear()
        return last

    def _cause(self, step: int, rate: float) -> str:
        """Why a loss at this step (0: before the first) is probably no number."""
        if step > 1:
            return (
                f"the learning rate of {rate:.1e} is probably too high; try a third of it, or "
                f"clip with train.max_grad_norm (now {self.settings.max_grad_norm:g}; 0 is off)"
            )
        return why_not_finite(self.classifier)

    # -------------------------------------------------------------------- evaluation
    def _evaluate_dev(self, reporter: Reporter) -> None:
        """Note the dev scores; keep the state if its loss is the lowest. The untrained state is
        noted, but never the result."""
        progress, settings = self.progress, self.settings
        scores = self.evaluate(self.dev_set)
        if not math.isfinite(scores["loss"]):
            cause = self._cause(progress.step, self._last_rate())
            raise TrainingError(
                f"the dev loss is {scores['loss']} after step {progress.step}: {cause}"
            )
        gained = scores["loss"] < progress.best_loss - settings.min_improvement
        better = progress.step > 0 and scores["loss"] < progress.best_loss
        if progress.step > 0:
            progress.evaluations_without_gain = (
                0 if gained else progress.evaluations_without_gain + 1
            )
        if better:
            progress.best_loss, progress.best_step = scores["loss"], progress.step
            self.best = self.trained.snapshot()
        self._note(scores)
        patience = settings.patience
        progress.stopped_early = bool(patience) and progress.evaluations_without_gain >= patience
        reporter.evaluated(progress.step, scores, better)

    def _last_rate(self) -> float:
        return learning_rate_at(max(self.progress.step - 1, 0), self.plan.steps, self.settings)

    def _note(self, scores: dict[str, float]) -> None:
        progress = self.progress
        seen = progress.loss_examples
        progress.history.append(
            {
                "step": progress.step,
                "epoch": round(progress.step / self.plan.steps_per_epoch, 4),
                "train_loss": progress.loss_sum / seen if seen else None,
                "dev_loss": scores["loss"],
                "dev_accuracy": scores["accuracy"],
                "dev_mcc": scores["mcc"],
                "learning_rate": self._last_rate(),
            }
        )
        progress.loss_sum, progress.loss_examples = 0.0, 0

    # ------------------------------------------------------------------- checkpoints
    def _checkpoint_is_due(self) -> bool:
        every = self.settings.checkpoint_every
        return every is not None and self.progress.step % every == 0

    def _save_checkpoint(self, reporter: Reporter) -> None:
        """Without one the training is worth as much as before, so a full disk does not end it."""
        if self.checkpoint is None or not self.accelerator.is_main_process:
            return
        tensors: dict[str, Tensor] = {}
        tensors |= {f"value.{name}": value for name, value in self.trained.values.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= ckpt.optimizer_tensors(self.optimizer)
        try:
            self.checkpoint.save(vars(self.progress), tensors)
        except OSError as error:
            reporter.warn(f"{refusal_of(error)}; training goes on without this checkpoint")

    def _resume(self, reporter: Reporter) -> bool:
        """Go back to the checkpoint, if there is one of this run."""
        found = None if self.checkpoint is None else self.checkpoint.load()
        if isinstance(found, tuple) and not self._fits(*found):
            found = "is not as this version writes it"
        if isinstance(found, str):
            assert self.checkpoint is not None
            reporter.warn(f"{self.checkpoint.path}: {found}; the run begins anew")
        progress, tensors = found if isinstance(found, tuple) else ({"step": -1}, {})
        if not self._all_have(progress["step"]) or not tensors:
            return False
        self.progress = Progress(**progress)
        self.trained.restore(_with_prefix(tensors, "value."))
        self.best = _with_prefix(tensors, "best.")
        ckpt.restore_optimizer(self.optimizer, tensors)
        return True

    def _all_have(self, step: int) -> bool:
        """Whether all processes of the run are to go on from there; one may not see the folder."""
        steps = self.accelerator.gather(torch.tensor([step], device=self.device))
        return bool((steps == step).all())

    def _fits(self, progress: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
        wanted = _shapes(self.trained.values)
        values, best = (_shapes(_with_prefix(tensors, part)) for part in ("value.", "best."))
        known = {field.name for field in fields(Progress)}
        return progress.keys() == known and values == wanted and best in ({}, wanted)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
