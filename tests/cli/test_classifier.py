"""`adaexit train --add_exits`: a fine-tuned classifier gets exits and stays as it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from helpers.reviews import write_csv
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, RobertaConfig

from adaexit_hf import DeeBertForSequenceClassification
from adaexit_hf.cli import main as cli
from adaexit_hf.cli.classifier import KeptClassifier, match_labels
from adaexit_hf.data.tasks import tokenize
from adaexit_hf.evaluation.fingerprints import UNKNOWN, read_seen_rows, save_seen_rows

TEXTS = ["very good film", "very bad film"]
ORDER = "by order, since one side has indices and no names"
QUICK = ["--max_steps", "2", "--use_cpu", "--report_to", "none", "--save_strategy", "no", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def stock(start: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stock BERT that was fine-tuned to tell good films from bad ones."""
    torch.manual_seed(0)
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    model = AutoModelForSequenceClassification.from_pretrained(start, **names)
    tokenizer = AutoTokenizer.from_pretrained(start)
    batch = tokenizer(TEXTS, return_tensors="pt", return_token_type_ids=False)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(20):
        model(**batch, labels=torch.tensor([1, 0])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("stock")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


Add = Callable[..., int]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stock: str, blank_pictures: None) -> Add:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run(*more: str, labels: tuple[Any, ...] = (0, 1), start: tuple[str, ...] = ("--add_exits", stock)) -> int:
        files = ["--train_file", write_csv(tmp_path, "train", 16, list(labels))]
        files += ["--validation_file", write_csv(tmp_path, "dev", 8, list(labels)), "--text_columns", "text"]
        return cli.main(["train", *start, *files, "--output_dir", str(tmp_path / "out"), *QUICK, *more])

    return run


def weights_of(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def check_kept(stock: str, out: Path) -> None:
    """Every weight of the stock encoder and head is in the model, and its logits at full depth are the same bits."""
    theirs, ours = weights_of(stock), weights_of(out)
    kept = {name.removeprefix("bert."): value for name, value in theirs.items() if not name.startswith("bert.pooler")}
    for name, value in kept.items():
        assert torch.equal(value, ours[f"exits.2.{name}" if name.startswith("classifier") else f"encoder.{name}"])
    assert torch.equal(theirs["bert.pooler.dense.weight"], ours["exits.2.dense.weight"])
    batch = AutoTokenizer.from_pretrained(stock)(TEXTS, return_tensors="pt", return_token_type_ids=False)
    models = [AutoModelForSequenceClassification.from_pretrained(folder).eval() for folder in (stock, out)]
    with torch.no_grad():
        # With the states requested, the last layer runs for all tokens.
        found = models[1](**batch, early_exit=False, output_hidden_states=[0]).logits
        assert torch.equal(models[0](**batch).logits, found)


def test_the_classifier_stays_as_it_is_and_the_exits_are_trained(
    add: Add, stock: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add() == 0
    told = capsys.readouterr().err
    assert f"labels of the data -> of '{stock}': 0 -> negative, 1 -> positive (by order" in told
    assert f"'{stock}' has accuracy 1.0000 on the 8 rows of validation" in told
    assert f"full depth is '{stock}': its logits on the 8 rows of validation are equal bit for bit" in told
    out = tmp_path / "out"
    check_kept(stock, out)
    config = AutoModelForSequenceClassification.from_pretrained(out).config
    assert (config.model_type, config.exit_head, config.last_exit_head) == ("berxit", "attention-pool", "dense")
    assert config.id2label == {0: "negative", 1: "positive"}
    card = (out / "README.md").read_text()
    assert f"the fine-tuned classifier `{Path(stock).name}`" in card
    assert "| `exits` |" in card and "| `backbone` |" not in card and "kept_classifier" not in card
    assert json.loads((out / "stages.json").read_text())["done"] == ["exits"]
    result = json.loads((out / "metrics.json").read_text())["results"]["validation"]
    assert result["full_depth"]["accuracy"] == 1.0


@pytest.mark.filterwarnings("ignore:temperature .* is at its bound")  # all answers are right
@pytest.mark.parametrize(
    ("method", "more"),
    [("deebert", ["--bf16"]), ("berxit", []), ("fastbert", ["--recipe", "recommended", "--calibrate"])],
)
def test_every_method_with_a_stage_for_it_keeps_the_classifier(
    add: Add, stock: str, tmp_path: Path, method: str, more: list[str]
) -> None:
    assert add("--method", method, *more) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    model.config.exit_temperatures = model.config.exit_threshold = None
    model.save_pretrained(tmp_path / "out")
    check_kept(stock, tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "labels", "found", "how"),
    [
        (["entailment", "neutral", "contradiction"], ["neutral", "contradiction", "entailment"], None, "by name"),
        (["NEGATIVE", "POSITIVE"], ["positive", "negative"], ["negative", "positive"], "by name"),
        (["a", "b"], [0, 1], ["0", "1"], ORDER),
        (["LABEL_0", "LABEL_1"], ["no", "yes"], ["no", "yes"], ORDER),
    ],
)
def test_the_order_is_that_of_the_classifiers_outputs(
    names: list[str], labels: list[Any], found: Any, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = BertConfig(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    matched, by_name = match_labels("stock", config, datasets.Dataset.from_dict({"label": labels}), "label")
    assert (matched.names, by_name) == (found or names, how == "by name")
    assert capsys.readouterr().err.endswith(f"{matched.names[-1]} -> {names[-1]} ({how})\n")


@pytest.mark.parametrize(
    ("options", "labels", "message"),
    [
        ({"num_labels": 2}, ["a", "b", "c"], r"'label' has the classes \['a', 'b', 'c'\]"),
        ({"id2label": {0: "x", 1: "y"}}, ["a", "b"], r"has the classes \['a', 'b'\], but the checkpoint has \['x'"),
        ({"num_labels": 1}, ["a", "b"], "has one of several classes, but --add_exits 'stock' predicts numbers"),
        (
            {"num_labels": 2},
            [0.5, 1.5],
            r"has numbers \(regression\), but --add_exits 'stock' predicts one of several",
        ),
        ({"num_labels": 2}, [["a"], ["a", "b"]], "has several labels at once, but --add_exits 'stock' predicts one"),
    ],
)
def test_labels_that_cannot_be_matched_are_refused(options: Any, labels: list[Any], message: str) -> None:
    config = RobertaConfig(**options)
    with pytest.raises(ValueError, match=message):
        match_labels("stock", config, datasets.Dataset.from_dict({"label": labels}), "label")


def test_labels_in_another_order_than_the_classifiers_are_noticed(
    add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(labels=(1, 0)) == 1
    told = capsys.readouterr().err
    assert "0.0% are right, and 100.0% would be if the classes were exchanged" in told
    assert not (tmp_path / "out").exists()


def test_a_refusal_of_the_order_leaves_the_earlier_model(add: Add, tmp_path: Path) -> None:
    assert add() == 0
    before = weights_of(tmp_path / "out")
    assert add("--overwrite_output_dir", labels=(1, 0)) == 1
    after = weights_of(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def kept_classifier(logits: list[list[float]], labels: list[int]) -> KeptClassifier:
    kept = KeptClassifier.__new__(KeptClassifier)
    kept.name, kept.split, kept.multi_label = "stock", "dev", False
    kept.rows, kept.logits = datasets.Dataset.from_dict({"labels": labels}), torch.tensor(logits)
    return kept


def test_two_of_three_classes_in_the_wrong_order_are_noticed() -> None:
    kept = kept_classifier(torch.eye(3)[[0, 0, 0, 1, 2, 2] * 2].tolist(), [0, 0, 0, 2, 1, 1] * 2)
    with pytest.raises(
        ValueError, match="order, .*50.0% are right, and 100.0% would be if the classes were exchanged"
    ):
        kept.tell_score("accuracy", by_name=False)
    kept.tell_score("accuracy", by_name=True)  # not below the majority


def test_exchanged_names_are_noticed() -> None:
    kept = kept_classifier(torch.eye(2)[[0, 0, 1, 1]].tolist(), [1, 1, 0, 0])
    with pytest.raises(ValueError, match="matched by name, .* 0.0% are right, .*; correct the labels of the data"):
        kept.tell_score("accuracy", by_name=True)


@pytest.mark.parametrize("flag", ["--add_exits", "--model_name_or_path"])
def test_a_folder_that_does_not_exist_is_named(add: Add, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert add(start=(flag, "./none")) == 2
    assert f"{flag[2:]}: there is no folder './none'" in capsys.readouterr().err


def test_a_classifier_that_is_often_wrong_keeps_its_order() -> None:
    kept_classifier(torch.eye(3)[[0, 0, 1, 1, 2, 0]].tolist(), [0, 0, 1, 2, 2, 1]).tell_score("accuracy", False)


def test_long_texts_stay_as_long_as_for_the_classifier(add: Add, stock: str, tmp_path: Path) -> None:
    assert add() == 0
    lengths = [AutoTokenizer.from_pretrained(folder).model_max_length for folder in (stock, tmp_path / "out")]
    positions = AutoModelForSequenceClassification.from_pretrained(stock).config.max_position_embeddings
    assert lengths[1] == min(lengths[0], positions)


def test_a_classifier_without_names_takes_those_of_the_data(add: Add, stock: str, tmp_path: Path) -> None:
    nameless = tmp_path / "nameless"
    shutil.copytree(stock, nameless)
    config = json.loads((nameless / "config.json").read_text())
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (nameless / "config.json").write_text(json.dumps(config))
    assert add(labels=("bad", "good"), start=("--add_exits", str(nameless))) == 0
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert (config.id2label, config.label2id) == ({0: "bad", 1: "good"}, {"bad": 0, "good": 1})


def test_capital_letters_of_classes_make_no_difference_afterwards(add: Add, tmp_path: Path) -> None:
    assert add(labels=("Negative", "POSITIVE")) == 0
    dev = ["--validation_file", str(tmp_path / "dev.csv"), "--text_columns", "text"]
    assert cli.main(["evaluate", str(tmp_path / "out"), *dev]) == 0


def test_a_stage_that_would_freeze_a_random_last_exit_is_refused(
    add: Add, stock: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--model_name_or_path", stock, "--method", "deebert", "--stage", "exits")
    assert add(start=start, labels=("bad", "good")) == 2
    told = capsys.readouterr().err
    assert "stage: got 'exits', which freezes the last exit, but its weights are random" in told
    assert f"pass --add_exits {stock} in place of --model_name_or_path" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "pabee"], "method: got 'pabee', which cannot leave a fine-tuned classifier as it is; pass one"),
        (["--method", "plain"], "add_exits: got it with --method plain, which has no exits"),
        (["--stage", "backbone"], "stage: got 'backbone' with --add_exits, which trains stage 'exits'; leave it out"),
        (["--model_name_or_path", "other"], "model_name_or_path, add_exits: got 'other' and"),
        (["--method_config", '{"fine_tuning": "joint"}'], "give no stage that leaves the encoder as it is"),
        (["--method_config", '{"last_exit_head": null}'], "give another head at the last exit"),
    ],
)
def test_what_does_not_go_with_it_is_wrong_usage(
    add: Add, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(*more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_model_to_start_from(add: Add, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(start=()) == 2
    assert "model_name_or_path, add_exits: got '' and None; pass one of them" in capsys.readouterr().err


def test_an_encoder_and_a_model_with_exits_are_refused(
    add: Add, start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert add(start=("--add_exits", start)) == 2
    assert f"add_exits: got '{start}', a BertModel without a trained classification head" in capsys.readouterr().err
    assert add() == 0
    assert add("--output_dir", str(tmp_path / "again"), start=("--add_exits", str(tmp_path / "out"))) == 2
    assert "is a 'berxit' model, which has exits; use it as it is" in capsys.readouterr().err


@torch.no_grad()
def test_a_classifier_that_was_changed_is_found(stock: str) -> None:
    rows = datasets.Dataset.from_dict({"text": TEXTS, "label": [1, 0]})
    tokenizer = AutoTokenizer.from_pretrained(stock)
    config = AutoModelForSequenceClassification.from_pretrained(stock).config
    labels, _ = match_labels(stock, config, rows, "label")
    kept = KeptClassifier(stock, tokenize(rows, tokenizer, ["text"], "label", labels), "dev", tokenizer, 2, "cpu")
    model = DeeBertForSequenceClassification.from_encoder_pretrained(stock)
    kept.check(model)
    model.exits[-1].classifier.bias += 1e-6
    with pytest.raises(RuntimeError, match=r"add_exits: at full depth the logits differ from those of '.*' by up to"):
        kept.check(model)


def test_exits_inherit_the_rows_that_the_classifier_has_seen(stock, add, tmp_path) -> None:
    assert add() == 0
    assert set(read_seen_rows(tmp_path / "out")) == {UNKNOWN, "training", "threshold"}
    start = ("--model_name_or_path", stock, "--method", "deebert")
    assert add("--output_dir", str(tmp_path / "encoder"), start=start) == 0
    assert UNKNOWN in read_seen_rows(tmp_path / "encoder")
    known = shutil.copytree(stock, tmp_path / "known")
    save_seen_rows(known, {"training": torch.tensor([5])})
    assert add("--output_dir", str(tmp_path / "again"), start=("--add_exits", str(known))) == 0
    seen = read_seen_rows(tmp_path / "again")
    assert set(seen) == {"training", "threshold"} and 5 in seen["training"].tolist() and len(seen["training"]) > 1
