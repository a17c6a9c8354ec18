"""`save=full` under `train.sharding=fsdp`: the files are those of one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_sharding import free_port
from torch import nn
from transformers import AutoModelForSequenceClassification

from sparta_bench.config.compose import compose
from sparta_bench.methods import prepare
from sparta_bench.models import write_sharded
from sparta_bench.models.dtypes import precision_of
from sparta_bench.models.load import load_classifier
from sparta_bench.models.source import load_tokenizer
from sparta_bench.models.write_sharded import whole_tensors, write_weights
from sparta_bench.runs.experiment import save

METHODS = ("sparta", "full_ft", "lora", "head")
CPU = torch.device("cpu")


def save_all(folder: str, sharding: str, rank: int) -> None:
    """The same values of each method, written; weights are bfloat16, what trains is float32."""
    words = ["model=tiny-gemma", "model.dtype=bfloat16", "train.trained_dtype=float32", "save=full"]
    for method in METHODS:
        config = compose([*words, f"method={method}", f"train.sharding={sharding}"])
        config, precision = replace(config, seed=1), precision_of(config, CPU)
        tokenizer = load_tokenizer(config.model, config.task)
        classifier = load_classifier(config, tokenizer, precision, CPU)
        trained = prepare(classifier, config, precision)
        draw, values = torch.Generator().manual_seed(0), {}
        for name, rows in trained.snapshot().items():
            value = trained.whole(name, rows)
            value = value + 0.1 * torch.randn(value.shape, generator=draw)
            values[name] = trained.rows(name, value)
        trained.restore(values)
        main = SimpleNamespace(is_main_process=rank == 0)
        of_run: dict[str, Any] = {"config": config, "precision": precision, "accelerator": main}
        of_run["base_fingerprint"] = "made up"
        spec: Any = SimpleNamespace(folder=Path(folder, method), **of_run)
        save(spec, classifier, tokenizer, trained)
    if sharding == "none":
        return
    write_sharded.LARGEST_FILE = "300KB"
    spec.folder = Path(folder, "files")
    save(spec, classifier, tokenizer, trained)
    spec.folder = Path(folder, "head", "model", "config.json")  # below a file nothing is written
    if rank == 0:
        with pytest.raises(OSError, match=r"config\.json"):
            save(spec, classifier, tokenizer, trained)
    else:  # and does not wait for ever
        save(spec, classifier, tokenizer, trained)


def in_two(rank: int, port: int, folder: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, world_size=2, rank=rank)
    save_all(folder, "fsdp", rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_folder_is_that_of_one_process(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    save_all(str(one), "none", 0)
    torch.multiprocessing.spawn(in_two, (free_port(), str(two)), nprocs=2)  # type: ignore[no-untyped-call]
    whole = set()
    for method in METHODS:
        files = {path.name: path.read_bytes() for path in (one / method / "model").iterdir()}
        sharded = {path.name: path.read_bytes() for path in (two / method / "model").iterdir()}
        assert sharded == files and "classifier_config.json" in files
        whole.add(files["model.safetensors"])
    assert len(whole) == len(METHODS)

    files = two / "files" / "model"
    index = json.loads((files / "model.safetensors.index.json").read_text())
    names = sorted(path.name for path in files.glob("*.safetensors"))
    assert len(names) > 1 and sorted(set(index["weight_map"].values())) == names
    entire = load_file(one / METHODS[-1] / "model" / "model.safetensors")
    parts = {name: tensor for file in names for name, tensor in load_file(files / file).items()}
    assert parts.keys() == entire.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in entire.values())
    loaded = AutoModelForSequenceClassification.from_pretrained(files, dtype=torch.float32)
    for name, tensor in loaded.named_parameters():
        assert torch.equal(tensor, entire[name].float()), name


def test_a_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    model = nn.ModuleDict({f"b{i}": nn.Linear(3, 5 + i) for i in range(3)})
    model["b1"].to(torch.bfloat16)
    model["aé"] = nn.Linear(3, 1, bias=False).to(torch.float64)
    write_weights(model, whole_tensors(model), tmp_path)
    save_file(dict(model.state_dict()), tmp_path / "theirs", {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
