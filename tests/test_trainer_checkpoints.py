"""Checkpoints of an attached model: transformers' Trainer, `save_pretrained`, `load_state_dict`,
and the base model in between."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import batch, classifier, same_values, values_of
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.trainer_callback import AdapterCheckpoints

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def trained(
    model: nn.Module, folder: Path, callbacks: list[Any], resume: bool = False, **settings: Any
) -> Trainer:
    rows = torch.randint(1, 60, (48, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": int(row[-1] > 30)} for row in rows]
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        num_train_epochs=3,
        learning_rate=0.3,
        lr_scheduler_type="constant",
        eval_strategy="epoch",
        save_strategy="epoch",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def after_steps(model: nn.Module, adapter: SpartaAdapter, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(steps):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("alone", [True, False], ids=["deltas alone", "whole model"])
def test_a_resumed_training_ends_as_one_that_was_not_cut(
    tmp_path: Path, alone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def attached() -> tuple[nn.Module, SpartaAdapter, list[Any]]:
        model = classifier()
        adapter = SpartaAdapter(model, 0.2, 0)
        return model, adapter, [AdapterCheckpoints(adapter)] if alone else []

    model, adapter, callbacks = attached()
    trained(model, tmp_path, callbacks)
    (tmp_path / "checkpoint-18").rename(tmp_path / "gone")  # cut after the second of three epochs
    again, resumed, callbacks = attached()
    with caplog.at_level(logging.WARNING, "transformers"):
        trained(again, tmp_path, callbacks, resume=True)
    assert [entry.getMessage() for entry in caplog.records if "keys" in entry.getMessage()] == []
    for name, deltas in adapter.deltas.items():
        # from a whole model deltas are differences of weights, which float32 rounds
        torch.testing.assert_close(
            resumed.deltas[name], deltas, rtol=0, atol=0 if alone else 1e-5, msg=name
        )
    assert same_values(again, values_of(model)) or not alone
    kept = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    expected = {*adapter.delta_names, "score.weight"} if alone else {*values_of(classifier())}
    assert set(kept) == expected


def test_the_best_checkpoint_of_deltas_comes_back_and_later_saves_are_whole(tmp_path: Path) -> None:
    model = classifier()
    adapter = SpartaAdapter(model, 0.2, 0)
    trainer = trained(model, tmp_path, [AdapterCheckpoints(adapter)], load_best_model_at_end=True)
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    trainer.save_model(str(tmp_path / "whole"))
    assert set(load_file(tmp_path / "whole" / "model.safetensors")) == {*values_of(classifier())}


def test_what_save_pretrained_writes_is_the_plain_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = classifier()
    adapter = SpartaAdapter(model, 0.2, 0)
    logits = after_steps(model, adapter).eval()(**batch()).logits
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING, "transformers"):
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert [entry for entry in caplog.records if "LOAD REPORT" in entry.getMessage()] == []
    assert torch.equal(plain.eval()(**batch()).logits, logits)
    adapter.detach()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert same_values(model, values_of(classifier()))


def test_loading_a_state_brings_weights_and_deltas_together() -> None:
    model = classifier()
    adapter = SpartaAdapter(model, 0.2, 0)
    state = {k: v.clone() for k, v in after_steps(model, adapter).state_dict().items()}
    logits = model.eval()(**batch()).logits
    other = classifier()
    own = SpartaAdapter(other, 0.2, 0)
    deltas = {name: value for name, value in state.items() if name in own.delta_names}
    other.load_state_dict({**deltas, "score.weight": state["score.weight"]}, strict=False)
    assert torch.equal(other.eval()(**batch()).logits, logits)
    own.detach()
    assert same_values(other, values_of(classifier()))
    own = SpartaAdapter(other, 0.2, 0)
    other.load_state_dict({k: v for k, v in state.items() if k not in deltas})  # strict
    own.merge()
    torch.testing.assert_close(other(**batch()).logits, logits, rtol=1e-6, atol=1e-6)


def test_off_gives_the_base_model_and_then_the_trained_one_bit_for_bit() -> None:
    model = classifier(dtype=torch.bfloat16)
    base = values_of(model)
    adapter = SpartaAdapter(model, 0.2, 0)
    after_steps(model, adapter)
    before = values_of(model)
    with adapter.off():
        with adapter.off():
            pass
        now = values_of(model)
        assert all(torch.equal(now[name], value.to(now[name])) for name, value in base.items())
    assert same_values(model, before)
    with pytest.raises(RuntimeError, match="a fault inside"), adapter.off():
        raise RuntimeError("a fault inside")
    assert same_values(model, before)
    adapter.detach()
    with pytest.raises(ValueError, match="off: the adapter is detached"), adapter.off():
        pass
