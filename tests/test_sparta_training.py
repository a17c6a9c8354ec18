"""SpaRTA in somebody else's training: optimizers, autocast, checkpointing, compile, DDP."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from small_models import SMALL, batch, classifier, same_values, values_of
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from sparta_bench.sparta import SpartaAdapter


def losses(
    model: nn.Module,
    adapter: SpartaAdapter,
    steps: int = 4,
    optimizer: Callable[..., Any] = torch.optim.AdamW,
    forward: Callable[..., Any] | None = None,
    around: Callable[[], Any] = contextlib.nullcontext,
    **options: Any,
) -> list[float]:
    """The losses of a few plain steps, which call nothing of the adapter."""
    running = optimizer(adapter.parameters(), lr=1e-2, **options)
    found = []
    for _ in range(steps):
        with around():
            loss = (model if forward is None else forward)(**batch()).loss
        loss.backward()
        running.step()
        running.zero_grad()
        found.append(loss.item())
    return found


def plain_losses(**options: Any) -> list[float]:
    model = classifier()
    return losses(model, SpartaAdapter(model, 0.2, 0), **options)


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.AdamW, {"foreach": False}),
        (torch.optim.AdamW, {"foreach": True}),
        (torch.optim.AdamW, {"fused": True}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.SGD, {"fused": True}),
        (torch.optim.Adagrad, {}),
        (torch.optim.RMSprop, {}),
        (torch.optim.NAdam, {}),
        (torch.optim.Adamax, {}),
        (torch.optim.Rprop, {}),
    ],
)
def test_every_optimizer_changes_the_weights(optimizer: Any, options: dict[str, Any]) -> None:
    model = classifier()
    before = values_of(model)
    adapter = SpartaAdapter(model, 0.2, 0)
    found = losses(model, adapter, optimizer=optimizer, **options)
    assert len(set(found)) == len(found)
    now = dict(model.named_parameters())
    for name, places in adapter.indices.items():
        changed = (now[f"model.{name}"] != before[f"model.{name}"]).flatten()
        assert bool(changed[places.long()].any()), name
        changed[places.long()] = False
        assert not bool(changed.any()), name
    # fused, foreach and plain are one algorithm
    if optimizer is torch.optim.AdamW:
        assert found == pytest.approx(plain_losses(foreach=False), rel=1e-6)


def test_an_evaluation_between_steps_is_never_stale() -> None:
    model = classifier()
    adapter = SpartaAdapter(model, 0.2, 0)
    running = torch.optim.AdamW(adapter.parameters(), lr=1e-1, fused=True)
    seen = []
    for _ in range(3):
        model(**batch()).loss.backward()
        running.step()
        running.zero_grad()
        with torch.no_grad():
            now = model.eval()(**batch()).logits
            adapter.merge()
            assert torch.equal(model(**batch()).logits, now)
        seen.append(now)
        model.train()
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_only_the_tensors_of_the_optimizer_that_stepped_are_written() -> None:
    model = classifier()
    adapter = SpartaAdapter(model, 0.2, 0)
    one, other = list(adapter.deltas)[:2]
    running = torch.optim.SGD([adapter.deltas[one]], lr=1.0)
    model(**batch()).loss.backward()
    tensors = dict(model.model.named_parameters())
    versions = {name: tensors[name]._version for name in (one, other)}
    running.step()
    assert tensors[one]._version > versions[one]
    assert tensors[other]._version == versions[other]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # its name changes in transformers 6
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model = classifier(use_cache=False).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:  # transformers' own advice where embeddings are frozen
        model.enable_input_require_grads()
    found = losses(model, SpartaAdapter(model, 0.2, 0))
    assert found == pytest.approx(plain_losses(), rel=1e-6)


def test_gradient_accumulation_and_clipping() -> None:
    whole, parts = classifier(), classifier()
    one, two = SpartaAdapter(whole, 0.2, 0), SpartaAdapter(parts, 0.2, 0)
    whole(**batch()).loss.backward()
    for start in (0, 2):
        half = {name: tensor[start : start + 2] for name, tensor in batch().items()}
        (parts(**half).loss / 2).backward()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    norm = nn.utils.clip_grad_norm_(two.parameters(), 1e-3)
    squares = sum(float(value.grad.double().pow(2).sum()) for value in one.parameters())
    assert float(norm) == pytest.approx(squares**0.5, rel=1e-5)
    after = sum(float(value.grad.double().pow(2).sum()) for value in two.parameters())
    assert after**0.5 == pytest.approx(1e-3, rel=1e-3)


def test_autocast_computes_as_a_plain_layer_under_autocast() -> None:
    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    dense, sampled, full = classifier(), classifier(), classifier()
    with autocast():
        expected = full(**batch()).loss
    expected.backward()
    for model, way in ((dense, "dense"), (sampled, "sampled")):
        adapter = SpartaAdapter(model, 0.2, 0, gradient=way)
        with autocast():
            loss = model(**batch()).loss
        loss.backward()
        assert torch.equal(loss, expected)
        for name, places in adapter.indices.items():
            grads = dict(full.model.named_parameters())[name].grad.view(-1)[places.long()]
            torch.testing.assert_close(adapter.deltas[name].grad, grads, rtol=0.05, atol=2e-4)
            assert adapter.deltas[name].grad.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["dense", "sampled"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compile_in_one_graph(gradient: str) -> None:
    model = classifier(use_cache=False)
    adapter = SpartaAdapter(model, 0.2, 0, gradient=gradient)
    compiled = torch.compile(model, fullgraph=True)
    found = losses(model, adapter, forward=compiled)
    assert found == pytest.approx(plain_losses(), rel=1e-5)


# ------------------------------------------------------------------------------------- DDP
def _in_two_processes(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    model = classifier()
    adapter = SpartaAdapter(model, 0.2, 0)
    parallel = nn.parallel.DistributedDataParallel(model)
    travelled: list[int] = []

    def count(state, bucket):  # DDP reads annotations, and wants types instead of their names
        travelled.append(bucket.buffer().numel())
        work = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return work.then(lambda done: done.value()[0] / 2)

    parallel.register_comm_hook(None, count)
    running = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(3):
        mine = {name: tensor[rank::2] for name, tensor in batch().items()}
        parallel(**mine).loss.backward()
        running.step()
        running.zero_grad()
    head = sum(value.numel() for value in adapter.head.values())
    assert sum(travelled) == 3 * (adapter.chosen + head), travelled
    assert not list(model.buffers()) or all(b.numel() < 64 for b in model.buffers())
    torch.save(values_of(model), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_with_ddp_only_what_trains_travels(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_in_two_processes, (port, str(tmp_path)), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    alone = classifier()
    losses(alone, SpartaAdapter(alone, 0.2, 0), steps=3)
    for name, tensor in alone.named_parameters():
        torch.testing.assert_close(one[name], tensor.detach(), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- Trainer
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_transformers_trainer_trains_evaluates_and_goes_back_to_the_best(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = classifier()
    before = values_of(model)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(1, 60, (48, 8), generator=generator)
    data = [{"input_ids": row, "labels": int(row[-1] > 30)} for row in rows]
    adapter = SpartaAdapter(model, 0.2, 0)
    settings = TrainingArguments(
        str(tmp_path / "out"),
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        learning_rate=0.3,  # too high, so that the last state is not the best
        lr_scheduler_type="constant",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, settings, train_dataset=data, eval_dataset=data)
    trainer.train()
    found = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(found) < found[-1]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(found), rel=1e-5)
    now = dict(model.model.named_parameters())
    for name, places in adapter.indices.items():
        total = adapter.originals[name] + adapter.deltas[name]
        assert torch.equal(now[name].view(-1)[places.long()], total)
    adapter.save(tmp_path / "adapter")
    logits = model.eval()(**batch()).logits
    adapter.detach()
    assert same_values(model, before)
    SpartaAdapter.load(model, tmp_path / "adapter")
    assert torch.equal(model(**batch()).logits, logits)


OTHERS: dict[str, dict[str, Any]] = {
    "bert": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},  # its linear layers are transposed ones
    "mixtral": {**SMALL, "num_local_experts": 2},  # experts share one three-dimensional weight
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    "gemma3_text": SMALL,
    "deberta-v2": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16},
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("model_type", OTHERS)
def test_other_architectures_get_the_plain_gradient(model_type: str) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        size = {"vocab_size": 64, "num_labels": 2, **special, **OTHERS[model_type]}
        config = AutoConfig.for_model(model_type, **size)
        return AutoModelForSequenceClassification.from_config(config).eval()

    examples = batch()
    examples["input_ids"][:, -1] = 1
    plain, ours = build(), build()
    plain(**examples).loss.backward()
    before = values_of(ours)
    adapter = SpartaAdapter(ours, 0.2, 0)
    ours(**examples).loss.backward()
    tensors = dict(plain.base_model.named_parameters())
    assert adapter.chosen > 0.15 * sum(tensors[name].numel() for name in adapter.deltas)
    for name, places in adapter.indices.items():
        expected = tensors[name].grad
        if expected is None:  # the classifier does not use it
            assert adapter.deltas[name].grad is None, name
            continue
        torch.testing.assert_close(
            adapter.deltas[name].grad, expected.view(-1)[places.long()], rtol=1e-4, atol=1e-6
        )
    for name, parameter in adapter.head.items():
        torch.testing.assert_close(parameter.grad, dict(plain.named_parameters())[name].grad)
    adapter.detach()
    assert same_values(ours, before)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_over_an_attached_model_is_refused() -> None:
    model = classifier()
    adapter = SpartaAdapter(model, 0.2, 7)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))
    trainable = [value for value in wrapped.parameters() if value.requires_grad]
    running = torch.optim.AdamW(trainable, lr=1e-2)
    wrapped(**batch()).loss.backward()
    with pytest.raises(
        RuntimeError, match="peft was put over a model that carries a SpartaAdapter"
    ):
        running.step()
    adapter.detach()
    running.step()  # peft's own from here on
