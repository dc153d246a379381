"""LoRA on our models: stages train what PEFT leaves trainable, adapters are saved, loaded and merged."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.predictions import silent
from helpers.runs import METHODS, collate, new_model, new_trainer, texts, weights
from helpers.tiny import CLASSES, FAMILIES, build, inputs_of, thresholds_between, trace_of
from torch import Tensor
from transformers import set_seed

from adaexit_hf.models import EarlyExitForSequenceClassification

peft = pytest.importorskip("peft", reason="PEFT is not installed; it is an extra")
# PEFT asks for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
QUERIES = ["query", "q_lin", "q", "query_proj", "Wqkv"]


def heads(model: EarlyExitForSequenceClassification) -> list[str]:
    """Every module beside the encoder that has parameters, lists taken apart."""
    names = [name for name, _ in model.named_modules() if re.fullmatch(r"(?!encoder)\w+(\.\d+)?", name)]
    return [
        name
        for name in names
        if not any(other.startswith(f"{name}.") for other in names)
        and any(True for _ in model.get_submodule(name).parameters())
    ]


def adapted(model: EarlyExitForSequenceClassification, **kwargs: Any) -> Any:
    options = {"target_modules": QUERIES, "r": 4, "modules_to_save": heads(model) or None}
    return peft.get_peft_model(model, peft.LoraConfig(**options | kwargs))


def shaken(model: Any) -> Any:
    """Adapters start from no change at all."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Names without numbers of what is another tensor now."""
    return {re.sub(r"\d+", "N", name) for name, value in after.items() if not torch.equal(value, before[name])}


@torch.no_grad()
def answers(model: Any) -> Tensor:
    return model(**collate(texts(labels=False)), early_exit=False).exit_logits


@pytest.mark.parametrize("method", METHODS)
def test_all_stages_train_the_adapter_and_the_exits(method: str, tmp_path: Path) -> None:
    model = adapted(new_model(method))
    allowed = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = weights(model)
    new_trainer(model, tmp_path, max_steps=2).train()
    after = weights(model)
    assert {name for name in after if not torch.equal(after[name], before[name])} <= allowed
    parts = {name.split(".")[-2] if "lora" not in name else "lora" for name in changed(before, after)}
    assert "lora" in parts and len(parts) > 1
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == allowed


@pytest.mark.parametrize("method", METHODS)
def test_a_stage_freezes_the_adapter_with_the_encoder(method: str, tmp_path: Path) -> None:
    model = adapted(new_model(method))
    for stage in model.stages:
        before = weights(model)
        new_trainer(model, tmp_path / stage.name, max_steps=2).train(stage=stage.name)
        moved = any("lora" in name for name in changed(before, weights(model)))
        assert moved == ("encoder" not in stage.frozen), stage.name


def test_states_of_a_frozen_encoder_are_those_of_its_adapter_and_token_types(tmp_path: Path) -> None:
    rows = [row | {"token_type_ids": [0, 0] + [1] * (len(row["input_ids"]) - 2)} for row in texts()]
    runs = []
    for kind, reuse in ((None, True), ("FEATURE_EXTRACTION", True), ("FEATURE_EXTRACTION", False)):
        model = shaken(adapted(new_model("deebert"), task_type=kind)).train()
        new_trainer(model, tmp_path / f"{kind}{reuse}", rows=rows, reuse_frozen_states=reuse).train(stage="exits")
        runs.append(answers(model.eval()))
    torch.testing.assert_close(runs[0], runs[2])
    torch.testing.assert_close(runs[1], runs[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_model_says_the_same(method: str, tmp_path: Path) -> None:
    model = shaken(adapted(new_model(method)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    expected = answers(model)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(new_model(method), tmp_path / "adapter").eval()
    torch.testing.assert_close(answers(again), expected)
    merged = model.merge_and_unload()
    assert type(merged) is type(new_model(method))
    torch.testing.assert_close(answers(merged), expected, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    reloaded = type(merged).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(answers(reloaded), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_early_exit_runs_the_adapter_in_every_family(family: str) -> None:
    plain = build("deebert", family)
    inputs = inputs_of(plain)
    without = trace_of(plain, inputs)
    model = shaken(adapted(build("deebert", family)))
    # All layers whole: hidden states are asked for.
    expected = model(**inputs, early_exit=False, output_hidden_states=True)
    assert (expected.exit_logits - without.exit_logits).abs().amax(dim=(0, 2)).min() > 1e-3
    for found in (trace_of(model, inputs), model(**inputs, exit_threshold=0.0)):
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-4)
    threshold = thresholds_between(expected)[0]
    early = model(**inputs, exit_threshold=threshold)
    rows = [
        {name: value[row][mask].tolist() for name, value in inputs.items()}
        for row, mask in enumerate(inputs["attention_mask"].bool())
    ]
    found = silent(model, rows, exit_threshold=threshold)
    torch.testing.assert_close(found.logits, early.logits, atol=1e-5, rtol=1e-4)
    assert found.exit_layer.tolist() == early.exit_layer.tolist()


NOT_SAVED: dict[str, dict[str, Any]] = {
    "nothing besides the encoder": {"modules_to_save": None},
    "only some exits": {"modules_to_save": ["exits.0"]},
    "only output layers": {"modules_to_save": None, "task_type": "SEQ_CLS"},
    "copies inside of copies": {"task_type": "SEQ_CLS"},
    "adapters of the exits": {"modules_to_save": None, "target_modules": [*QUERIES, "dense"]},
}


@pytest.mark.parametrize("kind", NOT_SAVED)
def test_an_adapter_without_the_exits_is_refused_with_the_call_to_make(kind: str, tmp_path: Path) -> None:
    model = adapted(new_model("deebert"), **NOT_SAVED[kind])
    with pytest.raises(ValueError, match="have to be trained and saved with the adapter") as refused:
        new_trainer(model, tmp_path).train()
    call = re.search(r"call (get_peft_model\(.*\)), without task_type", str(refused.value))
    assert call is not None
    fine = eval(call[1], vars(peft) | {"model": new_model("deebert")})
    new_trainer(fine, tmp_path, max_steps=1).train()


@pytest.mark.parametrize("method", METHODS)
def test_the_message_names_all_parts_of_every_method(method: str, tmp_path: Path) -> None:
    model = new_model(method)
    expected = sorted(heads(model))
    with pytest.raises(ValueError, match="have to be trained and saved") as refused:
        new_trainer(adapted(model, modules_to_save=None), tmp_path).train()
    named = str(refused.value).removeprefix("model: ").split(" have to")[0]
    assert sorted(named.split(", ")) == expected


def test_a_single_stage_needs_only_what_it_trains(tmp_path: Path) -> None:
    model = adapted(new_model("deebert"), modules_to_save=["exits.0", "exits.1", "exits.2"])
    new_trainer(model, tmp_path, max_steps=1).train(stage="exits")


@pytest.mark.parametrize("method", METHODS)
def test_a_loaded_adapter_answers_like_the_trained_model(method: str, start: str, tmp_path: Path) -> None:
    """On a new model of the same encoder, whose exits have other random weights."""

    def new(seed: int) -> Any:
        set_seed(seed)
        return CLASSES[method].from_encoder_pretrained(start, num_labels=3, exit_threshold=None)

    trained = adapted(new(0))
    new_trainer(trained, tmp_path / "run", learning_rate=1e-2, max_steps=3).train()
    trained.save_pretrained(tmp_path / "adapter")
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert config.base_model_name_or_path == start
    again = peft.PeftModel.from_pretrained(new(1), tmp_path / "adapter").eval()
    torch.testing.assert_close(answers(again), answers(trained.eval()))


def test_a_stage_of_which_everything_is_frozen_is_refused(tmp_path: Path) -> None:
    model = new_model("deebert")
    model.exits.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"model: every parameter that stage 'exits' trains is frozen; set requires_g"
    ):
        new_trainer(model, tmp_path).train(stage="exits")
