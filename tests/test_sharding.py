"""`train.sharding=fsdp`: FSDP2 with processes of gloo on a CPU, beside one process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
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
from sparta_bench.training.loop import Training
from sparta_bench.training.optimizer import StochasticAdamW

QUICK = ["train.epochs=1", "train.max_steps=6", "train.eval_every=2", "task.max_train_examples=100"]
FSDP = "train.sharding=fsdp"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


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


def test_rows_are_rounded_by_other_bits_in_each_process_and_the_head_by_the_same() -> None:
    def stepped(rank: int) -> list[Tensor]:
        rows, head = (nn.Parameter(torch.ones(1000, dtype=torch.bfloat16)) for _ in range(2))
        groups = [{"params": [rows], "stream": 1 + rank}, {"params": [head], "stream": 0}]
        optimizer = StochasticAdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
        rows.grad, head.grad = torch.ones_like(rows), torch.ones_like(head)
        torch.manual_seed(5)
        optimizer.step()
        return [rows.detach(), head.detach()]

    (rows, head), (others, same) = stepped(0), stepped(1)
    assert torch.equal(head, same)
    assert not torch.equal(rows, others)


# of training.loop and sparta.adapter, with what the other processes would say put in
def test_only_the_first_process_keeps_the_whole_of_a_checkpoint() -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def whole_of(name: str, rows: Tensor) -> Tensor:
        alive.append(sum(one() is not None for one in made))
        every = rows.repeat(2)
        made.append(weakref.ref(every))
        return every

    values = {name: nn.Parameter(torch.ones(3)) for name in "abcd"}
    loop = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=False),
        checkpoint=SimpleNamespace(save=None),  # which another process must not call
        rows={id(value) for value in values.values()},
        trained=SimpleNamespace(values=values, whole=whole_of),
        best={},
        optimizer=torch.optim.AdamW(values.values()),
    )
    loop._each = partial(Training._each, loop)
    Training._save_checkpoint(loop, None)  # type: ignore[arg-type]
    assert alive == [0, 0, 0, 0]


def test_the_norm_is_over_the_rows_of_all_processes_and_the_head_once() -> None:
    def norm(dtype: torch.dtype) -> Tensor:
        rows, head = (nn.Parameter(torch.zeros(1, dtype=dtype)) for _ in range(2))
        rows.grad, head.grad = torch.full_like(rows, 1.1875), torch.full_like(head, 1.1875)
        seven_more = SimpleNamespace(reduce=lambda own, how: {"sum": 8 * own}[how])
        loop = SimpleNamespace(rows={id(rows)}, accelerator=seven_more)
        return Training._norm_of(loop, [rows, head])  # type: ignore[arg-type]

    for dtype in (torch.float32, torch.bfloat16):  # squares of bfloat16 would give 3.546875
        assert torch.equal(norm(dtype), torch.tensor(3 * 1.1875, dtype=dtype))


def test_a_head_may_have_a_single_number(tmp_path: Path) -> None:
    model = scored()
    model.temperature = nn.Parameter(torch.tensor(2.0))
    adapter = SpartaAdapter(model, 0.3, 0)
    with torch.no_grad():
        model.temperature.fill_(3)
    with adapter.off():
        assert model.temperature == 2
    assert model.temperature == 3
    adapter.save(tmp_path)
    adapter.detach()
    SpartaAdapter.load(model, tmp_path)
    assert model.temperature == 3


def test_who_cannot_write_an_adapter_lets_no_other_process_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met: list[bool] = []
    module = "sparta_bench.sparta.adapter"
    monkeypatch.setattr(f"{module}.barrier", lambda: met.append(True))
    monkeypatch.setattr(f"{module}.get_rank", lambda: 0)
    adapter = SpartaAdapter(scored(), 0.3, 0)
    monkeypatch.setattr(SpartaAdapter, "is_sharded", True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written to"):
        adapter.save(tmp_path / "file")
    assert met == [True]


# ------------------------------------------------------------------------------- the runner
METHODS = ("sparta", "full_ft", "lora", "head")
RUN = (
    "import json, sys\n"
    "from sparta_bench.config.compose import compose\n"
    "from sparta_bench.runs.run import run\n"
    "for words in json.loads(sys.argv[1]):\n"
    "    run(compose(words))\n"
)


def start(results: Path, processes: int, runs: dict[str, list[str]]) -> list[subprocess.Popen[str]]:
    """Runs by the name of their folder below `results`, one after the other, in so many processes,
    as torchrun starts them."""
    cache = f"cache_dir={results.parent / 'cache'}"
    words = [
        [*run, "device=cpu", f"results_dir={results / name}", cache] for name, run in runs.items()
    ]
    port, begun = free_port(), []
    for rank in range(processes):
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {key: str(value) for key, value in ranks.items()} if processes > 1 else {}
        begun.append(
            subprocess.Popen(
                [sys.executable, "-c", RUN, json.dumps(words)],
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | own,
            )
        )
    return begun


def ended(begun: list[subprocess.Popen[str]]) -> str:
    """What the first process said, once all have ended."""
    said = [one.communicate(timeout=600)[1] for one in begun]
    assert [one.returncode for one in begun] == [0] * len(begun), said[0]
    return said[0]


def folder_of(results: Path) -> Path:
    (path,) = results.rglob("result.json")
    return path.parent


def record_of(results: Path) -> dict[str, Any]:
    record = dict(json.loads((folder_of(results) / "result.json").read_text()))
    assert record["status"] == "completed", record["error"]
    return record


def losses_of(record: dict[str, Any]) -> list[float]:
    pairs = ((entry["train_loss"], entry["dev_loss"]) for entry in record["history"])
    return [loss for pair in pairs for loss in pair if loss is not None]


ALL_AT_ONCE = ["train.accumulation_steps=3", "train.max_grad_norm=0.1", "train.batch_size=10"]
INSTRUCT = [*QUICK, *ALL_AT_ONCE, "train.dropout=0", "model=tiny-gemma-it"]
# every example of a small batch by itself: some processes have none
FEW = [*QUICK, "train.dropout=0", "train.batch_size=4", "train.accumulation_steps=2", "save=none"]
FEW += ["train.gradient_checkpointing=true", "train.patience=1"]
FEW += ["train.eval_batch_size=300"]
RUNS = {
    **{method: [f"method={method}", *INSTRUCT] for method in METHODS},
    "lora": ["method=lora", "method.lora_dropout=0", *INSTRUCT],
    "full_ft": ["method=full_ft", "save=full", *INSTRUCT],
    "few-sparta": ["method=sparta", *FEW, "train.learning_rate=0.03"],
    "few-full_ft": ["method=full_ft", *FEW, "train.learning_rate=0.0003"],
}
DROPOUT = {"dropout": [*QUICK, "train.dropout=0.2", "save=none"]}


def with_fsdp(runs: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [*words, FSDP] for name, words in runs.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in one process (`one`), in two (`plain`, without sharding, and `two`), and in three."""
    folder = tmp_path_factory.mktemp("sharding")
    ended(start(folder / "one", 1, RUNS))
    ended(start(folder / "plain", 2, DROPOUT))
    ended(start(folder / "two", 2, with_fsdp(RUNS | DROPOUT)))
    few = {name: words for name, words in RUNS.items() if name.startswith("few")}
    ended(start(folder / "three", 3, with_fsdp(few)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_sharded_processes_give_the_losses_of_one(results: Path, method: str) -> None:
    alone, sharded = (record_of(results / count / method) for count in ("one", "two"))
    assert len(losses_of(alone)) == 7
    assert losses_of(sharded) == pytest.approx(losses_of(alone), rel=1e-5)
    assert sharded["test"] == pytest.approx(alone["test"], rel=1e-5)
    for key in ("run_id", "parameters", "data"):
        assert sharded[key] == alone[key]
    assert sharded["environment"]["processes"] == 2
    for key in ("tokens_once", "dropout", "attention"):
        assert sharded["environment"][key] == alone["environment"][key]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparta", "lora", "head"])
def test_the_adapter_is_one_as_from_one_process(results: Path, method: str) -> None:
    one, two = (folder_of(results / count / method) / "adapter" for count in ("one", "two"))
    about, other = (
        json.loads((folder / "adapter_config.json").read_text()) for folder in (one, two)
    )
    del about["tensors_sha256"], other["tensors_sha256"]
    assert other == about
    tensors, others = (load_file(folder / "adapter.safetensors") for folder in (one, two))
    assert others.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-2, atol=1e-5)


@pytest.mark.slow
def test_the_whole_model_is_one_as_from_one_process(results: Path) -> None:
    one, two = (folder_of(results / count / "full_ft") / "model" for count in ("one", "two"))
    names = sorted(path.name for path in one.iterdir())
    assert "model.safetensors" in names and sorted(path.name for path in two.iterdir()) == names
    for name in {*names} - {"model.safetensors"}:
        assert (two / name).read_bytes() == (one / name).read_bytes(), name
    tensors, others = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert others.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-2, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("count", ["two", "three"])
@pytest.mark.parametrize("method", ["sparta", "full_ft"])
def test_processes_without_an_example_keep_pace(results: Path, count: str, method: str) -> None:
    alone, sharded = (record_of(results / one / f"few-{method}") for one in ("one", count))
    assert losses_of(sharded) == pytest.approx(losses_of(alone), rel=1e-5)
    for key in ("best_step", "stopped_early", "steps"):
        assert sharded["training"][key] == alone["training"][key]
    assert sharded["dev"] == pytest.approx(alone["dev"], rel=1e-5)


@pytest.mark.slow
def test_dropout_is_that_of_as_many_processes(results: Path) -> None:
    plain, sharded = (record_of(results / one / "dropout") for one in ("plain", "two"))
    assert losses_of(sharded) == pytest.approx(losses_of(plain), rel=1e-5)
    assert sharded["run_id"] == plain["run_id"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sparta", "full_ft"])
def test_a_killed_run_goes_on_in_any_number_of_processes(tmp_path: Path, method: str) -> None:
    words = [f"method={method}", "train.dropout=0", "train.max_steps=24", "train.eval_every=4"]
    words += ["train.checkpoint_every=4", "task.max_train_examples=400", "save=none"]
    one, sharded = {"run": words}, {"run": [*words, FSDP]}
    ended(start(tmp_path / "entire", 2, sharded))
    begun = start(tmp_path / "cut", 2, sharded)
    while not list((tmp_path / "cut").rglob("checkpoint.safetensors")):
        assert all(process.poll() is None for process in begun)
        time.sleep(0.01)
    for process in begun:
        process.kill()
    for process in begun:
        process.communicate()
    assert not list((tmp_path / "cut").rglob("result.json"))
    shutil.copytree(tmp_path / "cut", tmp_path / "alone")
    assert "step 0/" not in ended(start(tmp_path / "cut", 2, sharded))
    assert "step 0/" not in ended(start(tmp_path / "alone", 1, one))
    entire, resumed, alone = (record_of(tmp_path / name) for name in ("entire", "cut", "alone"))
    for key in ("dev", "test", "history", "run_id"):
        assert resumed[key] == entire[key]
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
