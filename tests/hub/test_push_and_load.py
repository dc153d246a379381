"""Models go to the Hub and come back the same, with and without this package; what goes wrong on the way is said.

All against a Hub of our own, by the true client, in one process for all tests: see hub_client.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fresh import run_script
from helpers.hub_server import TOKEN
from helpers.runs import At, new_model, new_trainer, stopped

from adaexit_hf import EarlyExitTrainer, EarlyExitTrainingArguments

Found = dict[str, Any]
LOADERS = ("from_pretrained", "from_encoder_pretrained")
every_loader = pytest.mark.parametrize("loader", LOADERS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the client did and saw."""
    folder = tmp_path_factory.mktemp("hub")
    run_script(Path(__file__).parents[1] / "helpers" / "hub_client.py", str(folder))
    return torch.load(folder / "found.pt")


def assert_same(found: Found, expected: Found) -> None:
    assert found["threshold"] == expected["threshold"]
    for key in ("trace", "early"):
        assert all(torch.equal(*pair) for pair in zip(found[key], expected[key], strict=True)), key


def test_all_auto_classes_load_what_was_pushed(found: Found) -> None:
    published, loaded = found["published"]["new"], found["with package"]["new"]
    assert_same(loaded["says"], published["says"])
    assert loaded["classes"] == ["DactBertForSequenceClassification", "DactBertConfig", "DactBertModel"]
    assert loaded["module"].startswith("adaexit_hf.")
    assert loaded["encoder"].keys() == published["encoder"].keys()
    assert all(torch.equal(value, published["encoder"][name]) for name, value in loaded["encoder"].items())


def test_an_older_revision_gives_older_weights_and_threshold(found: Found) -> None:
    old, new = (found["published"][age]["says"] for age in ("old", "new"))
    assert not torch.equal(old["trace"][0], new["trace"][0])
    assert (old["threshold"], new["threshold"]) == (0.0, 0.25)
    assert_same(found["with package"]["old"]["says"], old)


def test_a_branch_has_what_was_pushed_to_it(found: Found) -> None:
    assert found["published"]["branches"] == ["candidate", "main"]
    assert_same(found["class"], found["published"]["new"]["says"])


def test_card_and_pictures_outlive_later_versions(found: Found) -> None:
    files = found["published"]["files"]
    assert b"# Written by hand" in files["README.md"]
    assert files["curve.png"].startswith(b"\x89PNG")
    assert files.keys() > {"config.json", "model.safetensors", "tokenizer.json", "modeling_dact_bert.py"}


@pytest.mark.parametrize("name", ["old", "trained"])
def test_a_pinned_model_loads_by_its_own_code(name: str, found: Found) -> None:
    before, loaded = found["published"]["old"] if name == "old" else found["trained"], found["without package"][name]
    assert loaded["module"].startswith("transformers_modules.org.")
    assert before["sha"] in loaded["module"]
    assert_same(loaded["says"], before["says"])


def test_all_auto_classes_load_without_the_package(found: Found) -> None:
    without, loaded = found["without package"]["old"], found["with package"]["old"]
    assert without["classes"] == loaded["classes"]
    assert without["encoder"].keys() == loaded["encoder"].keys()
    assert all(torch.equal(value, loaded["encoder"][name]) for name, value in without["encoder"].items())


def test_a_training_run_pushes_once_when_the_last_stage_is_done(found: Found) -> None:
    made, after_backbone, after_exits = found["trained"]["titles"]
    assert made == after_backbone
    assert after_exits == made + 1


def test_a_trained_model_is_pushed_with_threshold_and_code(found: Found) -> None:
    trained = found["trained"]
    assert trained["says"]["threshold"] == 0.5
    assert_same(trained["loaded"]["says"], trained["says"])
    assert {"README.md", "tokenizer.json", "modeling_deebert.py"} < trained["files"].keys()


def test_a_training_run_pushes_one_model_and_nothing_of_its_stages(found: Found) -> None:
    files = found["trained"]["files"]
    assert [path for path in files if path.endswith((".safetensors", ".bin", ".pt", ".pth"))] == ["model.safetensors"]
    assert not [path for path in files if path.startswith(("stage", "checkpoint-"))]


def test_the_token_is_not_pushed(found: Found) -> None:
    assert not [path for path, data in found["trained"]["files"].items() if TOKEN.encode() in data]


@pytest.mark.parametrize("moment", ["weights", "commit"])
def test_an_interrupted_push_leaves_the_revision_before(moment: str, found: Found) -> None:
    interrupted, before = found["interrupted"][moment], found["published"]["new"]
    assert interrupted["dropped"] > 0
    assert interrupted["type"] is not None
    assert interrupted["sha"] == before["sha"]
    assert_same(interrupted["says"], before["says"])


def test_an_interrupted_push_of_a_trainer_leaves_the_revision_before(found: Found) -> None:
    assert found["interrupted"]["trainer"]["type"] is not None
    assert found["interrupted"]["trainer"]["unchanged"]


def test_pushing_again_after_an_interruption_succeeds(found: Found) -> None:
    assert_same(found["interrupted"]["again"]["says"], found["interrupted"]["again"]["expected"])


@every_loader
@pytest.mark.parametrize(
    ("case", "message", "cause"),
    [
        (
            "unknown",
            "org/unknown is not a local folder and is not a valid model identifier",
            "RepositoryNotFoundError",
        ),
        ("gated", "You are trying to access a gated repo.", "GatedRepoError"),
        ("no network", "We couldn't connect to 'http://127.0.0.1:", "LocalEntryNotFoundError"),
    ],
)
def test_errors_of_loading_are_those_of_the_hub(
    case: str, message: str, cause: str, loader: str, found: Found
) -> None:
    seen = found["refused"][f"{case}, {loader}"]
    assert seen["type"] == "OSError"
    assert seen["message"].startswith(message)
    assert seen["causes"][0] == cause


def test_an_unknown_revision_is_refused(found: Found) -> None:
    assert "is not a valid git identifier" in found["refused"]["revision"]["message"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no token, push", "Client error '401 Unauthorized'"),
        ("no token, unknown", "is not a valid model identifier"),
        ("no token, gated", "You are trying to access a gated repo."),
        ("no network, push", "Connection refused"),
        ("no network, trainer", "Connection refused"),
    ],
)
def test_unknown_and_gated_repositories_are_refused(case: str, message: str, found: Found) -> None:
    assert message in found["refused"][case]["message"]


def test_a_pinned_revision_in_the_cache_needs_no_network(found: Found) -> None:
    assert_same(found["refused"]["no network, cached"]["says"], found["published"]["old"]["says"])


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_pushing_checkpoints_of_stages_is_refused(strategy: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"hub_strategy: got '{strategy}'; checkpoints of stages are not pushed"):
        EarlyExitTrainingArguments(str(tmp_path), use_cpu=True, push_to_hub=True, hub_strategy=strategy)


def test_a_stage_cannot_push_to_a_repository_of_its_own(tmp_path: Path) -> None:
    trainer = new_trainer(new_model("deebert"), tmp_path, stage_overrides={"exits": {"hub_model_id": "org/other"}})
    with pytest.raises(ValueError, match="stage 'exits' sets 'hub_model_id', which a stage cannot set"):
        trainer.train()


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[EarlyExitTrainer]:
    """Who pushed; nothing is sent."""
    made: list[EarlyExitTrainer] = []
    monkeypatch.setattr(EarlyExitTrainer, "init_hf_repo", lambda self: None)
    monkeypatch.setattr(EarlyExitTrainer, "push_to_hub", lambda self: made.append(self))
    return made


@pytest.mark.parametrize(("strategy", "count"), [("every_save", 1), ("end", 0)])
def test_the_strategy_says_whether_training_pushes(
    strategy: str, count: int, pushes: list[EarlyExitTrainer], tmp_path: Path
) -> None:
    new_trainer(new_model("deebert"), tmp_path, max_steps=1, push_to_hub=True, hub_strategy=strategy).train()
    assert len(pushes) == count


def test_a_stopped_run_pushes_nothing(pushes: list[EarlyExitTrainer], tmp_path: Path) -> None:
    halt = At("on_step_end", stopped, stage=2, step=1)
    new_trainer(new_model("deebert"), tmp_path, [halt], max_steps=2, push_to_hub=True).train()
    assert not pushes
