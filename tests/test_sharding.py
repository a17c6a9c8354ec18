"""`train.sharding=fsdp`: FSDP2 with processes of gloo on a CPU, beside one process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sparta_bench.config.compose import compose
from sparta_bench.errors import InputError
from sparta_bench.records.record import identity_of
from sparta_bench.runs.run import run
from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.sharded import local, whole

QUICK = ["train.epochs=1", "train.max_steps=6", "train.eval_every=2", "task.max_train_examples=100"]
FSDP = "train.sharding=fsdp"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(results: Path, processes: int, *settings: str) -> list[subprocess.Popen[str]]:
    """A run in so many processes, as torchrun starts them."""
    command = [sys.executable, "-m", "sparta_bench.cli", *settings, "device=cpu"]
    command += [f"results_dir={results}", f"cache_dir={results.parent / 'cache'}"]
    port, several = free_port(), processes > 1
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begun = []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {key: str(value) for key, value in ranks.items()} if several else {}
        begun.append(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment | own)
        )
    return begun


def made(results: Path, processes: int, *settings: str) -> Path:
    """The folder of a run in so many processes."""
    ended = [(one.communicate(timeout=300)[1], one) for one in start(results, processes, *settings)]
    assert [one.returncode for _, one in ended] == [0] * processes, ended[0][0]
    (path,) = results.rglob("result.json")
    return path.parent


def record_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def losses_of(record: dict[str, Any]) -> list[float]:
    pairs = ((entry["train_loss"], entry["dev_loss"]) for entry in record["history"])
    return [loss for pair in pairs for loss in pair if loss is not None]


# ------------------------------------------------------------------------------- the setting
def test_the_run_id_is_of_the_sharding_only_where_it_changes_what_is_drawn() -> None:
    def identity(*words: str) -> dict[str, Any]:
        return identity_of(compose(list(words)).as_dict(), 2)

    assert identity(FSDP, "train.dropout=0") == identity("train.dropout=0")
    assert identity(FSDP, "train.dropout=0.1") == identity("train.dropout=0.1")
    narrow = ["train.trained_dtype=bfloat16", "train.dropout=0"]
    found = identity(FSDP, *narrow)
    assert (found["train"]["sharding"], found["processes"]) == ("fsdp", 2)
    assert "sharding" not in identity(*narrow)["train"] and "processes" not in identity(*narrow)


@pytest.mark.parametrize(
    "words, line",
    [
        (["train.sharding=ddp"], "train.sharding=ddp: must be none or fsdp"),
        (
            [FSDP, "save=full"],
            "train.sharding=fsdp: needs save=adapter or none; sparta-bench merge bake writes the "
            "whole model",
        ),
        (
            [FSDP, "task.separator=sep_token"],
            "train.sharding=fsdp: needs task.separator=newline, since no row is added to sharded "
            "embeddings",
        ),
    ],
)
def test_what_does_not_go_with_sharding_is_refused(words: list[str], line: str) -> None:
    with pytest.raises(InputError) as refused:
        compose(words)
    assert refused.value.lines == (line,)


def test_one_process_has_nobody_to_share_with(tmp_path: Path) -> None:
    config = compose([*QUICK, FSDP, f"results_dir={tmp_path}", f"cache_dir={tmp_path}/cache"])
    with pytest.raises(InputError, match=r"^train.sharding=fsdp: start several processes"):
        run(config)


# ------------------------------------------------------------------------------- the runner
ALL_AT_ONCE = ["train.accumulation_steps=3", "train.max_grad_norm=0.1", "train.batch_size=10"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparta", "full_ft", "lora", "head"])
def test_two_sharded_processes_give_the_losses_of_one(tmp_path: Path, method: str) -> None:
    settings = [*QUICK, *ALL_AT_ONCE, f"method={method}", "train.dropout=0", "model=tiny-gemma-it"]
    if method == "lora":
        settings.append("method.lora_dropout=0")
    one = made(tmp_path / "one", 1, *settings)
    two = made(tmp_path / "two", 2, *settings, FSDP)
    alone, sharded = record_of(one), record_of(two)
    assert len(losses_of(alone)) == 7
    assert losses_of(sharded) == pytest.approx(losses_of(alone), rel=1e-5)
    assert sharded["test"] == pytest.approx(alone["test"], rel=1e-5)
    for key in ("run_id", "parameters", "data"):
        assert sharded[key] == alone[key]
    assert sharded["environment"]["processes"] == 2
    for key in ("tokens_once", "dropout", "attention"):
        assert sharded["environment"][key] == alone["environment"][key]
    if method == "full_ft":
        assert not (two / "adapter").exists()
        return
    about, other = (json.loads((f / "adapter/adapter_config.json").read_text()) for f in (one, two))
    del about["tensors_sha256"], other["tensors_sha256"]
    assert other == about
    tensors, others = (load_file(folder / "adapter/adapter.safetensors") for folder in (one, two))
    assert others.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-2, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparta", "full_ft"])
def test_three_processes_of_which_some_have_no_example(tmp_path: Path, method: str) -> None:
    settings = [*QUICK, f"method={method}", "train.dropout=0", "train.batch_size=4", "save=none"]
    settings += ["train.accumulation_steps=2", "train.gradient_checkpointing=true"]
    settings += ["train.patience=1", "train.learning_rate=0.03", "train.eval_batch_size=300"]
    alone = record_of(made(tmp_path / "one", 1, *settings))
    sharded = record_of(made(tmp_path / "three", 3, *settings, FSDP))
    assert losses_of(sharded) == pytest.approx(losses_of(alone), rel=1e-5)
    for key in ("best_step", "stopped_early", "steps"):
        assert sharded["training"][key] == alone["training"][key]
    assert sharded["dev"] == pytest.approx(alone["dev"], rel=1e-5)


@pytest.mark.slow
def test_dropout_is_that_of_as_many_processes(tmp_path: Path) -> None:
    settings = [*QUICK, "train.dropout=0.2", "save=none"]
    plain = record_of(made(tmp_path / "plain", 2, *settings))
    sharded = record_of(made(tmp_path / "sharded", 2, *settings, FSDP))
    assert losses_of(sharded) == pytest.approx(losses_of(plain), rel=1e-5)
    assert sharded["run_id"] == plain["run_id"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparta", "full_ft"])
def test_a_killed_run_goes_on_in_any_number_of_processes(tmp_path: Path, method: str) -> None:
    settings = [f"method={method}", "train.dropout=0", "train.max_steps=24", "train.eval_every=4"]
    settings += ["train.checkpoint_every=4", "task.max_train_examples=400", "save=none"]
    entire = record_of(made(tmp_path / "entire", 2, *settings, FSDP))
    begun = start(tmp_path / "cut", 2, *settings, FSDP)
    while not list((tmp_path / "cut").rglob("checkpoint.safetensors")):
        assert all(one.poll() is None for one in begun)
        time.sleep(0.01)
    for one in begun:
        one.kill()
    for one in begun:
        one.communicate()
    assert not list((tmp_path / "cut").rglob("result.json"))
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")
    again = start(tmp_path / "cut", 2, *settings, FSDP)
    said = [one.communicate(timeout=300)[1] for one in again]
    assert "resumed" in said[0] or "step 0/" not in said[0], said[0]
    (path,) = (tmp_path / "cut").rglob("result.json")
    resumed = record_of(path.parent)
    for key in ("dev", "test", "history", "run_id"):
        assert resumed[key] == entire[key]
    alone = record_of(made(tmp_path / "alone", 1, *settings))
    assert losses_of(alone) == pytest.approx(losses_of(entire), rel=1e-5)


# ------------------------------------------------------------------------ in a user's script
class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 20), nn.Linear(20, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(30, 8), nn.LayerNorm(8)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(ids))).mean(1)


class Scored(nn.Module):
    """A backbone and a head, as transformers' classifiers are."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.score = Backbone(), nn.Linear(8, 3)

    @property
    def base_model(self) -> nn.Module:
        return self.net

    def forward(self, ids: Tensor) -> Tensor:
        return self.score(self.net(ids))


def scored() -> Scored:
    torch.manual_seed(0)
    return Scored().double()


def shard(model: Scored) -> None:
    from torch.distributed.fsdp import fully_shard

    for module in [*model.net.blocks, model]:
        fully_shard(module)
        module.set_force_sum_reduction_for_comms(True)  # gloo takes no means


def trained_losses(
    model: nn.Module, adapter: SpartaAdapter, rank: int = 0, world: int = 1
) -> list[float]:
    """The loss of each of four steps, and one more, over the shares of all processes."""
    ids = torch.arange(12 * 5).view(12, 5).mul(7) % 30
    labels = torch.arange(12) % 3
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(ids[rank::world]), labels[rank::world])
        losses.append(loss.detach())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model(ids[:2])  # what is gathered for it must not be taken for the next step's
    mean = torch.stack(losses)
    if world > 1:
        torch.distributed.all_reduce(mean)
    return (mean / world).tolist()


def of_script(rank: int, world: int, port: int, order: str, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", world_size=world, rank=rank
    )
    model = scored()
    if order == "after":
        shard(model)
    adapter = SpartaAdapter(model, 0.3, 0, dtype=torch.float64)
    if order == "before":
        shard(model)
    adapter.save(f"{folder}/untrained")
    losses = trained_losses(model, adapter, rank, world)
    adapter.save(f"{folder}/trained")
    assert adapter.lost_to_rounding() == 0.0
    with adapter.off():
        base = {name: whole(value) for name, value in model.net.named_parameters()}
    for name, value in scored().net.named_parameters():
        assert torch.equal(base[name], value), name
    assert sum(local(value).numel() for value in adapter.deltas.values()) < adapter.chosen
    if order == "after":
        adapter.detach()
        for name, value in scored().named_parameters():
            assert torch.equal(whole(model.get_parameter(name)), value), name
        SpartaAdapter.load(model, f"{folder}/trained").save(f"{folder}/again")
    else:
        with pytest.raises(ValueError, match="fully_shard came after the adapter"):
            adapter.detach()
    if rank == 0:
        Path(folder, "losses.json").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("order, world", [("after", 2), ("before", 2), ("after", 3)])
def test_an_adapter_in_a_script_with_fully_shard(tmp_path: Path, order: str, world: int) -> None:
    model = scored()
    adapter = SpartaAdapter(model, 0.3, 0, dtype=torch.float64)
    adapter.save(tmp_path / "one" / "untrained")
    alone = trained_losses(model, adapter)
    adapter.save(tmp_path / "one" / "trained")
    folder = tmp_path / "sharded"
    arguments = (world, free_port(), order, str(folder))
    torch.multiprocessing.spawn(of_script, arguments, nprocs=world)  # type: ignore[no-untyped-call]
    assert json.loads((folder / "losses.json").read_text()) == pytest.approx(alone, rel=1e-12)
    for file in ("adapter.safetensors", "adapter_config.json"):
        bytes_of_one = (tmp_path / "one" / "untrained" / file).read_bytes()
        assert (folder / "untrained" / file).read_bytes() == bytes_of_one
    one, sharded = (
        load_file(f / "trained/adapter.safetensors") for f in (tmp_path / "one", folder)
    )
    assert one.keys() == sharded.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-9, atol=1e-12)
    if order == "after":
        again = folder / "again" / "adapter.safetensors"
        assert again.read_bytes() == (folder / "trained" / "adapter.safetensors").read_bytes()
