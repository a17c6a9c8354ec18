"""Heads, pooling, dtypes and loading, on models of a few thousand parameters written to disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SMALL, backbone
from transformers import AutoConfig, AutoModelForCausalLM

from sparta_bench.config.compose import compose
from sparta_bench.errors import InputError
from sparta_bench.models.classifier import last_token, pooled, pooled_right_padded, random_head
from sparta_bench.models.dtypes import Precision, precision_of
from sparta_bench.models.features import FeatureClassifier
from sparta_bench.models.load import load_classifier, scale_of_logits, vocabulary_rows
from sparta_bench.models.source import answer_tokens, load_tokenizer, source_fingerprint

CPU = torch.device("cpu")
FLOAT32 = Precision(torch.float32, torch.float32)


def save_model(folder: Path, model_type: str = "mistral", shard: str = "5GB", **extra: Any) -> Path:
    """A random causal language model as a Hugging Face folder."""
    torch.manual_seed(0)
    tied = model_type in ("gemma", "cohere")
    small = SMALL | extra
    if model_type == "falcon":
        del small["head_dim"]  # derived there
    shape = AutoConfig.for_model(model_type, **small, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder, max_shard_size=shard)
    return folder


def config_for(folder: Path, *overrides: str):
    return compose(["model=local", f"model.path={folder}", "task=tiny-sst2", *overrides])


def test_a_random_head_starts_near_the_loss_of_a_guess() -> None:
    head = random_head(2, 2048, seed=0)
    assert head.shape == (2, 2048)
    assert float(head.std()) == pytest.approx(0.06 / math.sqrt(2048), rel=0.03)
    hidden = torch.randn(1000, 2048, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(1000) % 2
    loss = torch.nn.functional.cross_entropy(hidden @ head.T, labels)
    assert float(loss) == pytest.approx(math.log(2), abs=0.002)
    assert torch.equal(head, random_head(2, 2048, seed=0))
    assert not torch.equal(head, random_head(2, 2048, seed=1))


def test_the_last_token_is_found_on_either_side_of_the_padding() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    assert last_token(mask).tolist() == [2, 0, 3, 3]


@pytest.mark.parametrize("model_type", ["mistral", "gemma"])
def test_padding_never_changes_a_logit(tmp_path: Path, word_tokenizer, model_type: str) -> None:
    folder = save_model(tmp_path / "model", model_type)
    classifier = load_classifier(config_for(folder), word_tokenizer, FLOAT32, CPU).eval()
    alone = torch.tensor([[1, 7, 9]])
    logits = classifier(alone, torch.ones_like(alone))
    # id 2 is the end-of-sequence token: at the end of an input it is read, as padding it is not
    for padding in (0, 2, 63):
        padded = torch.tensor([[1, 7, 9, padding, padding], [1, 5, 4, 3, 2]])
        mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
        torch.testing.assert_close(classifier(padded, mask)[:1], logits, rtol=0, atol=1e-6)
        changed = padded.clone()
        changed[1, -1] = 6
        assert not torch.allclose(classifier(changed, mask)[1], classifier(padded, mask)[1])


@pytest.mark.parametrize(
    ("model_type", "shard"), [("gemma", "5GB"), ("mistral", "5GB"), ("mistral", "10KB")]
)
def test_instruct_heads_are_the_answers_rows(
    tmp_path: Path, word_tokenizer, model_type: str, shard: str
) -> None:
    folder = save_model(tmp_path / "model", model_type, shard)
    config = config_for(folder, "model.kind=instruct")
    classifier = load_classifier(config, word_tokenizer, FLOAT32, CPU)
    ids = [word_tokenizer.convert_tokens_to_ids(word) for word in ("No", "Yes")]
    whole = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
    assert torch.equal(classifier.head.weight, whole[ids])
    # copied, never tied
    embedding = classifier.backbone.get_input_embeddings().weight
    assert classifier.head.weight.data_ptr() != embedding.data_ptr()


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [
        ("mistral", {}),
        ("granite", {"logits_scaling": 8.0}),
        ("hyperclovax", {"logits_scaling": 3.0}),  # multiplies, where Granite's divides
        ("cohere", {"logit_scale": 0.0625, "eos_token_id": 2}),
    ],
)
def test_an_instruct_head_starts_with_the_models_own_logits(
    tmp_path: Path, word_tokenizer, model_type: str, extra: dict[str, Any]
) -> None:
    folder = save_model(tmp_path / "model", model_type, initializer_range=0.5, **extra)
    config = config_for(folder, "model.kind=instruct")
    classifier = load_classifier(config, word_tokenizer, FLOAT32, CPU).eval()
    answers = [word_tokenizer.convert_tokens_to_ids(word) for word in ("No", "Yes")]
    ids = torch.tensor([[1, 7, 9], [4, 8, 3]])
    with torch.no_grad():
        own = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits[:, -1, answers]
    assert float(own.abs().min()) > 1e-3
    torch.testing.assert_close(classifier(ids, torch.ones_like(ids)), own, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("model_type", "extra", "factor"),
    [
        ("gemma2", {}, 1.0),
        ("granitemoe", {"logits_scaling": None}, 1.0),
        ("granitemoe", {"logits_scaling": 4.0}, 0.25),
        ("cohere2", {}, 0.0625),
        ("falcon_h1", {"lm_head_multiplier": 0.25}, 0.25),
        ("minicpm3", {"hidden_size": 80, "dim_model_base": 40}, 0.5),
        ("mpt", {"logit_scale": 0.5}, 1.0),  # transformers does not read it
    ],
)
def test_a_models_own_scale_of_logits(
    model_type: str, extra: dict[str, Any], factor: float
) -> None:
    assert scale_of_logits(AutoConfig.for_model(model_type, **extra)) == factor


def test_a_checkpoint_without_vocabulary_head_has_no_answers(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    backbone = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).model
    with pytest.raises(InputError, match=r"no lm_head\.weight"):
        vocabulary_rows(backbone, folder, [1, 2])


def test_answers_must_begin_with_tokens_of_their_own(word_tokenizer) -> None:
    assert len(answer_tokens(word_tokenizer, ["No", "Yes"])) == 2
    with pytest.raises(InputError, match="'Maybe' is not one token's start") as caught:
        answer_tokens(word_tokenizer, ["Maybe", "Perhaps"])
    assert len(caught.value.lines) == 2
    with pytest.raises(InputError, match="two answers begin with the same token"):
        answer_tokens(word_tokenizer, ["Yes", "Yes"])


def test_missing_weights_are_refused(tmp_path: Path, word_tokenizer) -> None:
    folder = save_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors are missing.*layers\.1\.mlp\.up_proj"):
        load_classifier(config_for(folder), word_tokenizer, FLOAT32, CPU)


def test_a_pickle_is_not_read(tmp_path: Path, word_tokenizer) -> None:
    folder = save_model(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"model\.path=.*holds pickles alone"):
        load_classifier(config_for(folder), word_tokenizer, FLOAT32, CPU)


def test_everything_is_frozen_and_in_the_dtypes_asked_for(tmp_path: Path, word_tokenizer) -> None:
    folder = save_model(tmp_path / "model")
    precision = Precision(torch.bfloat16, torch.float32)
    classifier = load_classifier(config_for(folder), word_tokenizer, precision, CPU)
    assert {p.dtype for p in classifier.backbone.parameters()} == {torch.bfloat16}
    assert classifier.head.weight.dtype == torch.float32
    assert not any(p.requires_grad for p in classifier.parameters())
    ids = torch.tensor([[1, 7, 9]])
    assert classifier(ids, torch.ones_like(ids)).dtype == torch.float32


def test_the_heads_product_is_in_float32_whatever_trains(tmp_path: Path, word_tokenizer) -> None:
    folder = save_model(tmp_path / "model")
    precision = Precision(torch.bfloat16, torch.bfloat16)
    classifier = load_classifier(config_for(folder), word_tokenizer, precision, CPU)
    classifier.head_weight.requires_grad_(True)
    ids = torch.tensor([[1, 7, 9]])
    mask = torch.ones_like(ids)
    features = classifier.features(ids, mask)
    for logits in (classifier(ids, mask), FeatureClassifier(classifier.head)(features)):
        exact = features.double() @ classifier.head_weight.double().T
        assert (features.dtype, logits.dtype) == (torch.float32, torch.float32)
        torch.testing.assert_close(logits.double(), exact, rtol=1e-6, atol=1e-8)
    logits[0, 1].backward()
    assert classifier.head_weight.grad is not None
    assert classifier.head_weight.grad.dtype == torch.bfloat16
    expected = torch.stack([torch.zeros(16), features[0]]).bfloat16()
    assert torch.equal(classifier.head_weight.grad, expected)


def test_the_dtype_rule() -> None:
    cuda = torch.device("cuda")
    assert precision_of(compose([]), CPU) == FLOAT32
    assert precision_of(compose([]), cuda) == Precision(torch.bfloat16, torch.float32)
    forced = compose(["model.dtype=bfloat16", "train.trained_dtype=bfloat16"])
    assert precision_of(forced, CPU) == Precision(torch.bfloat16, torch.bfloat16)
    # float32 copies of mistral-7b would not fit one GPU of 80 GB
    large = compose(["model=mistral-7b", "method=full_ft", "task=sst2"])
    assert precision_of(large, cuda) == Precision(torch.bfloat16, torch.bfloat16)
    for method in ("sparta", "lora", "head"):
        config = compose(["model=mistral-7b", f"method={method}", "task=sst2"])
        assert precision_of(config, cuda) == Precision(torch.bfloat16, torch.float32)


def test_the_fingerprint_is_of_the_files_not_of_the_place(tmp_path: Path, word_tokenizer) -> None:
    one = source_fingerprint(config_for(save_model(tmp_path / "a")).model)
    assert one == source_fingerprint(config_for(save_model(tmp_path / "elsewhere")).model)
    changed = tmp_path / "a" / "model.safetensors"
    tensors = load_file(changed)
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, changed, {"format": "pt"})
    assert one != source_fingerprint(config_for(tmp_path / "a").model)


def test_an_unreachable_model_is_told_with_three_ways_out() -> None:
    config = compose(["model=gemma-2b", "task=sst2"])
    with pytest.raises(InputError) as caught:
        load_tokenizer(config.model, config.task)
    (line,) = caught.value.lines
    for way in (
        "accept its terms at https://huggingface.co/google/gemma-2b",
        "hf auth login",
        "model.path=DIR",
    ):
        assert way in line


def test_a_stated_shape_must_be_the_folders(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    from sparta_bench.models.source import load_architecture

    config = compose(["model=mistral-7b", f"model.path={folder}", "task=sst2"])
    with pytest.raises(InputError, match="vocab_size is 64, where mistral-7b has 32768"):
        load_architecture(config.model)


def test_the_authors_separator_gets_a_random_frozen_row(tmp_path: Path, word_tokenizer) -> None:
    folder = save_model(tmp_path / "model")
    word_tokenizer.save_pretrained(folder)
    config = compose(
        ["model=local", f"model.path={folder}", "task=tiny-rte", "task.separator=sep_token"]
    )
    tokenizer = load_tokenizer(config.model, config.task)
    assert tokenizer("a<sep>b")["input_ids"][2] == len(tokenizer) - 1
    classifier = load_classifier(config, tokenizer, FLOAT32, CPU)
    wanted = max(64, len(tokenizer))
    assert classifier.backbone.get_input_embeddings().num_embeddings == wanted


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [
        ("gemma", {}),
        ("mistral", {"sliding_window": 4}),  # shorter than the inputs
        ("mistral", {}),
        ("llama", {"num_key_value_heads": 2}),
        ("qwen2", {}),
        ("gemma2", {"attn_implementation": "eager"}),
    ],
)
def test_padding_on_the_right_needs_no_mask(model_type: str, extra: dict[str, Any]) -> None:
    """States are the same bit for bit, gradients but for the order of sums; padding on the left is
    refused."""
    model = backbone(model_type, torch.float32, **extra).train()
    ids = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7]])).long()
    masks = []
    model.register_forward_pre_hook(
        lambda _, args, named: masks.append(named.get("attention_mask")), with_kwargs=True
    )
    states, gradients = [], []
    for pool in (pooled, pooled_right_padded):
        model.zero_grad()
        states.append(pool(model, ids * mask, mask))
        states[-1].pow(2).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert masks[0] is mask
    assert masks[1] is None
    assert torch.equal(*states)
    torch.testing.assert_close(gradients[1], gradients[0])
    with pytest.raises(RuntimeError, match="padded on the left"):
        pooled_right_padded(model, ids, mask.flip(1))


def test_a_model_whose_attention_is_not_known_gets_the_mask() -> None:
    model = backbone("gpt2", torch.float32, n_embd=16, n_layer=1, n_head=2)
    mask = torch.tensor([[0, 1, 1]])
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(pooled_right_padded(model, ids, mask), pooled(model, ids, mask))
