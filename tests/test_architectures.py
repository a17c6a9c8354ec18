"""What differs between architectures: dropout, attention, tensors that are read in other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import backbone
from test_models import CPU, FLOAT32, config_for, save_model

from sparta_bench.analysis.bench.setting import Setting
from sparta_bench.analysis.memory.estimate import activations_of
from sparta_bench.errors import InputError
from sparta_bench.models.classifier import Classifier
from sparta_bench.models.dropout import dropout_of, set_dropout
from sparta_bench.models.load import attention_of, load_classifier
from sparta_bench.runs.run import run

HALF = 0.5
GPT2 = {"attn_pdrop": HALF, "embd_pdrop": HALF, "resid_pdrop": HALF}
HIDDEN = {"attention_dropout": HALF, "hidden_dropout": HALF}
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"attention_dropout": HALF},
    "gemma": {"attention_dropout": HALF},
    "gpt2": GPT2,
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": HALF, "layerdrop": HALF},
    "bloom": {"n_layer": 2, "n_head": 2, **HIDDEN},
    "falcon": HIDDEN,
    "falcon alibi": {"alibi": True, "parallel_attn": False, **HIDDEN},
    "starcoder2": {"residual_dropout": HALF, "embedding_dropout": HALF},
    "mixtral": {"num_local_experts": 4, "router_jitter_noise": HALF},
    "mamba": {},
}
SHAPES |= {
    "gemma2": {},
    "gpt_neo": {"attention_types": [[["global"], 2]], "num_layers": 2, "num_heads": 2},
    "gptj": {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2},
}
FUSED = {"mistral", "gemma", "gpt2", "opt", "falcon", "falcon alibi", "starcoder2", "mixtral"}
IDS = torch.tensor([[1, 7, 9, 4, 2, 8]])


def save(folder: Path, name: str) -> Path:
    return save_model(folder, name.split()[0], **SHAPES[name])


def loaded(folder: Path, tokenizer: Any, *overrides: str) -> Classifier:
    return load_classifier(config_for(folder, *overrides), tokenizer, FLOAT32, CPU)


def draws(classifier: Classifier) -> bool:
    """Whether two passes of a training differ."""
    classifier.train()
    return not torch.equal(*(classifier(IDS, torch.ones_like(IDS)) for _ in range(2)))


# --------------------------------------------------------------------------------- attention
@pytest.mark.parametrize("name", SHAPES)
def test_the_attention_that_is_named_is_the_one_that_runs(
    tmp_path: Path,
    word_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    folder = save(tmp_path / "model", name)
    capsys.readouterr()
    classifier = loaded(folder, word_tokenizer)
    told = [line for line in capsys.readouterr().err.splitlines() if "fused" in line]
    calls = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def counted(*args: Any, **named: Any) -> torch.Tensor:
        calls.append(1)
        return plain(*args, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    classifier(IDS, torch.ones_like(IDS))
    fused = name in FUSED
    assert attention_of(classifier.backbone) == ("sdpa" if fused else "eager")
    assert (len(calls), len(told)) == ((2, 0) if fused else (0, 1))


def test_the_bench_takes_the_same_attention(tmp_path: Path) -> None:
    for name, attention in (("gemma2", "eager"), ("gpt2", "sdpa")):
        config = config_for(save(tmp_path / name, name))
        classifier = Setting((), config, CPU, rows=2, tokens=4).classifier()
        assert attention_of(classifier.backbone) == attention
    # by a dry run of its attention
    deep = save_model(tmp_path / "deep", "gemma2", num_hidden_layers=3)
    setting = Setting((), config_for(deep), CPU, rows=2, tokens=4)
    assert activations_of(setting, checkpointing=False).kept > 0


@pytest.mark.slow
def test_the_record_says_attention_and_dropout(
    tmp_path: Path, word_tokenizer: Any, tiny_config: Any
) -> None:
    folder = save(tmp_path / "model", "gemma2")
    word_tokenizer.save_pretrained(folder)
    local = ("model=local", f"model.path={folder}", "train.max_steps=1", "train.dropout=0.25")
    record, _, _ = run(tiny_config(*local, "method=head", "save=none", "task=tiny-sst2"))
    assert record["environment"]["attention"] == "eager"
    assert record["environment"]["dropout"] == {"Gemma2Attention.attention_dropout": 0.25}


# ----------------------------------------------------------------------------------- dropout
@pytest.mark.parametrize("name", SHAPES)
def test_without_dropout_nothing_is_drawn(tmp_path: Path, word_tokenizer: Any, name: str) -> None:
    folder = save(tmp_path / "model", name)
    classifier = loaded(folder, word_tokenizer, "train.dropout=0")
    assert not draws(classifier)
    assert set(dropout_of(classifier.backbone).values()) <= {0.0}


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("mistral", {"MistralAttention.attention_dropout": 0.25}),
        (
            "gpt2",
            {
                "GPT2Attention.attn_dropout": 0.25,
                "GPT2Attention.resid_dropout": 0.0,
                "GPT2MLP.dropout": 0.0,
                "GPT2Model.drop": 0.0,
            },
        ),
        (
            "opt",
            {
                "OPTAttention.dropout": 0.25,
                "OPTDecoder.dropout": 0.0,
                "OPTDecoder.layerdrop": 0.0,
                "OPTDecoderLayer.dropout": 0.0,
            },
        ),
        (
            "bloom",
            {
                "BloomAttention.attention_dropout": 0.25,
                "BloomAttention.hidden_dropout": 0.0,
                "BloomBlock.hidden_dropout": 0.0,
                "BloomMLP.hidden_dropout": 0.0,
            },
        ),
    ],
)
def test_dropout_is_the_attentions_alone(
    tmp_path: Path, word_tokenizer: Any, name: str, rates: dict[str, float]
) -> None:
    folder = save(tmp_path / "model", name)
    classifier = loaded(folder, word_tokenizer, "train.dropout=0.25")
    assert dropout_of(classifier.backbone) == rates
    assert draws(classifier)
    classifier.eval()
    mask = torch.ones_like(IDS)
    assert torch.equal(classifier(IDS, mask), classifier(IDS, mask))
    # another run on the same backbone
    again = load_classifier(
        config_for(folder, "train.dropout=0"), word_tokenizer, FLOAT32, CPU, classifier.backbone
    )
    assert not draws(again)


def test_falcons_attention_takes_dropout_with_alibi(tmp_path: Path, word_tokenizer: Any) -> None:
    folder = save(tmp_path / "model", "falcon alibi")
    classifier = loaded(folder, word_tokenizer, "train.dropout=0.25")
    rates = dropout_of(classifier.backbone)
    assert {name for name, rate in rates.items() if rate} == {"FalconAttention.attention_dropout"}
    assert draws(classifier)


@pytest.mark.parametrize("name", ["falcon", "mamba"])
def test_dropout_is_refused_where_the_attention_takes_none(
    tmp_path: Path, word_tokenizer: Any, name: str
) -> None:
    folder = save(tmp_path / "model", name)
    with pytest.raises(
        InputError, match=r"train\.dropout=0\.25: use 0: \w+Model has no attention"
    ) as caught:
        loaded(folder, word_tokenizer, "train.dropout=0.25")
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_what_cannot_be_turned_off_is_refused(rate: float) -> None:
    model = backbone("mistral", torch.float32)

    def noisy(module: Any, inputs: Any, output: Any) -> Any:
        return output + torch.rand(()) if module.training else output

    model.layers[0].mlp.register_forward_hook(noisy)
    with pytest.raises(InputError, match="MistralModel draws random numbers that no setting"):
        set_dropout(model, rate)


def test_what_is_set_to_0_is_told(
    tmp_path: Path, word_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "model", "gpt2")
    capsys.readouterr()
    loaded(folder, word_tokenizer, "train.dropout=0.25")
    lines = [line for line in capsys.readouterr().err.splitlines() if "dropout" in line]
    assert lines == [
        "sparta-bench: dropout of GPT2Model: GPT2Attention.resid_dropout, GPT2MLP.dropout, "
        "GPT2Model.drop set to 0 (train.dropout is the attention's)"
    ]
