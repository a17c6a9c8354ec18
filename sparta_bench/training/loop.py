"""One training loop for every method, on accelerate.

Read `train` first: it is the experiment's protocol. The loop knows of the method only the values
that train and that they must be written into the model after they changed (`Trained`).

With several processes each takes its share of every batch; only the gradients of what trains
travel between them.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sparta_bench.config.schema import TrainConfig
from sparta_bench.data.tokenize import BatchSource, to_device, training_batches
from sparta_bench.errors import DivergedError, TrainingError, refusal_of
from sparta_bench.methods.trained import Trained
from sparta_bench.models.classifier import Classifier, why_not_finite
from sparta_bench.models.features import FeatureClassifier
from sparta_bench.training import checkpoint as ckpt
from sparta_bench.training.evaluation import Watch, evaluate
from sparta_bench.training.optimizer import build_optimizer, learning_rate_at
from sparta_bench.training.progress import ProgressReporter
from sparta_bench.training.steps import evaluation_size, plan_steps

# Looking at a loss makes a GPU wait for it; so losses are looked at in groups.
STEPS_BETWEEN_LOOKS = 10
# `layers.0.mlp.experts.3.w1.weight`: the list of experts, and one of them
EXPERT = re.compile(r"(.*experts)\.[^.]*\d\.")


Track = Callable[[int, Mapping[str, Any]], None]


def untracked(step: int, values: Mapping[str, Any]) -> None:
    """Where no tracker is asked for."""


class HopelessError(Exception):
    """The run was ended at an evaluation, since it can no longer win its race."""


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


@dataclass(eq=False)
class Training:
    """The training of one classifier with one method."""

    accelerator: Accelerator
    classifier: Classifier | FeatureClassifier
    trained: Trained
    train_set: BatchSource
    dev_set: BatchSource
    settings: TrainConfig
    seed: int
    checkpoint: ckpt.Checkpoint | None = None
    # dev scores before the first step, where another run of the same state has found them
    untrained: Mapping[str, float] | None = None
    # gets what a tracker shows of a step, under the names of the history and `batch_loss`
    track: Track = untracked

    def __post_init__(self) -> None:
        self.device: torch.device = self.accelerator.device
        self.train_lengths = self.train_set.lengths()
        self.plan = plan_steps(len(self.train_set), self.settings)
        groups = self.trained.groups(self.settings.weight_decay)
        # of values of which this process has its rows alone
        self.rows = {id(self.trained.values[name]) for name in self.trained.sharded}
        self.optimizer = build_optimizer(groups, self.settings)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ the protocol
    def train(
        self,
        reporter: ProgressReporter,
        after_step: Callable[[int], None] | None = None,
        why_hopeless: Callable[[Sequence[dict[str, Any]], int], str | None] | None = None,
    ) -> Progress:
        """Train until the steps are used up or the dev loss no longer falls, then restore the
        state with the lowest dev loss.

        `why_hopeless` is asked at each evaluation but the last with the history and the number of
        all steps, and ends the run with a reason.

        Raises
        ------
        TrainingError
            If a loss is not finite, or a value has no gradient in the first step.
        HopelessError
            If `why_hopeless` says so. Where checkpoints are on there is one of this step.
        """
        if not self._resume(reporter) and self.settings.eval_first:
            self._evaluate_dev(reporter, self.untrained)
        progress = self.progress
        looked_at = time.perf_counter()
        pending: list[tuple[int, Tensor, int]] = []
        reason: str | None = None
        for rows in self._batches_to_go():
            rate = learning_rate_at(progress.step, self.plan.steps, self.settings)
            pending.append((progress.step + 1, self._step(rows, rate), len(rows)))
            progress.step += 1
            evaluate = progress.step % self.plan.eval_every == 0 or progress.step == self.plan.steps
            every = self.settings.checkpoint_every
            save = every is not None and progress.step % every == 0
            if evaluate or save or len(pending) == STEPS_BETWEEN_LOOKS:
                loss = self._look_at(pending, rate)
                reporter.step(progress.step, loss)
                progress.train_seconds += time.perf_counter() - looked_at
                if not evaluate:
                    self._track({"batch_loss": loss, "learning_rate": rate})
                looked_at = time.perf_counter()
            if evaluate:
                self._evaluate_dev(reporter)
            is_last = progress.step == self.plan.steps or progress.stopped_early
            if evaluate and why_hopeless is not None and not is_last:
                reason = why_hopeless(progress.history, self.plan.steps)
                save |= every is not None and reason is not None
            if save:
                self._save_checkpoint(reporter)
            if reason is not None:
                raise HopelessError(reason)
            if evaluate or save:  # neither is time of training
                looked_at = time.perf_counter()
            if after_step is not None:
                after_step(progress.step)
            if progress.stopped_early:
                break
        if self.best:
            self.trained.restore(self.best)
        return progress

    def evaluate(self, data: BatchSource, watch: Watch = iter) -> dict[str, float]:
        """Loss (nats per example), accuracy and mcc of the present state."""
        started = time.perf_counter()
        size = evaluation_size(self.settings, self.device.type)
        scores = evaluate(self.accelerator, self.classifier, data, size, watch)
        self.progress.evaluation_seconds += time.perf_counter() - started
        return scores

    def summary(self) -> dict[str, Any]:
        """How far the training is, and how fast it was; for the record."""
        progress, seconds = self.progress, self.progress.train_seconds
        return {
            "steps": progress.step,
            "best_step": progress.best_step,
            "epochs": round(progress.step / self.plan.steps_per_epoch, 4),
            "stopped_early": progress.stopped_early,
            "seconds": round(seconds, 3),
            "evaluation_seconds": round(progress.evaluation_seconds, 3),
            "examples_per_second": round(progress.examples / seconds, 2) if seconds else None,
            "tokens_per_second": round(progress.tokens / seconds, 1) if seconds else None,
        }

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
            self._refuse_untrained()
        values = [value for group in self.optimizer.param_groups for value in group["params"]]
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, "sum")
            how = "mean" if self.classifier.sharded else "sum"
            for value in values:
                if value.grad is None:  # this process had no example of the batch
                    value.grad = torch.zeros_like(value)
                if id(value) not in self.rows:  # which have the mean of all processes already
                    value.grad = self.accelerator.reduce(value.grad, how)
        if self.settings.max_grad_norm:
            clip_grads_with_norm_(values, self.settings.max_grad_norm, self._norm_of(values))
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

    def _norm_of(self, values: list[Tensor]) -> Tensor:
        """The norm of all gradients; of sharded values over the rows of all processes."""
        norm = get_total_norm(
            [v.grad for v in values if v.grad is not None and id(v) not in self.rows]
        )
        if not self.rows:
            return norm
        own = get_total_norm([v.grad for v in values if v.grad is not None and id(v) in self.rows])
        squares: Tensor = self.accelerator.reduce(own.float().square(), "sum")
        return (squares + norm.float().square()).sqrt().to(norm.dtype)

    def _seed_step(self, stream: int | str) -> None:
        """Seed torch's generators for one stream of this step. Nothing that ran before changes what
        is drawn, so a resumed run draws the same."""
        text = f"{self.seed}:{(self.progress.step, stream)}"
        torch.manual_seed(int.from_bytes(sha256(text.encode()).digest()[:7]))

    def _backward(self, rows: list[int], batch_examples: int) -> Tensor:
        """Gradient of this process's share of `rows`, weighed so that all shares of a batch add
        up to its mean over examples."""
        world, sharded = self.accelerator.num_processes, self.classifier.sharded
        own = rows[self.accelerator.process_index :: world]
        if not own and not sharded:
            return torch.zeros((), device=self.device)
        # weights are gathered by all processes together: who has no example computes another's
        batch = to_device(self.train_set.collate(own or rows[:1]), self.device)
        labels = batch.pop("labels")
        loss = F.cross_entropy(self.classifier(**batch), labels, reduction="sum") / batch_examples
        if not sharded:
            self.accelerator.backward(loss)
            return loss.detach()
        loss = loss if own else 0 * loss
        self.accelerator.backward(world * loss)  # since FSDP takes the mean over processes
        return loss.detach()

    def _refuse_untrained(self) -> None:
        """Raise TrainingError if a value has no gradient in any process, and so never changes."""
        has_gradient = self.trained.has_gradient()
        here = torch.tensor([*map(float, has_gradient.values())], device=self.device)
        anywhere = self.accelerator.reduce(here, "sum") > 0
        names = never_trained(dict(zip(has_gradient, anywhere.tolist(), strict=True)))
        if names:
            others = f" and {len(names) - 1} others" if len(names) > 1 else ""
            raise TrainingError(
                "choose other tensors to train (method.targets), or another model: "
                f"{names[0]}{others} got no gradient in the first step, and would never change"
            )

    def _look_at(self, pending: list[tuple[int, Tensor, int]], rate: float) -> float:
        """Add the pending losses up; raise TrainingError unless finite. Returns the last."""
        last = math.nan
        for step, loss, examples in pending:
            last = float(loss)
            if not math.isfinite(last):
                kind = DivergedError if step > 1 else TrainingError
                raise kind(f"the training loss is {last} at step {step}: {self._cause(step, rate)}")
            self.progress.loss_sum += last * examples
            self.progress.loss_examples += examples
        pending.clear()
        return last

    def _cause(self, step: int, rate: float) -> str:
        """Why a loss at this step (0: before the first) is probably not finite."""
        if step > 1:
            return (
                f"the learning rate of {rate:.1e} is probably too high; try a third of it, or "
                f"clip with train.max_grad_norm (now {self.settings.max_grad_norm:g}; 0 is off)"
            )
        return why_not_finite(self.classifier)

    # -------------------------------------------------------------------- evaluation
    def _evaluate_dev(
        self, reporter: ProgressReporter, known: Mapping[str, float] | None = None
    ) -> None:
        """Append the dev scores to the history, those that are known or new ones; keep the state
        if its loss is the lowest. The untrained state has scores, but is never the result."""
        progress, settings = self.progress, self.settings
        scores = known or self.evaluate(self.dev_set, reporter.evaluating("dev"))
        if not math.isfinite(scores["loss"]):
            cause = self._cause(progress.step, self._last_rate())
            kind = DivergedError if progress.step > 1 else TrainingError
            raise kind(f"the dev loss is {scores['loss']} after step {progress.step}: {cause}")
        gained = scores["loss"] < progress.best_loss - settings.min_improvement
        better = progress.step > 0 and scores["loss"] < progress.best_loss
        if progress.step > 0:
            progress.evaluations_without_gain = (
                0 if gained else progress.evaluations_without_gain + 1
            )
        if better:
            progress.best_loss, progress.best_step = scores["loss"], progress.step
            self.best = self.trained.snapshot()
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
        self._track(progress.history[-1])
        progress.loss_sum, progress.loss_examples = 0.0, 0
        patience = settings.patience
        progress.stopped_early = bool(patience) and progress.evaluations_without_gain >= patience
        # the untrained state counts here, though it is never the result
        others = (entry["dev_loss"] for entry in progress.history[:-1])
        lowest = better and scores["loss"] < min(others, default=math.inf)
        reporter.evaluated(progress.step, scores, lowest)

    def _track(self, values: Mapping[str, Any]) -> None:
        speed = self.summary()["tokens_per_second"]
        self.track(self.progress.step, {**values, "tokens_per_second": speed})

    def _last_rate(self) -> float:
        return learning_rate_at(max(self.progress.step - 1, 0), self.plan.steps, self.settings)

    # ------------------------------------------------------------------- checkpoints
    def _save_checkpoint(self, reporter: ProgressReporter) -> None:
        """A full disk does not end the training, which is worth as much without a checkpoint."""
        is_main = self.accelerator.is_main_process
        if self.checkpoint is None or not (is_main or self.rows):
            return
        tensors: dict[str, Tensor] = {
            **{f"value.{name}": value for name, value in self.trained.values.items()},
            **{f"best.{name}": value for name, value in self.best.items()},
            **ckpt.optimizer_tensors(self.optimizer, self.trained.values),
        }

        def gathered(name: str, rows: Tensor) -> Tensor:
            every = self.trained.whole(name, rows)
            return every.cpu() if is_main else rows  # all of them fit into one host's memory

        if self.rows:  # the file is the same from any number of processes
            tensors = self._each(tensors, gathered)
        if not is_main:
            return
        try:
            self.checkpoint.save(vars(self.progress), tensors)
        except OSError as error:
            reporter.warn(f"{refusal_of(error)}; training goes on without this checkpoint")

    def _each(
        self, tensors: dict[str, Tensor], change: Callable[[str, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """What `change` makes of each tensor of a checkpoint and the name of its value."""
        names = list(self.trained.values)
        changed = {}
        for key, tensor in tensors.items():
            _, _, name = key.partition(".")
            if key.startswith("optimizer."):
                name = names[int(name.partition(".")[0])]
            changed[key] = change(name, tensor)
        return changed

    def _resume(self, reporter: ProgressReporter) -> bool:
        """Go back to the checkpoint, if there is one of this run."""
        state = None if self.checkpoint is None else self.checkpoint.load()
        if isinstance(state, tuple) and self.rows:
            state = state[0], self._each(state[1], self.trained.rows)
        if isinstance(state, tuple) and not self._fits(*state):
            state = "is not as this version writes it"
        if isinstance(state, str):
            assert self.checkpoint is not None
            reporter.warn(f"{self.checkpoint.path}: {state}; the run begins anew")
        progress, tensors = state if isinstance(state, tuple) else ({"step": -1}, {})
        # all processes go on from there, or none: one may not see the folder
        step = torch.tensor([progress["step"]], device=self.device)
        if not bool((self.accelerator.gather(step) == step).all()) or not tensors:
            return False
        self.progress = Progress(**progress)
        self.trained.restore(_with_prefix(tensors, "value."))
        self.best = _with_prefix(tensors, "best.")
        ckpt.restore_optimizer(self.optimizer, tensors, self.trained.values)
        reporter.resumed(self.progress.step)
        for row in self.progress.history:
            self.track(row["step"], row)
        return True

    def _fits(self, progress: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
        wanted = _shapes(self.trained.values)
        values, best = (_shapes(_with_prefix(tensors, part)) for part in ("value.", "best."))
        known = {field.name for field in fields(Progress)}
        return progress.keys() == known and values == wanted and best in ({}, wanted)


def never_trained(has_gradient: Mapping[str, bool]) -> list[str]:
    """The names without gradient, but for experts beside which others of the same layer have one:
    no token of the batch chose them, and one of a later batch may."""

    def experts_of(name: str) -> str | None:
        match = EXPERT.match(name)
        return match[1] if match else None

    trained_lists = {experts_of(name) for name, has in has_gradient.items() if has} - {None}
    return [
        name
        for name, has in has_gradient.items()
        if not has and experts_of(name) not in trained_lists
    ]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
