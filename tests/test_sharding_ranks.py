"""Eight processes of `train.sharding=fsdp`, in torch's fake process group: all
make the same collective calls in the same order, or real ones would wait for each other for ever.

The fake group sends nothing: values are arbitrary, and only which calls are made is looked at."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparta_bench.config.compose import compose
from sparta_bench.data.splits import load_splits
from sparta_bench.data.tokenize import encode_splits
from sparta_bench.methods import prepare
from sparta_bench.models.dtypes import precision_of
from sparta_bench.models.load import load_classifier
from sparta_bench.models.source import load_tokenizer
from sparta_bench.models.write_sharded import whole_tensors
from sparta_bench.training.evaluation import evaluate
from sparta_bench.training.loop import Training
from sparta_bench.training.steps import EvaluationSize

WORLD = 8
CPU = torch.device("cpu")
METHODS = ("sparta", "full_ft")  # the others have nothing that trains in rows


class Calls(TorchDispatchMode):
    """The collective calls, with the sizes of their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # the end of a call is this process's own business, with the size of its rows
        if "c10d" in func.namespace and "wait_tensor" not in str(func):
            sizes = [leaf.numel() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.made.append(f"{func} {sizes}")
        return func(*args, **(kwargs or {}))


def reduce(tensor: Tensor, how: str) -> Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor


def work(method: str, rank: int, cache: str) -> None:
    """What a run does with weights: batches that have fewer examples than there are processes, an
    evaluation of fewer batches, and all that is saved."""
    words = ["train.sharding=fsdp", "train.dropout=0", "train.gradient_checkpointing=true"]
    words += ["train.accumulation_steps=2", "train.batch_size=11", "limit=11", f"cache_dir={cache}"]
    config = compose([*words, f"method={method}"])
    tokenizer, precision = load_tokenizer(config.model, config.task), precision_of(config, CPU)
    data = encode_splits(config, load_splits(config.task, config.limit), tokenizer)
    classifier = load_classifier(config, tokenizer, precision, CPU)
    trained = prepare(classifier, config, precision)
    accelerator: Any = SimpleNamespace(
        device=CPU,
        num_processes=WORLD,
        process_index=rank,
        reduce=reduce,
        backward=lambda loss: loss.backward(),
    )
    training = Training(accelerator, classifier, trained, data.train, data.dev, config.train, 0)
    for rows in ([*range(11)], [0, 1, 2]):
        training._step(rows, 1e-3)
    evaluate(accelerator, classifier, data.dev, EvaluationSize(4, 10**6))
    for name, value in trained.snapshot().items():
        trained.whole(name, value)
    trained.lost_to_rounding()
    trained.adapter()
    trained.merge_and_unload()
    deque(whole_tensors(classifier), maxlen=0)


def in_one(rank: int, folder: str) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    store, made = FakeStore(), {}
    torch.distributed.init_process_group("fake", rank=rank, world_size=WORLD, store=store)
    for method in METHODS:
        with Calls() as calls:
            work(method, rank, folder)
        made[method] = calls.made
    Path(folder, f"rank{rank}.json").write_text(json.dumps(made))


def forked(_: int, folder: str) -> None:
    """Not one rank after the other in one process: torch remembers what was one rank's part."""
    torch.multiprocessing.start_processes(in_one, (folder,), nprocs=WORLD, start_method="fork")  # type: ignore[no-untyped-call]


@pytest.mark.slow
def test_eight_processes_make_the_same_collective_calls(tmp_path: Path) -> None:
    # forked from a process that has no threads yet, since imports take long
    torch.multiprocessing.spawn(forked, (str(tmp_path),), nprocs=1, daemon=False)  # type: ignore[no-untyped-call]
    files = [tmp_path / f"rank{rank}.json" for rank in range(WORLD)]
    first, *others = (json.loads(file.read_text()) for file in files)
    assert list(first) == list(METHODS)
    for method, calls in first.items():
        assert len(calls) > 50
        for rank, of_rank in enumerate(others, start=1):
            assert of_rank[method] == calls, (method, rank)
