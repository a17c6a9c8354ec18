"""`plan`: the parameter counts of the four real models, to the last digit, without weights."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparta_bench.analysis.memory.formula import paper_formula_bytes
from sparta_bench.analysis.plan import as_json, as_text, plan
from sparta_bench.config.compose import compose
from sparta_bench.data.splits import load_splits
from sparta_bench.data.tokenize import tokenize, tokenizer_fingerprint
from sparta_bench.errors import InputError
from sparta_bench.files import json_of
from sparta_bench.models.counts import (
    count_parameters,
    decoder_shapes,
    empty_backbone,
    known_shapes,
    shapes_of,
)
from sparta_bench.models.source import (
    EMBEDDED,
    PlainTokenizer,
    answer_tokens,
    load_architecture,
    load_tokenizer,
)

# total, input embeddings, head, sparsifiable, norm vectors, SpaRTA at 5 % and 0.5 %, LoRA
GOLDEN = {
    "gemma-2b": (
        2_506_176_512, 524_288_000, 4_096, 1_981_884_416, 75_776, 99_098_317, 9_913_518, 925_696
    ),
    "mistral-7b": (
        7_113_814_016, 134_217_728, 8_192, 6_979_588_096, 266_240, 348_987_597, 34_906_132,
        3_416_064,
    ),
}  # fmt: skip


# of the published models' backbones, without a classification head
SMALL_MODELS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "llama-3.2-1b": 1_235_814_400,
}


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_the_counts_of_small_models(name: str) -> None:
    base, instruct = (compose([f"model={name}{end}"]).model for end in ("", "-it"))
    assert (base.kind, instruct.kind) == ("base", "instruct")
    assert instruct.hub_id == f"{base.hub_id}-Instruct"
    backbone = empty_backbone(load_architecture(base))
    assert sum(tensor.numel() for tensor in backbone.parameters()) == SMALL_MODELS[name]
    context = {"max_position_embeddings": 32768} if name == "qwen2.5-1.5b" else {}
    assert instruct.shape == {**(base.shape or {}), **context}


@pytest.fixture(scope="module")
def backbones() -> dict[str, Any]:
    return {
        name: shapes_of(empty_backbone(load_architecture(compose([f"model={name}"]).model)))
        for name in GOLDEN
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_the_counts_of_the_real_models(backbones: dict[str, Any], name: str) -> None:
    total, embeddings, head, sparsifiable, norms, five, half, lora = GOLDEN[name]

    def counts(*overrides: str) -> Any:
        return count_parameters(backbones[name], 2, compose(list(overrides)).method)

    full = counts("method=full_ft")
    assert (full.total, full.embeddings, full.head) == (total, embeddings, head)
    assert (full.sparsifiable, full.norms) == (sparsifiable, norms)
    assert (full.trainable, full.sampled) == (total, None)
    assert counts("method=head").trainable == head
    assert counts("method=lora").trainable == lora
    assert counts("method.density=0.05").trainable == five
    assert counts("method.density=0.005").trainable == half
    assert counts("method.density=0.05").sampled == five - head


@pytest.mark.parametrize("name", [*GOLDEN, "tiny-gemma", "tiny-mistral"])
def test_the_shapes_are_those_of_the_model(name: str) -> None:
    model = compose([f"model={name}"]).model
    assert known_shapes(model) == shapes_of(empty_backbone(load_architecture(model)))


def test_other_architectures_are_left_to_transformers() -> None:
    shape = json_of(EMBEDDED / "tiny-gemma" / "config.json")
    assert decoder_shapes(shape) is not None
    for change in ({"model_type": "gpt2"}, {"attention_bias": True}, {"num_attention_heads": 3},
                   {"hidden_size": "64"}, {"head_dim": None}):  # fmt: skip
        assert decoder_shapes(shape | change) is None
    given = compose(["model=gemma-2b", "+model.shape.rope_theta=high"]).model
    assert known_shapes(given) is None


@pytest.mark.parametrize("name", ["tiny-gemma", "tiny-gemma-it", "tiny-mistral", "tiny-mistral-it"])
def test_a_plain_tokenizer_reads_as_that_of_transformers_does(name: str) -> None:
    config = compose([f"model={name}", "task=tiny-rte"])
    plain, whole = PlainTokenizer(EMBEDDED / name), load_tokenizer(config.model, config.task)
    assert tokenizer_fingerprint(plain) == tokenizer_fingerprint(whole)
    assert plain.unk_token_id == whole.unk_token_id
    texts = [" ".join(pair) for pair in load_splits(config.task).dev.texts[:20]] + [
        "",
        "\u00e9 <s>",
    ]
    ids = tokenize(texts, plain)
    assert ids == tokenize(texts, whole)
    assert [plain.decode(row) for row in ids] == [whole.decode(row) for row in ids]
    answers = list(config.task.prompt.answers)
    assert answer_tokens(plain, answers) == answer_tokens(whole, answers)


def test_instruct_models_have_the_shapes_of_their_base_models() -> None:
    for name in GOLDEN:
        assert compose([f"model={name}-it"]).model.shape == compose([f"model={name}"]).model.shape


def test_the_plan_says_which_row_gave_the_settings() -> None:
    planned = plan(compose(["method=lora", "train.epochs=1"]))
    (row,) = set(planned["presets"].values())
    assert row.endswith("(lora, tiny-gemma tiny-mistral, other): found on dev")
    settings = "learning_rate, batch_size, weight_decay, dropout, max_grad_norm, patience"
    assert f"  {row}  {settings}, trained_dtype\n" in as_text(planned)


def test_the_authors_density_is_impossible_for_gemma_at_5_percent(
    backbones: dict[str, Any],
) -> None:
    method = compose(["method=sparta_vo", "method.density=0.05"]).method
    with pytest.raises((ValueError, InputError), match="84,934,656"):
        count_parameters(backbones["gemma-2b"], 2, method)
    small = compose(["method=sparta_vo", "method.density=0.005"]).method
    sampled = count_parameters(backbones["gemma-2b"], 2, small).sampled
    assert sampled == round(0.005 * (2_506_176_512 - 4_096))


@pytest.mark.parametrize("name", GOLDEN)
def test_memory_follows_the_papers_formula(backbones: dict[str, Any], name: str) -> None:
    total, _, head, *_ = GOLDEN[name]
    counts = count_parameters(backbones[name], 2, compose(["method.density=0.05"]).method)
    memory = paper_formula_bytes(counts, "sparta")
    assert memory["total"] == 2 * total + 12 * counts.sampled + 8 * head
    assert memory["full_ft_total"] == 8 * total
    assert memory["total"] == memory["weights"] + memory["trained"] + memory["indices"]
    full = count_parameters(backbones[name], 2, compose(["method=full_ft"]).method)
    assert paper_formula_bytes(full, "full_ft")["total"] == 8 * total
    only_head = count_parameters(backbones[name], 2, compose(["method=head"]).method)
    assert paper_formula_bytes(only_head, "head")["total"] == 2 * total + 8 * head


def test_a_plan_of_the_embedded_default(tiny_config: Any) -> None:
    config = tiny_config()
    planned = plan(config)
    data, parameters = planned["data"], planned["parameters"]
    assert (data["train"] + data["train_dropped"], data["dev"], data["test"]) == (2000, 300, 1000)
    assert data["train_dropped"] > 0 and data["longest_train_tokens"] <= data["max_train_tokens"]
    per_epoch = -(-data["train"] // config.train.batch_size)
    assert planned["steps"] == per_epoch * config.train.epochs
    assert parameters["total"] == 208_512
    assert parameters["trainable_share"] == parameters["trainable"] / parameters["total"]
    assert planned["unavailable"] == [] and planned["per_gpu"] is None
    assert {name: sum(count.values()) for name, count in planned["data"]["labels"].items()} == {
        name: data[name] for name in ("train", "dev", "test")
    }
    inputs = (
        ("although everybody finds the music delightful , the ending is hardly wise .", "negative"),
        (
            "frankly , although the villain is bland , the director seems charming and wise .",
            "positive",
        ),
    )
    assert planned["inputs"] == [
        {"text": f"<bos> {text}", "label": label} for text, label in inputs
    ]
    assert json.loads(as_json(planned)) == planned
    text = as_text(planned)
    assert "208,512" in text and "dev" in text


def test_a_plan_without_hub_says_what_is_not_known(tiny_config: Any) -> None:
    planned = plan(tiny_config("model=gemma-2b", "task=tiny-sst2"))
    assert planned["data"] | {"train_dropped": 0} == {
        "train": 2000, "dev": 300, "test": 1000, "train_dropped": 0, "max_train_tokens": 48,
        "labels": {
            "train": {"negative": 984, "positive": 1016},
            "dev": {"negative": 147, "positive": 153},
            "test": {"negative": 494, "positive": 506},
        },
    }  # fmt: skip
    (line,) = planned["unavailable"]
    assert line.startswith("model=gemma-2b: google/gemma-2b cannot be loaded from the hub")
    assert "not known" in as_text(planned)
