"""The algorithm against a plain reference, and its promises: exact, restorable, reproducible."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from small_models import backbone, batch, classifier, loss_of, same_values, values_of
from torch import nn

from sparta_bench.sparta import SpartaAdapter
from sparta_bench.sparta.merge import rounded_sum


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [("mistral", {}), ("gemma", {}), ("llama", {"attention_bias": True, "mlp_bias": True})],
)
@pytest.mark.parametrize("gradient", ["dense", "sampled"])
def test_twenty_steps_equal_a_dense_gradient_with_a_mask(
    model_type: str, extra: dict, gradient: str
) -> None:
    plain, ours = backbone(model_type, **extra), backbone(model_type, **extra)
    adapter = SpartaAdapter(ours, density=0.1, seed=3, dtype=torch.float64, gradient=gradient)
    assert any(name.endswith("norm.weight") for name in adapter.deltas)
    assert any(name.endswith("bias") for name in adapter.deltas) == bool(extra)
    tensors = dict(plain.named_parameters())
    chosen = {name: places.long() for name, places in adapter.indices.items()}
    start = {
        name: tensors[name].detach().view(-1)[places].clone() for name, places in chosen.items()
    }
    deltas = {name: nn.Parameter(torch.zeros_like(values)) for name, values in start.items()}
    reference = torch.optim.Adam(deltas.values(), lr=1e-2)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        ids = torch.randint(0, 40, (3, 7), generator=generator)
        expected = loss_of(plain, ids)
        plain.zero_grad()
        expected.backward()
        for name, places in chosen.items():
            deltas[name].grad = tensors[name].grad.view(-1)[places].clone()
        reference.step()
        with torch.no_grad():
            for name, places in chosen.items():
                tensors[name].view(-1)[places] = start[name] + deltas[name]
        actual = loss_of(ours, ids)
        actual.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    adapter.bake()
    for name, tensor in ours.named_parameters():
        torch.testing.assert_close(tensor.detach(), tensors[name].detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_detach_gives_back_every_bit_and_weights_hold_the_rounded_sum(dtype: torch.dtype) -> None:
    model = classifier(dtype=dtype)
    before = values_of(model)
    with SpartaAdapter(model, density=0.2, seed=0) as adapter:
        assert all(value.dtype == torch.float32 for value in adapter.parameters())
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2, fused=True)
        for _ in range(5):
            model(**batch()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        now = dict(model.model.named_parameters())
        for name, places in adapter.indices.items():
            start = before[f"model.{name}"].view(-1)[places.long()]
            assert torch.equal(adapter.originals[name], start)
            expected = rounded_sum(start, adapter.deltas[name].detach())
            assert torch.equal(now[name].view(-1)[places.long()], expected)
            if "proj" in name:  # a norm's float16 gradient may vanish at this size
                assert not torch.equal(now[name], before[f"model.{name}"])
        assert not torch.equal(model.score.weight.to(dtype), before["score.weight"])
    assert same_values(model, before)
    assert all(tensor.requires_grad for tensor in model.parameters())
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    adapter.detach()  # twice is once
    assert same_values(model, before)


def test_a_crash_inside_a_step_gives_the_model_back() -> None:
    model = classifier(dtype=torch.bfloat16)
    before = values_of(model)

    def crash(*_: object) -> None:
        raise RuntimeError("in the middle of the backward pass")

    with (
        pytest.raises(RuntimeError, match="in the middle"),
        SpartaAdapter(model, 0.3, 0) as adapter,
    ):
        optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
        model(**batch()).loss.backward()
        optimizer.step()
        model.model.layers[0].mlp.down_proj.register_full_backward_hook(crash)
        model(**batch()).loss.backward()
    assert same_values(model, before)


def test_another_adapter_waits_until_the_first_is_detached() -> None:
    model = classifier()
    before = values_of(model)
    adapter = SpartaAdapter(model, 0.3, 0)
    adapter.deltas["layers.0.mlp.up_proj.weight"].data += 1
    adapter.merge()
    with pytest.raises(ValueError, match="carries a SpaRTA adapter already; detach that first"):
        SpartaAdapter(model, 0.3, 1)
    adapter.detach()
    assert same_values(model, before)
    SpartaAdapter(model, 0.3, 1).detach()
    assert same_values(model, before)


def test_bake_leaves_a_plain_model_with_the_trained_values() -> None:
    model = classifier(dtype=torch.bfloat16)
    adapter = SpartaAdapter(model, 0.3, 0)
    torch.nn.init.normal_(adapter.deltas["layers.1.mlp.up_proj.weight"])
    torch.nn.init.normal_(adapter.head["score.weight"])
    adapter.merge()
    trained = dict(model.named_parameters())["model.layers.1.mlp.up_proj.weight"].clone()
    head = adapter.head["score.weight"].detach().clone()
    adapter.bake()
    adapter.detach()
    assert set(values_of(model)) == set(values_of(classifier()))
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, trained)
    assert torch.equal(model.score.weight, head.to(torch.bfloat16))
    assert model(**batch()).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("delta_dtype", [torch.float32, torch.float64])
def test_the_sum_is_rounded_once(dtype: torch.dtype, delta_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(3000, generator=generator).to(dtype)
    half_step = torch.finfo(dtype).eps / 4 * original.abs().double()
    # most of these sums lie next to a tie, on either side of it, closer than float32 can see
    nudge = torch.randn(3000, generator=generator).double() * 1e-9 * half_step
    delta = (half_step.log2().floor().exp2() * torch.sign(original.double()) + nudge).to(
        delta_dtype
    )
    delta[::3] = torch.randn(1000, generator=generator).to(delta_dtype)
    delta[1::30] = delta[1::30] * 1e8
    result = rounded_sum(original, delta)
    assert result.dtype == dtype
    up = torch.full_like(result, float("inf"))
    for value, a, b, over, under in zip(
        result.double().tolist(),
        original.double().tolist(),
        delta.double().tolist(),
        torch.nextafter(result, up).double().tolist(),
        torch.nextafter(result, -up).double().tolist(),
        strict=True,
    ):
        if value in (float("inf"), float("-inf")):
            assert abs(a + b) > torch.finfo(dtype).max
            continue
        exact = Fraction(a) + Fraction(b)
        for neighbour in (over, under):
            if abs(neighbour) != float("inf"):
                assert abs(Fraction(value) - exact) <= abs(Fraction(neighbour) - exact)


def test_rounding_twice_would_have_gone_wrong() -> None:
    original = torch.tensor([1.0], dtype=torch.bfloat16)
    delta = torch.tensor([2.0**-8 + 2.0**-31])  # just over the middle between 1 and 1 + 2^-7
    assert (original.float() + delta).to(torch.bfloat16).item() == 1.0
    assert rounded_sum(original, delta).item() == 1.0 + 2.0**-7
    odd = torch.tensor([float("inf"), float("nan"), 3e38], dtype=torch.bfloat16)
    total = rounded_sum(odd, torch.tensor([1.0, 1.0, 3e38]))
    assert total[0] == float("inf") and total[1].isnan() and total[2] == float("inf")


def test_tied_weights_are_chosen_from_once_and_get_both_gradients() -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
        model[2].weight = model[0].weight
        return model.double()

    x = torch.randn(5, 6, dtype=torch.float64)
    plain, ours = tied(), tied()
    plain(x).pow(2).sum().backward()
    adapter = SpartaAdapter(ours, 0.5, 0, dtype=torch.float64)
    ours(x).pow(2).sum().backward()
    (name,) = adapter.deltas
    expected = plain[0].weight.grad.view(-1)[adapter.indices[name].long()]
    torch.testing.assert_close(adapter.deltas[name].grad, expected)
    adapter.detach()
    assert ours[0].weight is ours[2].weight


def test_a_layer_whose_weight_others_read_trains_as_well() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True)  # reads out_proj.weight by itself
    x = torch.randn(2, 3, 8)
    adapter = SpartaAdapter(model, 0.5, 0)
    model(x, x, x)[0].pow(2).sum().backward()
    assert {"in_proj_weight", "out_proj.weight"} <= set(adapter.deltas)
    assert all(bool((value.grad != 0).any()) for value in adapter.parameters())


class Reads(nn.Module):
    """A linear layer that is called, one whose weight is read, and one of which both is true."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.called, self.read, self.both = (nn.Linear(8, 8).double() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.both(self.called(x)) @ self.both.weight + self.both.bias
        return y @ self.read.weight.t() + self.read.bias


@pytest.mark.parametrize("gradient", ["dense", "sampled"])
@pytest.mark.parametrize("name", ["reads", "mamba"])
def test_a_linear_layer_whose_weight_is_read_gets_the_plain_gradient(
    name: str, gradient: str
) -> None:
    def run(model: nn.Module) -> None:
        if name == "mamba":  # reads dt_proj.weight
            loss_of(model, torch.tensor([[1, 7, 9, 4]])).backward()
        else:
            x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            model(x).pow(2).sum().backward()

    plain, ours = (Reads() if name == "reads" else backbone("mamba") for _ in range(2))
    run(plain)
    adapter = SpartaAdapter(ours, 0.3, 0, dtype=torch.float64, gradient=gradient)
    run(ours)
    tensors = dict(plain.named_parameters())
    for tensor, delta in adapter.deltas.items():
        expected = tensors[tensor].grad.view(-1)[adapter.indices[tensor].long()]
        assert delta.grad is not None, tensor
        torch.testing.assert_close(delta.grad, expected, rtol=1e-9, atol=1e-12)


def test_a_copy_of_the_model_computes_with_its_own_weights() -> None:
    model = classifier().eval()
    adapter = SpartaAdapter(model, 0.3, 0)
    twin = copy.deepcopy(model)
    logits = twin(**batch()).logits
    with torch.no_grad():
        for value in adapter.parameters():
            value += 0.5
    adapter.merge()
    assert torch.equal(twin(**batch()).logits, logits)
    assert not torch.equal(model(**batch()).logits, logits)


def test_the_adapter_lives_as_long_as_the_model_and_no_longer() -> None:
    model = classifier()
    optimizer = torch.optim.SGD(SpartaAdapter(model, 0.3, 0).parameters(), lr=1.0)
    gc.collect()
    name = "layers.0.mlp.up_proj.weight"
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    model(**batch()).loss.backward()
    optimizer.step()
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before), name
    there = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert there() is None


def test_a_density_outside_and_a_way_unknown_are_refused() -> None:
    for density in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=r"density=.*: must be a number inside \(0, 1\)"):
            SpartaAdapter(classifier(), density, 0)
    with pytest.raises(ValueError, match=r"density='0\.1': must be a number"):
        SpartaAdapter(classifier(), "0.1", 0)
    for seed in (-1, 2**63, 0.5, "a"):
        with pytest.raises(ValueError, match=f"seed={seed!r}: must be a whole number from 0 to"):
            SpartaAdapter(classifier(), 0.1, seed)
    with pytest.raises(ValueError, match=r"density=1e-09: chose none of .* scalars"):
        SpartaAdapter(classifier(), 1e-9, 0)
    with pytest.raises(ValueError, match="gradient=fast: must be one of auto, dense, sampled"):
        SpartaAdapter(classifier(), 0.1, 0, gradient="fast")
    with pytest.raises(ValueError, match="density_of=total: must be sampled or backbone"):
        SpartaAdapter(classifier(), 0.1, 0, density_of="total")
    with pytest.raises(ValueError, match="targets=all: the model has nothing but embeddings"):
        SpartaAdapter(nn.Embedding(9, 4), 0.1, 0)
    with pytest.raises(ValueError, match="no quantized ones"):
        model = classifier()
        model.model.layers[0].mlp.up_proj.weight = nn.Parameter(
            torch.zeros(24, 16, dtype=torch.int8), requires_grad=False
        )
        SpartaAdapter(model, 0.1, 0)


def test_a_vocabulary_head_stays_frozen() -> None:
    from small_models import SMALL
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("mistral", **SMALL, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config)
    adapter = SpartaAdapter(model, 0.3, 0)
    assert adapter.head == {}
    ids = batch()["input_ids"]
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.lm_head.weight.grad is None
    assert all(value.grad is not None for value in adapter.parameters())
    # the same backbone, the same places, whatever stands on it
    assert adapter.checksum() == SpartaAdapter(backbone(), 0.3, 0).checksum()


def test_gradients_accumulate_over_parts_of_a_batch() -> None:
    ids = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(0))
    whole, parts = backbone(), backbone()
    one = SpartaAdapter(whole, density=0.3, seed=0, dtype=torch.float64)
    two = SpartaAdapter(parts, density=0.3, seed=0, dtype=torch.float64)
    loss_of(whole, ids).backward()
    for half in ids.split(2):
        (loss_of(parts, half) / 2).backward()
    for name in one.deltas:
        torch.testing.assert_close(one.deltas[name].grad, two.deltas[name].grad)


def test_only_what_is_chosen_has_a_gradient() -> None:
    model = backbone()
    adapter = SpartaAdapter(model, density=0.5, seed=0, targets=["v_proj"])
    loss_of(model, torch.randint(0, 40, (2, 5))).backward()
    assert set(adapter.deltas) == {f"layers.{layer}.self_attn.v_proj.weight" for layer in (0, 1)}
    assert all(delta.grad is not None for delta in adapter.parameters())
    deltas = {id(delta) for delta in adapter.parameters()}
    assert all(tensor.grad is None for tensor in model.parameters() if id(tensor) not in deltas)


def test_deltas_swallowed_by_rounding_are_counted() -> None:
    model = backbone(dtype=torch.bfloat16)
    adapter = SpartaAdapter(model, density=0.2, seed=0)
    assert adapter.lost_to_rounding() == 0.0
    with torch.no_grad():
        for delta in adapter.parameters():
            delta[0] = 1.0
            delta[1 : len(delta) // 2] = 1e-12  # the other half is zero, and no change is lost
    adapter.merge()
    kept = len(adapter.deltas)
    assert adapter.lost_to_rounding() == pytest.approx(1 - 2 * kept / adapter.chosen, abs=0.01)


# ------------------------------------------------------- what people do with models besides
def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_trains_by_itself_and_leaves_the_original_alone(way: str) -> None:
    model = small()
    plain = values_of(model)
    adapter = SpartaAdapter(model, 0.5, 0)
    attached = values_of(model)
    twin = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    optimizer = torch.optim.SGD(trainable(twin), lr=1.0)
    for _ in range(2):
        twin(torch.randn(8, 16)).pow(2).sum().backward()
        optimizer.step()
    for name, places in twin.sparta_adapter.indices.items():
        total = twin.sparta_adapter.originals[name] + twin.sparta_adapter.deltas[name]
        tensor = dict(twin.named_parameters())[name]
        assert torch.equal(tensor.view(-1)[places.long()], total)
        assert not torch.equal(tensor, plain[name])
    assert same_values(model, attached)
    twin.sparta_adapter.detach()
    assert same_values(twin, plain)
    assert adapter.chosen > 0 and type(model[0]).__name__ == "SpartaLinear"
    adapter.detach()
    assert same_values(model, plain)


def test_lbfgs_sees_its_own_steps() -> None:
    def losses_of(model: nn.Module, values: list[nn.Parameter]) -> list[float]:
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
        found: list[float] = []
        optimizer = torch.optim.LBFGS(values, max_iter=8)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (model(x) - x[:, :4]).pow(2).mean()
            loss.backward()
            found.append(loss.item())
            return loss

        optimizer.step(closure)
        return found

    model = small()
    adapter = SpartaAdapter(model, 0.999, 0)  # all but all: nearly the plain problem
    ours = losses_of(model, adapter.parameters())
    twin = small()
    plain = losses_of(twin, list(twin.parameters()))
    assert len(ours) > 5
    assert ours[0] == plain[0] and ours[-1] < 0.8 * ours[0]
    assert ours[-1] == pytest.approx(plain[-1], rel=0.1)


def test_a_layer_with_a_forward_pass_of_somebody_elses_trains_as_well() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    model = small()
    add_hook_to_module(model[0], ModelHook())
    adapter = SpartaAdapter(model, 0.5, 0)
    model(torch.randn(2, 16)).pow(2).sum().backward()
    assert all(delta.grad is not None for delta in adapter.deltas.values())


def test_an_optimizer_that_was_built_too_early_is_told_of() -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SpartaAdapter(model, 0.5, 0)
    model(torch.randn(2, 16)).pow(2).sum().backward()
    with pytest.raises(RuntimeError, match="build it after the adapter"):
        optimizer.step()
    other = small()  # an optimizer of another model is left alone
    other(torch.randn(2, 16)).pow(2).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    ("before", "after"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_a_model_converted_meanwhile_stays_usable(
    before: torch.dtype, after: torch.dtype, tmp_path: Path
) -> None:
    for leave in ("detach", "bake"):
        model = classifier(dtype=before).eval()
        adapter = SpartaAdapter(model, 0.3, 0)
        torch.nn.init.normal_(adapter.deltas["layers.1.mlp.up_proj.weight"])
        adapter.merge()
        model.to(after)
        tensor = model.model.layers[1].mlp.up_proj.weight.detach().clone()
        adapter.merge()
        assert torch.equal(model.model.layers[1].mlp.up_proj.weight, tensor), "not stale"
        with pytest.raises(ValueError, match="when the adapter was attached and is"):
            adapter.save(tmp_path / "a")
        getattr(adapter, leave)()
        assert {p.dtype for p in model.parameters()} == {after}
        assert model(**batch()).logits.dtype == after


def test_deltas_replaced_by_a_state_dict_are_the_adapters() -> None:
    model = small()
    adapter = SpartaAdapter(model, 0.5, 0)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    model(torch.randn(8, 16)).pow(2).sum().backward()
    optimizer.step()
    assert bool((adapter.deltas["0.weight"] != 0).any())
    total = adapter.originals["0.weight"] + adapter.deltas["0.weight"]
    assert torch.equal(model[0].weight.view(-1)[adapter.indices["0.weight"].long()], total)


def test_a_refused_attachment_leaves_no_trace() -> None:
    model = small()
    before = values_of(model)
    for options in ({"dtype": torch.int32}, {"gradient": "fast"}, {"targets": ["nothing"]}):
        with pytest.raises(ValueError, match=r"must be one of|is called"):
            SpartaAdapter(model, 0.5, 0, **options)
    assert same_values(model, before) and len(trainable(model)) == len(before)
    assert type(model[0]) is nn.Linear


def test_another_memory_format_is_no_obstacle() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3)
    before = values_of(model)
    adapter = SpartaAdapter(model, 0.5, 0)
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=1.0)
    model(torch.randn(2, 4, 5, 5)).pow(2).sum().backward()
    optimizer.step()
    places = adapter.indices["weight"].long()
    total = adapter.originals["weight"] + adapter.deltas["weight"]
    assert torch.equal(model._parameters["weight"].reshape(-1)[places], total)
    assert adapter.lost_to_rounding() == 0.0
    adapter.detach()
    assert same_values(model, before)


def test_a_tiny_float64_delta_on_a_zero_is_a_number() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        for value in (1e-50, -1e-50, 1e39, -1e39):
            total = rounded_sum(torch.zeros(1, dtype=dtype), torch.tensor([value]).double())
            expected = 0.0 if abs(value) < 1 else math.copysign(math.inf, value)
            assert total.double().item() == expected
