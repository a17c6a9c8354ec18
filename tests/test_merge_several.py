"""Several models in one backbone: exact sums, other rules, what is refused, and the folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_cli import call as call_with_lines
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from sparta_bench.adapters import multi_head
from sparta_bench.adapters.load_adapter import load
from sparta_bench.adapters.merging import Rule, combine, multi_head_of, open_task_vectors, thin
from sparta_bench.adapters.multi_head import MultiHead
from sparta_bench.adapters.read_folder import SparseDelta
from sparta_bench.cli.merge_command import _read
from sparta_bench.errors import InputError
from sparta_bench.sparta import store
from sparta_bench.sparta.merge import rounded_sum
from sparta_bench.sparta.sample import sample_indices

SST2, COLA = ("task=tiny-sst2",), ("task=tiny-cola", "seed=1")
TINY_GEMMA = Path(multi_head.__file__).parents[1] / "tiny_models" / "tiny-gemma"
BFLOAT16 = ("model.dtype=bfloat16", "train.max_steps=2", "train.eval_every=2")


def entries(indices: list[int] | None, values: list[float]) -> SparseDelta:
    return SparseDelta(None if indices is None else torch.tensor(indices), torch.tensor(values))


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Of the plain backbone in a folder."""
    return load_file(folder / "model.safetensors")


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    code, out, lines = call_with_lines(capfd, *arguments)
    assert not any("Traceback" in line for line in lines)
    return code, out, "\n".join(lines)


def merged(folders: list[Path], out: Path, rule: Rule | None = None, **how: Any) -> list[str]:
    """Write a multi-head folder; returns the warnings."""
    return multi_head_of(folders, out, rule or Rule(), **how)[1]


# ------------------------------------------------------------------------------------ rules
def test_a_sum_touches_only_what_changed_and_rounds_once() -> None:
    base = torch.tensor([1.0, -0.0, 3.0, 4.0, 5.0], dtype=torch.bfloat16)
    one, other = entries([0, 3], [0.5, 0.001]), entries([3, 4], [0.002, -1.0])
    found = combine(base, [one, other], Rule())
    assert found.tolist() == [1.5, 0.0, 3.0, 4.0, 4.0]
    assert torch.signbit(found[1])  # bits that nothing changed stay
    once = rounded_sum(base[3:4], torch.tensor([0.5 + 0.01], dtype=torch.float64))
    both = [entries([3], [0.5]), entries([3], [0.01])]
    assert torch.equal(combine(base, both, Rule())[3:4], once)


def test_weights_multiply_each_models_changes() -> None:
    base = torch.zeros(2, 2)
    both = [entries([0, 1], [1.0, 2.0]), entries(None, [10.0, 20.0, 30.0, 40.0])]
    found = combine(base, both, Rule(weights=(2.0, 0.5)))
    assert found.tolist() == [[7.0, 14.0], [15.0, 20.0]]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("-1,2", (-1, 2)), ("-.5,-2", (-0.5, -2)), ("-1e-1,1", (-0.1, 1)), ("0.5,-1", (0.5, -1))],
)
def test_weights_may_begin_with_a_minus(text: str, numbers: tuple[float, float]) -> None:
    """argparse alone takes such a list for an option, but not a plain number."""
    for words in (["--weights", text, "A", "B"], ["A", "--weights", text, "B"]):
        options = _read(["combine", *words, "--out", "out"])
        assert options.weights == numbers and options.adapters == [Path("A"), Path("B")]


def test_ties_keeps_the_mean_of_the_elected_sign() -> None:
    base = torch.zeros(5)
    three = [
        entries(None, [1.0, 1.0, -1.0, 0.0, 2.0]),
        entries(None, [3.0, -4.0, -3.0, 0.0, 0.0]),
        entries([0, 1], [-2.0, 1.0]),
    ]
    found = combine(base, three, Rule("ties"))
    assert found.tolist() == [2.0, -4.0, -2.0, 0.0, 2.0]


def test_dare_keeps_a_drawn_share_and_divides_by_it() -> None:
    whole = SparseDelta(None, torch.arange(1.0, 10_001.0))
    kept = thin(whole, 0.1, 7, "a")
    assert kept.indices is not None
    assert torch.equal(kept.indices, sample_indices(10_000, 0.1, 7, "a").long())
    assert torch.equal(kept.values, (kept.indices + 1).double() / 0.1)
    few = thin(entries([5, 9], [1.0, 2.0]), 0.999999, 0, "a")
    assert few.indices is not None and few.indices.tolist() == [5, 9]
    assert not torch.equal(thin(whole, 0.1, 7, "b").indices[:50], kept.indices[:50])  # type: ignore[index]
    assert not torch.equal(thin(whole, 0.1, 8, "a").indices[:50], kept.indices[:50])  # type: ignore[index]


def test_blocks_of_a_large_tensor_are_combined_as_a_small_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, values = torch.randn(7, 11), torch.randn(7, 11)
    sparse = SparseDelta(torch.tensor([0, 30, 76]), torch.randn(3))
    expected = combine(base, [SparseDelta(None, values), sparse], Rule())
    monkeypatch.setattr("sparta_bench.adapters.merging._BLOCK", 10)
    assert torch.equal(combine(base, [SparseDelta(None, values), sparse], Rule()), expected)
    by_hand = base + values
    by_hand.view(-1)[sparse.indices] += sparse.values
    torch.testing.assert_close(expected, by_hand)


# ------------------------------------------------------------------------------- the weights
@pytest.mark.parametrize("more", [(), BFLOAT16], ids=["float32", "bfloat16"])
def test_weights_are_the_originals_and_the_sum_of_the_deltas(
    trained: Callable[..., Any], tmp_path: Path, more: tuple[str, ...]
) -> None:
    folders = [trained("sparta", *task, *more)[2] for task in (SST2, COLA)]
    base, _ = open_task_vectors(folders)
    originals = {name: value.clone() for name, value in base.values.items()}
    assert merged(folders, tmp_path / "both") == []
    found = weights_of(tmp_path / "both")
    adapters = [load_file(folder / "adapter.safetensors") for folder in folders]
    shared = 0
    for name, original in originals.items():
        change = torch.zeros(original.numel(), dtype=torch.float64)
        for adapter in adapters:
            if f"{name}.indices" in adapter:
                places = adapter[f"{name}.indices"].long()
                shared += int((change[places] != 0).sum())
                change[places] += adapter[f"{name}.deltas"].double()
        expected = rounded_sum(original.reshape(-1), change).view_as(original)
        assert torch.equal(found[name], expected), name
        assert found[name].dtype == original.dtype
    assert shared > 0
    assert set(found) == set(originals)


@pytest.mark.parametrize("method", ["sparta", "head", "full_ft", "lora"])
def test_one_model_alone_is_what_bake_makes_of_it(
    trained: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    folder = trained(method, *SST2)[2]
    merged([folder], tmp_path / "one")
    loaded = load(folder, None, None)
    loaded.merge_and_unload()
    found = weights_of(tmp_path / "one")
    for name, value in loaded.classifier.backbone.named_parameters():
        assert torch.equal(found[name], value), name
    heads = load_file(tmp_path / "one" / "heads.safetensors")
    assert torch.equal(heads["tiny-sst2"], loaded.classifier.head_weight)


def product_of(folder: Path) -> dict[str, Tensor]:
    """What a LoRA adapter adds to the weights, by name in the backbone."""
    tensors = load_file(folder / "adapter.safetensors")
    method = json.loads((folder / "adapter_config.json").read_text())["method"]
    a = {key: value for key, value in tensors.items() if ".lora_A." in key}
    return {
        key.partition(".lora_A.")[0] + ".weight": method["alpha"]
        / method["r"]
        * (tensors[key.replace(".lora_A.", ".lora_B.")] @ value)
        for key, value in a.items()
    }


@pytest.mark.parametrize(
    "rule", [Rule(), Rule("ties"), Rule(keep=0.5, seed=3), Rule("ties", (1, 0))]
)
@pytest.mark.parametrize("other", ["lora", "sparta"])
def test_lora_is_merged_by_its_product_like_every_other_change(
    trained: Callable[..., Any], tmp_path: Path, rule: Rule, other: str
) -> None:
    folders = [trained("lora", *SST2)[2], trained(other, *COLA)[2]]
    base, vectors = open_task_vectors(folders)
    originals = {name: value.clone() for name, value in base.values.items()}
    merged(folders, tmp_path / "both", rule)
    products = [
        product_of(folder) if i == 0 or other == "lora" else None
        for i, folder in enumerate(folders)
    ]
    changed = 0
    for name, weight in weights_of(tmp_path / "both").items():
        deltas = [vector.delta(name, originals[name]) for vector in vectors]
        for product, delta in zip(products, deltas, strict=True):
            if product is not None and name in product:
                assert delta.indices is None and torch.equal(delta.values, product[name])
                changed += 1
        if rule.keep is not None:
            deltas = [
                thin(delta, rule.keep, rule.seed, f"{vector.name}/{name}")
                for vector, delta in zip(vectors, deltas, strict=True)
            ]
        assert torch.equal(weight, combine(originals[name], deltas, rule)), name
    assert changed == (16 if other == "lora" else 8)  # query and value in four layers


def test_differences_of_full_fine_tuning_are_added_up_and_thinned(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [trained("full_ft", *task)[2] for task in (SST2, COLA)]
    base, _ = open_task_vectors(folders)
    originals = {name: value.clone() for name, value in base.values.items()}
    tuned = [load_file(folder / "model.safetensors") for folder in folders]
    merged(folders, tmp_path / "sum")
    merged(folders, tmp_path / "dare", Rule(keep=0.05, seed=1))
    thin_changes = 0
    for name, found in weights_of(tmp_path / "sum").items():
        differences = [one[f"model.{name}"] - originals[name] for one in tuned]
        torch.testing.assert_close(found, originals[name] + sum(differences))
        thinned = weights_of(tmp_path / "dare")[name]
        thin_changes += int((thinned != originals[name]).sum())
    total = sum(value.numel() for value in originals.values())
    assert 0.05 * total < thin_changes < 0.0975 * 1.05 * total  # 1 - 0.95² = 0.0975


def test_heads_keep_the_dtype_they_were_trained_in(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    folder = trained("sparta", *SST2, "train.trained_dtype=bfloat16")[2]
    merged([folder], tmp_path / "one")
    (head,) = load_file(tmp_path / "one" / "heads.safetensors").values()
    assert head.dtype == torch.bfloat16
    assert torch.equal(head, load_file(folder / "adapter.safetensors")["head.weight"])


# -------------------------------------------------------------------------------- the folder
def test_the_folder_is_plain_and_the_heads_are_beside_it(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [trained("sparta", *task)[2] for task in (SST2, COLA)]
    merged(folders, tmp_path / "both")
    names = sorted(path.name for path in (tmp_path / "both").iterdir())
    assert names == [
        "config.json", "heads.safetensors", "model.safetensors", "multi_head_config.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    plain = AutoModel.from_pretrained(tmp_path / "both")
    found = weights_of(tmp_path / "both")
    assert all(torch.equal(value, found[name]) for name, value in plain.named_parameters())
    assert AutoTokenizer.from_pretrained(tmp_path / "both").pad_token is not None
    written = (tmp_path / "both" / "multi_head_config.json").read_text()
    assert str(tmp_path) not in written and str(folders[0]) not in written
    about = json.loads(written)
    assert [one["seed"] for one in about["merged"]["models"]] == [0, 1]
    overlap = about["merged"]["overlap"][0]
    assert 0 < overlap["conflicts"] < overlap["shared"] < overlap["changed"][0]


def test_one_forward_pass_gives_a_prediction_for_each_task(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [trained("sparta", *task)[2] for task in (SST2, COLA)]
    merged(folders, tmp_path / "both")
    model = MultiHead.load(tmp_path / "both")
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    words = model.tokenizer(["a good film .", "bad"], return_tensors="pt", padding=True)
    logits = model(**words)
    assert list(logits) == ["tiny-sst2", "tiny-cola"] and len(passes) == 1
    for name, values in logits.items():
        alone = model.classifier(name)(words["input_ids"], words["attention_mask"])
        assert torch.equal(alone, values)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda f: (f / "heads.safetensors").write_bytes(b"x"), "cut short or changed"),
        (lambda f: (f / "heads.safetensors").unlink(), "cannot be read"),
        (lambda f: (f / "multi_head_config.json").write_text("{"), "is not JSON, or cut short"),
        (lambda f: (f / "multi_head_config.json").write_text("[]"), "not of the format 1"),
        (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    ],
)
def test_a_broken_folder_is_refused(
    trained: Callable[..., Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    break_it: Callable[[Path], Any],
    told: str,
) -> None:
    merged([trained("sparta", *task)[2] for task in (SST2, COLA)], tmp_path / "both")
    break_it(tmp_path / "both")
    code, out, error = call(capfd, "predict", str(tmp_path / "both"), "a")
    assert (code, out) == (2, "") and told in error


def test_another_backbone_of_the_same_shapes_is_refused(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = (trained("sparta", *task)[2] for task in (SST2, COLA))
    merged([one, other], tmp_path / "both")
    merged([one], tmp_path / "one")
    shutil.copy(tmp_path / "one" / "model.safetensors", tmp_path / "both")
    about = json.loads((tmp_path / "both" / "multi_head_config.json").read_text())
    code, out, error = call(capfd, "predict", str(tmp_path / "both"), "a")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'both'}: the backbone's weights are not those that were merged" in error
    assert f"and multi_head_config.json says {about['backbone_fingerprint']}" in error


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sparta", ("model.dtype=bfloat16",)),
        ("lora", ()),
        ("full_ft", ()),
        ("head", ("task=tiny-rte", "task.separator=sep_token")),
    ],
)
def test_a_folder_knows_its_own_backbone_and_an_old_one_is_read_as_it_was(
    trained: Callable[..., Any], tmp_path: Path, method: str, settings: tuple[str, ...]
) -> None:
    merged([trained(method, *settings)[2]], tmp_path / "one")
    path = tmp_path / "one" / "multi_head_config.json"
    about, model = json.loads(path.read_text()), MultiHead.load(tmp_path / "one")
    assert about.pop("backbone_fingerprint") == store.fingerprint_of(model.backbone)
    path.write_text(json.dumps(about))  # as before the fingerprint was written
    old = MultiHead.load(tmp_path / "one").state_dict()
    assert all(torch.equal(old[name], value) for name, value in model.state_dict().items())


def test_heads_of_another_shape_are_refused(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "both"
    merged([trained("sparta", *task)[2] for task in (SST2, COLA)], folder)
    heads = load_file(folder / "heads.safetensors")
    save_file({**heads, "tiny-sst2": torch.zeros(3, 64)}, folder / "heads.safetensors")
    about = json.loads((folder / "multi_head_config.json").read_text())
    about["heads_sha256"] = multi_head.sha256_of(folder / "heads.safetensors")
    (folder / "multi_head_config.json").write_text(json.dumps(about))
    code, _, error = call(capfd, "evaluate", str(folder))
    assert code == 2 and "tiny-sst2 has the shape (3, 64), where (2, 64) belongs" in error


# ------------------------------------------------------------------------------ command line
def test_the_command_writes_warns_and_names(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = trained("sparta", *SST2)[2], trained("sparta", "task=tiny-cola")[2]
    out = tmp_path / "both"
    code, printed, error = call(
        capfd, "merge", "multi-head", str(one), str(other), "--names", "a.b,c", "--out", str(out)
    )
    assert code == 0 and "with 2 heads: a.b, c" in printed
    chosen = json.loads((one / "adapter_config.json").read_text())["chosen"]
    assert (
        f"a.b and c were both drawn with seed 0, so their indices coincide: {chosen:,} are shared"
        in error
    )
    code, _, error = call(capfd, "merge", "multi-head", str(one), "--out", str(out))
    assert code == 2 and "is not empty (--force replaces" in error


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["combine", "A", "B", "--weights", "1"], "1 numbers for 2 models"),
        (["combine", "A", "B", "--weights", "1,x"], "1,x is no list of numbers"),
        (["combine", "A", "B", "--weights", "-1,2,3"], "3 numbers for 2 models"),
        (["combine", "A", "B", "--weights", "-1,", "--how", "sum"], "-1, is no list of numbers"),
        (["combine", "A", "B", "--weights", "-1,x"], "-1,x is no list of numbers"),
        (["combine", "A", "B", "--weights", "-2e6,1"], "-2e6,1 is no list of numbers"),
        (["combine", "A", "B", "--weights", "nan,1"], "nan,1 is no list of numbers"),
        (["combine", "A", "B", "--dare", "1"], "1 is no number inside (0, 1)"),
        (["combine", "A", "B", "--seed", "-1"], "--seed"),
        (["multi-head", "A", "B", "--names", "x,x"], "must be 2 different names"),
        (["multi-head", "A", "nowhere"], "nowhere"),
        (["multi-head", "A", "M"], "another base model than"),
        (["multi-head", "A", "H"], "another dtype than"),
        (["multi-head", "A", "A/.."], "a run's folder; what it trained is in"),
        (["multi-head", "A", "A"], "is given twice"),
        (
            ["multi-head", "A", "B", "--names", "__metadata__,x"],
            "'__metadata__': no name for a head",
        ),
        (["multi-head", "A", "B", "--names", "x,a\tb"], "'a\\tb': no name for a head"),
        (["multi-head", "A", "B", "--names", "x,\udcff"], "no name for a head"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_together_is_refused(
    trained: Callable[..., Any],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    places = {
        "A": trained("sparta", *SST2)[2],
        "B": trained("sparta", *COLA)[2],
        "L": trained("lora", *COLA)[2],
        "M": trained("sparta", "model=tiny-mistral")[2],
        "H": trained("sparta", *COLA, *BFLOAT16)[2],
    }
    given = [str(places.get(word, word)) for word in words]
    if "A/.." in words:
        given[-1] = str(places["A"].parent)
    code, out, error = call(capfd, "merge", *given, "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "") and told in error
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_is_refused(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = trained("sparta", *SST2)[2]
    other = shutil.copytree(trained("sparta", *COLA)[2], tmp_path / "other")
    about = json.loads((other / "adapter_config.json").read_text())
    about["tokenizer_fingerprint"] = "0" * 16
    (other / "adapter_config.json").write_text(json.dumps(about))
    out = str(tmp_path / "out")
    code, _, error = call(capfd, "merge", "multi-head", str(one), str(other), "--out", out)
    assert code == 2 and "another vocabulary (tokenizer) than" in error


@pytest.mark.parametrize("method", ["sparta", "lora", "head", "full_ft"])
def test_another_base_is_refused_whatever_the_method(
    trained: Callable[..., Any], tmp_path: Path, method: str
) -> None:
    folder = trained(method, *SST2)[2]
    base = tmp_path / "base"
    shutil.copytree(TINY_GEMMA, base)
    values = load_file(base / "model.safetensors")
    save_file({name: 2 * value for name, value in values.items()}, base / "model.safetensors")
    with pytest.raises(InputError, match="was trained on another base model: the fingerprint"):
        open_task_vectors([folder], base=str(base))


def test_a_whole_model_that_does_not_name_its_bases_values_is_read_and_not_merged(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    folder = shutil.copytree(trained("full_ft", *SST2)[2], tmp_path / "old")
    about = json.loads((folder / "classifier_config.json").read_text())
    del about["base_fingerprint"]
    (folder / "classifier_config.json").write_text(json.dumps(about))
    assert load(folder, None, None).about.base_fingerprint is None
    with pytest.raises(InputError, match="does not say what its base's weights were"):
        open_task_vectors([folder])


def test_a_baked_model_merges_as_its_adapter(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = trained("sparta", *SST2)[2]
    call(capfd, "merge", "bake", str(folder), "--out", str(tmp_path / "baked"))
    merged([folder], tmp_path / "one")
    merged([tmp_path / "baked"], tmp_path / "other")
    one, other = weights_of(tmp_path / "one"), weights_of(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_added_token_of_another_seed_is_another_base(trained: Callable[..., Any]) -> None:
    where = ("task=tiny-rte", "task.separator=sep_token")
    one, other = (trained("head", *where, f"seed={seed}")[2] for seed in (0, 1))
    with pytest.raises(InputError, match="whose embedding is drawn from the seed: 1, and 0 of"):
        open_task_vectors([one, other])
    assert len(open_task_vectors([one, one])[1]) == 2


def test_names_that_tasks_give_are_all_different(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    folders = []
    for number, task in enumerate(("a", "a-2", "a", "a")):
        folder = shutil.copytree(trained("head", *SST2)[2], tmp_path / str(number))
        about = json.loads((folder / "adapter_config.json").read_text()) | {"task": task}
        (folder / "adapter_config.json").write_text(json.dumps(about))
        folders.append(folder)
    assert [source.name for source in open_task_vectors(folders)[1]] == ["a", "a-2", "a-3", "a-4"]


def changed_adapter(folder: Path, values: dict[str, Any], head: Tensor | None) -> None:
    """Change an adapter's configuration and head, with the hash that belongs."""
    config = store.read_config(folder)
    tensors = store.read_tensors(folder, config)
    if head is not None:
        tensors["head.weight"] = head
    store.write(folder, tensors, config | values)


@pytest.mark.parametrize("method", ["sparta", "lora", "head"])
@pytest.mark.parametrize(
    ("values", "head", "told"),
    [
        ({}, torch.full((2, 64), float("nan")), "not hold finite numbers"),
        ({}, torch.ones(2, 64, dtype=torch.int64), "not hold finite numbers"),
        ({"base_model": {"name": "x"}}, None, "base_model.fingerprint: is missing"),
        ({"base_model": "x"}, None, "base_model"),
        ({"task": 5}, None, "task=5: must be a text, or null"),
        ({"dtypes": {"model": [], "trained": "float32"}}, None, "dtypes.model="),
        ({"density": []}, None, "density="),
    ],
    ids=["nan", "whole", "fingerprint", "base", "task", "dtypes", "density"],
)
def test_a_broken_adapter_is_refused(
    trained: Callable[..., Any],
    tmp_path: Path,
    method: str,
    values: dict[str, Any],
    head: Tensor | None,
    told: str,
) -> None:
    folder = shutil.copytree(trained(method, *SST2)[2], tmp_path / "broken")
    changed_adapter(folder, values, head)
    with pytest.raises(InputError, match=told):
        open_task_vectors([folder])


@pytest.mark.parametrize(
    "values", [{"r": "8"}, {"r": 0}, {"alpha": None}, {"targets": 5}, {"lora_dropout": []}]
)
def test_settings_of_lora_that_are_none_are_refused(
    trained: Callable[..., Any], tmp_path: Path, values: dict[str, Any]
) -> None:
    folder = shutil.copytree(trained("lora", *SST2)[2], tmp_path / "broken")
    changed_adapter(folder, {"method": store.read_config(folder)["method"] | values}, None)
    with pytest.raises(InputError, match=f"method.{next(iter(values))}=.*: must be"):
        open_task_vectors([folder])


@pytest.mark.parametrize("tensor", ["score.weight", "model.norm.weight"])
def test_a_whole_model_with_nan_in_it_is_refused(
    trained: Callable[..., Any], tmp_path: Path, tensor: str
) -> None:
    folder = shutil.copytree(trained("full_ft", *SST2)[2], tmp_path / "broken")
    values = load_file(folder / "model.safetensors")
    save_file(
        {**values, tensor: values[tensor] * float("nan")}, folder / "model.safetensors",
        {"format": "pt"},
    )  # fmt: skip
    with pytest.raises(InputError, match="does not hold finite numbers"):
        merged([folder], tmp_path / "out")


@pytest.mark.parametrize("name", ["adapter_config.json", "classifier_config.json"])
def test_json_of_endless_depth_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(InputError, match="JSON, or cut short"):
        open_task_vectors([tmp_path])


def test_a_merged_model_is_not_merged_again(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    merged([trained("sparta", *SST2)[2]], tmp_path / "one")
    for verb in ("multi-head", "bake"):
        code, _, error = call(capfd, "merge", verb, str(tmp_path / "one"), "--out", f"{tmp_path}/x")
        assert code == 2 and "a multi-head model, merged already" in error
    code, _, error = call(capfd, "merge", "overlap", str(trained("sparta", *SST2)[2]))
    assert code == 2 and "at least two models are needed" in error


def test_overlap_counts_shared_entries_and_conflicts(
    trained: Callable[..., Any], capfd: pytest.CaptureFixture[str]
) -> None:
    folders = [trained("sparta", *task)[2] for task in (SST2, COLA)]
    code, out, _ = call(capfd, "merge", "overlap", *map(str, folders), "--json")
    (found,) = json.loads(out)
    adapters = [load_file(folder / "adapter.safetensors") for folder in folders]
    shared, conflicts, by_chance, changed = 0, 0, 0.0, [0, 0]
    sizes = {name: value.numel() for name, value in open_task_vectors(folders)[0].values.items()}
    for name, size in sizes.items():
        signs = []
        for adapter in adapters:
            sign = torch.zeros(size)
            if f"{name}.indices" in adapter:
                sign[adapter[f"{name}.indices"].long()] = adapter[f"{name}.deltas"].sign()
            signs.append(sign)
        shared += int((signs[0] * signs[1] != 0).sum())
        conflicts += int((signs[0] * signs[1] < 0).sum())
        counts = [int((sign != 0).sum()) for sign in signs]
        changed = [had + more for had, more in zip(changed, counts, strict=True)]
        by_chance += counts[0] * counts[1] / size
    assert code == 0
    assert (found["shared"], found["conflicts"]) == (shared, conflicts)
    assert found["changed"] == changed
    assert found["shared_by_chance"] == pytest.approx(by_chance)
    assert found["conflicts_by_chance"] == shared / 2
    assert abs(shared - by_chance) < 5 * by_chance**0.5
    code, out, _ = call(capfd, "merge", "overlap", *map(str, folders))
    assert f"{shared:,} shared, {by_chance:,.0f} by chance" in out


# ------------------------------------------------------------------------------ predictions
def test_predict_reads_all_heads_or_one(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "both"
    merged([trained("sparta", *task)[2] for task in (SST2, COLA)], folder)
    texts = ["the film was good .", "film the good"]
    _, out, _ = call(capfd, "predict", str(folder), *texts, "--jsonl")
    together = [json.loads(line) for line in out.splitlines()]
    assert [list(one) for one in together] == [["tiny-sst2", "tiny-cola"]] * 2
    for name in ("tiny-sst2", "tiny-cola"):
        _, out, _ = call(capfd, "predict", str(folder), *texts, "--jsonl", "--head", name)
        assert [json.loads(line) for line in out.splitlines()] == [one[name] for one in together]
    _, out, _ = call(capfd, "predict", str(folder), *texts)
    first = out.splitlines()[0].split("\t")
    assert first[0::3] == ["tiny-sst2", "tiny-cola"]
    assert first[1] == together[0]["tiny-sst2"]["label"]
    code, _, error = call(capfd, "predict", str(folder), "a", "--head", "tiny-cole")
    assert code == 2 and "no such head (did you mean tiny-cola" in error
    code, _, error = call(capfd, "predict", str(folder), "a", "--base", "somewhere")
    assert code == 2 and "is whole and needs none" in error


def test_heads_that_read_other_columns_need_a_choice(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "both"
    merged([trained("sparta", *task)[2] for task in (SST2, ("task=tiny-rte", "seed=1"))], folder)
    code, _, error = call(capfd, "predict", str(folder), "a")
    assert code == 2 and "--head NAME chooses one" in error
    assert call(capfd, "predict", str(folder), "a", "--head", "tiny-sst2")[0] == 0
    assert call(capfd, "predict", str(folder), "a\tb", "--head", "tiny-rte")[0] == 0


def test_instruction_models_read_a_text_once_for_each_prompt(
    trained: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, model = tmp_path / "both", ("model=tiny-gemma-it",)
    merged([trained("sparta", *task, *model)[2] for task in (SST2, COLA)], folder)
    _, out, _ = call(capfd, "predict", str(folder), "a good film .", "--jsonl")
    together = json.loads(out)
    for name in together:
        _, out, _ = call(capfd, "predict", str(folder), "a good film .", "--jsonl", "--head", name)
        assert json.loads(out) == together[name]


def test_a_model_without_a_tokenizers_pad_is_called_with_padding(
    trained: Callable[..., Any], tmp_path: Path
) -> None:
    folders = [trained("sparta", *task, "model=tiny-mistral")[2] for task in (SST2, COLA)]
    merged(folders, tmp_path / "both")
    model = MultiHead.load(tmp_path / "both")
    assert isinstance(model, nn.Module)
    both = model.tokenizer(["a good film .", "bad"], return_tensors="pt", padding=True)
    alone = model.tokenizer(["bad"], return_tensors="pt", padding=True)
    for name, logits in model(**both).items():
        torch.testing.assert_close(logits[1], model(**alone)[name][0], rtol=0, atol=1e-5)
