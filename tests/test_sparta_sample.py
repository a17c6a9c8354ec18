"""Which scalars are chosen: a Bernoulli draw, the same everywhere, in the memory of the chosen."""

from __future__ import annotations

import time
import tracemalloc

import pytest
import torch
from small_models import backbone
from transformers import AutoModel, MistralConfig

from sparta_bench.sparta.sample import sample_all, sample_indices, sampled_tensors
from sparta_bench.sparta.targets import PATTERNS


def test_indices_are_a_bernoulli_draw() -> None:
    count, chance = 2_000_000, 0.01
    places = sample_indices(count, chance, seed=5, name="layer.weight").long()
    spread = (count * chance * (1 - chance)) ** 0.5
    assert abs(len(places) - count * chance) < 4 * spread
    assert int(places.min()) >= 0 and int(places.max()) < count
    assert bool((places.diff() > 0).all())
    bins = torch.histc(places.float(), bins=50, min=0, max=count)
    chi_square = float(((bins - bins.mean()) ** 2 / bins.mean()).sum())
    assert 20 < chi_square < 95  # 49 degrees of freedom: 99.99 % lie within


@pytest.mark.parametrize("chance", [1e-7, 0.5, 0.999, 1.0])
def test_extreme_chances(chance: float) -> None:
    places = sample_indices(1000, chance, seed=0, name="x")
    assert len(places) == len(set(places.tolist()))
    assert len(places) in {1e-7: {0}, 0.5: set(range(420, 580)), 0.999: set(range(990, 1001))}.get(
        chance, {1000}
    )


def test_same_seed_and_name_same_places_in_any_process() -> None:
    here = sample_indices(100, 0.1, 7, "a.weight").tolist()
    # A golden draw: a record's seed must mean the same places in every later version.
    assert here == GOLDEN_PLACES
    assert sample_indices(100, 0.1, 7, "b.weight").tolist() != here
    assert sample_indices(100, 0.1, 8, "a.weight").tolist() != here


GOLDEN_PLACES = [25, 27, 36, 39, 55, 70, 83, 95, 98, 99]


def test_density_of_the_backbone_needs_enough_scalars() -> None:
    model = backbone()
    total = sum(tensor.numel() for tensor in model.parameters())
    chances = sampled_tensors(model, 0.01, ["v_proj", "o_proj"], "backbone")
    sizes = {name: dict(model.named_parameters())[name].numel() for name in chances}
    assert sum(sizes[name] * chance for name, chance in chances.items()) == pytest.approx(
        total / 100
    )
    with pytest.raises(ValueError, match=r"density=0\.5: the sampled tensors hold"):
        sampled_tensors(model, 0.5, ["v_proj", "o_proj"], "backbone")
    with pytest.raises(ValueError, match="no module of the model is called nothing"):
        sampled_tensors(model, 0.5, ["v_proj", "nothing"])
    assert set(sampled_tensors(model, 0.5, "v_proj")) == set(
        sampled_tensors(model, 0.5, ["v_proj"])
    )
    with pytest.raises(ValueError, match="no module of the model is called v_proj2"):
        sampled_tensors(model, 0.5, "v_proj2")  # of which v_proj is a part


def test_tensors_of_one_shape_get_different_places() -> None:
    places = sample_all({"a": (10_000,), "b": (100, 100)}, {"a": 0.1, "b": 0.1}, seed=0)
    shared = len(set(places["a"].tolist()) & set(places["b"].tolist()))
    assert 50 < shared < 155  # 100 by chance, standard deviation 10


@pytest.mark.parametrize("processors", [1, 7])
def test_threads_change_nothing(processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {f"layer.{number}": (5_000,) for number in range(20)}
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    drawn = sample_all(shapes, dict.fromkeys(shapes, 0.1), seed=0)
    assert list(drawn) == list(shapes)
    for name, indices in drawn.items():
        assert torch.equal(indices, sample_indices(5_000, 0.1, 0, name))


def test_rows_are_whole_and_a_vector_has_scalars() -> None:
    shapes = {"matrix": (2_000, 30), "vector": (5_000,)}
    drawn = sample_all(shapes, dict.fromkeys(shapes, 0.1), seed=0, pattern="rows")
    trained = torch.zeros(2_000 * 30, dtype=torch.bool)
    trained[drawn["matrix"]] = True
    per_row = trained.view(2_000, 30).sum(1)
    rows = sample_indices(2_000, 0.1, 0, "matrix").tolist()
    assert per_row.nonzero().flatten().tolist() == rows
    assert set(per_row.tolist()) == {0, 30}
    assert torch.equal(drawn["vector"], sample_indices(5_000, 0.1, 0, "vector"))


def test_the_rows_of_a_stack_are_those_of_its_matrices_and_one_number_is_a_vector() -> None:
    shapes = {"matrix": (2_000, 30), "one": ()}
    drawn = sample_all(shapes, dict.fromkeys(shapes, 0.5), seed=0, pattern="rows")
    stack = sample_all({"matrix": (20, 100, 30)}, {"matrix": 0.5}, seed=0, pattern="rows")
    assert torch.equal(stack["matrix"], drawn["matrix"])
    assert drawn["one"].tolist() == sample_indices(1, 0.5, 0, "one").tolist()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_tensor_too_large_for_32_bits_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="m holds 2800000000 scalars, more than 32-bit indices"):
        sample_all({"m": (70_000, 40_000)}, {"m": 1e-8}, seed=0, pattern=pattern)


def test_a_block_is_one_rectangle_of_the_expected_size() -> None:
    shapes = {"small": (10, 10), "wide": (100, 400), "tall": (400, 100), "vector": (5_000,)}
    names = set()
    for seed in range(8):
        drawn = sample_all(shapes, dict.fromkeys(shapes, 0.1), seed, pattern="block")
        (name,) = (name for name, indices in drawn.items() if len(indices))
        rows, columns = drawn[name] // shapes[name][1], drawn[name] % shapes[name][1]
        size = tuple(int(1 + axis.max() - axis.min()) for axis in (rows, columns))
        # 0.1 of 85,100 scalars, in the matrix's proportions
        assert size == {"wide": (46, 185), "tall": (184, 46)}[name]
        assert len(drawn[name]) == size[0] * size[1]
        assert torch.equal(drawn[name], drawn[name].unique())
        names.add(name)
    assert names == {"wide", "tall"}


def test_a_block_that_no_matrix_holds_is_refused() -> None:
    shapes = {"a": (100, 100), "b": (100, 100)}
    with pytest.raises(ValueError, match="pattern=block: 12,000 scalars are more than the largest"):
        sample_all(shapes, dict.fromkeys(shapes, 0.6), seed=0, pattern="block")


def test_five_percent_of_mistral_in_seconds_and_without_a_dense_temporary() -> None:
    shape = MistralConfig(
        vocab_size=32_768,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = AutoModel.from_config(shape)
    sizes = {name: tensor.numel() for name, tensor in model.named_parameters()}
    chances = sampled_tensors(model, 0.05)
    assert sum(sizes[name] for name in chances) == 6_979_588_096
    # memory on the largest tensor: a mask of one byte a scalar would be 58.7 MB
    name, largest = max(sizes.items(), key=lambda item: item[1] * (item[0] in chances))
    assert largest == 14_336 * 4096
    tracemalloc.start()
    chosen = len(sample_indices(largest, 0.05, 0, name))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # the pieces, and all of them as one tensor; and a piece's temporaries
    assert peak < 2 * 4 * chosen + 4e6 < largest / 2
    started = time.perf_counter()
    total = sum(len(sample_indices(sizes[name], 0.05, 0, name)) for name in list(chances)[:18])
    seconds = time.perf_counter() - started
    share = sum(sizes[name] for name in list(chances)[:18])
    assert abs(total - 0.05 * share) < 5 * (share * 0.05 * 0.95) ** 0.5
    assert seconds < 5  # two layers of 32, which take a quarter of a second on a calm machine
