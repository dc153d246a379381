"""Before the first step: data sets are checked row by row, and a model that is not prepared is prepared."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pytest
import torch
from helpers.runs import At, collate, encoder_config, new_model, new_trainer, texts
from helpers.tiny import CLASSES
from helpers.words import new_tokenizer
from torch.utils.data import DataLoader, IterableDataset
from transformers import BatchEncoding, DataCollatorWithPadding, TrainerCallback, set_seed

from adaexit_hf import EarlyExitTrainer, EarlyExitTrainingArguments
from adaexit_hf.trainer.checked_data import check_dataset

WORDS = ["good", "bad", "film", "book", "very"]
REVIEWS = [{"text": f"very {word} film", "label": index % 2} for index, word in enumerate(["bad", "good"] * 6)]


def unprepared(method: str, **kwargs: Any) -> Any:
    """As the config makes it: no depths, and exits that start from 0."""
    set_seed(0)
    model = CLASSES[method]
    return model(model.config_class(encoder_config=encoder_config(), **{"num_labels": 3} | kwargs))


def scores(mean: float = 3.0, **columns: Any) -> list[dict[str, Any]]:
    return [row | {"label": mean + (-1) ** index} | columns for index, row in enumerate(texts())]


def biases(model: Any) -> list[float]:
    return [round(classifier.bias.item(), 4) for classifier in model.classifiers]


def no_step(**kwargs: Any) -> None:
    pytest.fail("a step was made")


class Stream(IterableDataset):
    """Without a length, and without an end."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.read = rows, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for row in self.rows:
                self.read += 1
                yield row


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    for name in ("transformers", "adaexit_hf"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


# ---- Prepared by the trainer


@pytest.mark.parametrize("method", ["berxit", "pabee"])
def test_regression_starts_from_the_mean_label(method: str, tmp_path: Path) -> None:
    model = unprepared(method, num_labels=1)
    assert not model.prepared
    new_trainer(model, tmp_path, rows=scores(), learning_rate=0.0, max_steps=1).train()
    assert model.prepared and set(biases(model)) == {3.0}


def test_the_depths_of_words_are_estimated_from_the_training_set(tmp_path: Path) -> None:
    model, expected = unprepared("depth-adaptive"), unprepared("depth-adaptive")
    expected.prepare(texts())
    new_trainer(model, tmp_path, max_steps=1).train()
    assert torch.equal(model.depth_table.weight, expected.depth_table.weight)


@pytest.mark.parametrize(("method", "kwargs"), [("depth-adaptive", {}), ("berxit", {"num_labels": 1})])
def test_a_model_that_the_user_prepared_is_left_alone(method: str, kwargs: Any, tmp_path: Path) -> None:
    model = unprepared(method, **kwargs)
    rows = scores() if kwargs else texts()
    model.prepare(scores(mean=7.0)[:9] if kwargs else rows[:9])
    before = [value.clone() for value in (model.depth_table.weight if not kwargs else model.classifiers[0].bias,)]
    new_trainer(model, tmp_path, rows=rows, learning_rate=0.0, max_steps=1).train()
    assert torch.equal(model.depth_table.weight if not kwargs else model.classifiers[0].bias, before[0])


def test_a_fine_tuned_head_keeps_its_bias_and_the_other_exits_get_the_mean(tmp_path: Path) -> None:
    model = unprepared("berxit", num_labels=1)
    torch.nn.init.constant_(model.classifiers[-1].bias, 5.0)
    new_trainer(model, tmp_path, rows=scores(), learning_rate=0.0, max_steps=1).train()
    assert biases(model) == [3.0, 3.0, 3.0, 5.0]


def test_preparing_reads_what_the_collator_makes_of_texts(tmp_path: Path) -> None:
    tokenizer = new_tokenizer(WORDS)

    def tokenizing(rows: list[dict[str, Any]]) -> Any:
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        return batch | {"labels": torch.tensor([row["label"] for row in rows])}

    expected = unprepared("depth-adaptive", num_labels=2)
    expected.prepare([tokenizer(row["text"]) | {"label": row["label"]} for row in REVIEWS])
    model = unprepared("depth-adaptive", num_labels=2)
    args = EarlyExitTrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, remove_unused_columns=False,
        save_strategy="no",
    )  # fmt: skip
    EarlyExitTrainer(model, args, train_dataset=REVIEWS, data_collator=tokenizing).train()
    assert torch.equal(model.depth_table.weight, expected.depth_table.weight)


def test_a_stream_is_not_used_up_to_prepare_a_regression(tmp_path: Path, warnings: Any) -> None:
    stream = Stream(scores())
    new_trainer(unprepared("berxit", num_labels=1), tmp_path, rows=stream, max_steps=1).train()
    assert stream.read <= 24
    assert "start from 0, not from the mean label; call model.prepare(rows) before training" in warnings.text


def test_depths_that_a_stream_cannot_give_are_an_error(tmp_path: Path) -> None:
    stream, model = Stream(texts()), unprepared("depth-adaptive")
    with pytest.raises(ValueError, match=r"train_dataset: has no length .*; call model.prepare\(rows\) before"):
        new_trainer(model, tmp_path, rows=stream).train()
    assert stream.read == 0
    model.prepare(texts())
    new_trainer(model, tmp_path, rows=stream, max_steps=1).train()


def test_a_resumed_run_is_not_prepared_again(tmp_path: Path) -> None:
    def stop(control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True

    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.0, "max_steps": 2}
    first = new_trainer(
        unprepared("pabee", num_labels=1), tmp_path, [At("on_step_end", stop)], rows=scores(), **settings
    )
    first.train()
    model = unprepared("pabee", num_labels=1)
    checkpoint = str(tmp_path / "stage-1-joint" / "checkpoint-1")  # True would refuse other labels
    new_trainer(model, tmp_path, rows=scores(mean=9.0), **settings).train(resume_from_checkpoint=checkpoint)
    assert set(biases(model)) == {3.0}


# ---- Refused before the first step


def refused(rows: Any, message: str, tmp_path: Path, method: str = "deebert", **options: Any) -> None:
    callbacks: list[TrainerCallback] = [At("on_train_begin", no_step)]
    with pytest.raises(ValueError, match=message):
        new_trainer(new_model(method), tmp_path, callbacks, rows=rows, trainer_options=options).train()


def changed(index: int, **columns: Any) -> list[dict[str, Any]]:
    rows = texts()
    rows[index] = rows[index] | columns
    return rows


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_of_any_split_that_is_no_class(label: int, tmp_path: Path) -> None:
    wrong = changed(23, label=label)
    message = rf"row 23: labels: got {label}; allowed are 0 to 2"
    refused(wrong, f"train_dataset, {message}", tmp_path)
    refused(texts(), f"eval_dataset, {message}", tmp_path, eval_dataset=wrong)
    refused(texts(), rf"eval_dataset\['late'\], {message}", tmp_path, eval_dataset={"early": texts(), "late": wrong})


def test_a_stage_without_labels_takes_rows_of_a_test_set(tmp_path: Path) -> None:
    rows = changed(23, label=-1)
    new_trainer(new_model("fastbert"), tmp_path, rows=rows, max_steps=1).train(stage="distil")
    refused(rows, "train_dataset, row 23: labels: got -1", tmp_path, method="fastbert")


def test_a_token_that_is_not_in_the_vocabulary(tmp_path: Path) -> None:
    refused(
        changed(20, input_ids=[1, 64, 2]),
        "train_dataset: got the token id 64 in row 20, .* has the ids 0 to 63;",
        tmp_path,
    )


def test_a_single_text_among_pairs(tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 5, 2, 6, 2], "label": 0}] * 9
    rows[7] = {"input_ids": [1, 5, 6, 2], "label": 1}
    with pytest.raises(ValueError, match="train_dataset: input_ids: row 7 is a single text, but exit_head='pair'"):
        new_trainer(new_model("deebert", exit_head="pair"), tmp_path, rows=rows).train()


def test_added_tokens_are_in_the_vocabulary_of_a_resized_model(tmp_path: Path) -> None:
    model = new_model("deebert")
    model.resize_token_embeddings(65)
    new_trainer(model, tmp_path, rows=changed(20, input_ids=[1, 64, 2]), max_steps=1).train()


def test_a_text_longer_than_the_position_table(tmp_path: Path) -> None:
    refused(changed(20, input_ids=[1] * 17), "train_dataset: got a batch of 17 tokens .* max_length=16", tmp_path)


def test_no_training_set(tmp_path: Path) -> None:
    trainer = new_trainer(new_model("deebert"), tmp_path)
    trainer.train_dataset = None
    with pytest.raises(ValueError, match="train_dataset: missing; pass"):
        trainer.train()


def test_a_split_without_rows(tmp_path: Path) -> None:
    refused(texts(), "eval_dataset: got no rows", tmp_path, eval_dataset=[])


UNUSABLE = {
    "texts": (REVIEWS, r"got rows with text, label \(texts in text\), .* Pass rows with input_ids"),
    "a data set of texts": (datasets.Dataset.from_list(REVIEWS), "got rows with .*label.* Pass rows with input_ids"),
    "pairs": ([("good film", 1)] * 4, "got rows of type tuple, .* Pass rows with input_ids"),
    "plain strings": (["good film"] * 4, "got rows of type str, .* Pass rows with input_ids"),
    "words as labels": (
        [{"input_ids": [1, 7, 2], "label": "good"}] * 4,
        r"got rows with .*\(texts in label\), .* a number as label",
    ),
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_rows_of_which_no_batch_can_be_made(kind: str, with_tokenizer: bool, tmp_path: Path) -> None:
    rows, message = UNUSABLE[kind]
    args = EarlyExitTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    tokenizer = new_tokenizer(WORDS) if with_tokenizer else None
    trainer = EarlyExitTrainer(new_model("deebert"), args, train_dataset=rows, processing_class=tokenizer)
    with pytest.raises(ValueError, match=f"train_dataset: {message}"):
        trainer.train()


def test_a_collator_that_does_not_pad_is_given_as_many_rows_as_in_training(tmp_path: Path) -> None:
    args = EarlyExitTrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to="none", per_device_train_batch_size=1, save_strategy="no"
    )
    EarlyExitTrainer(new_model("deebert"), args, train_dataset=texts()).train()


def test_rows_are_checked_that_the_steps_may_not_need(tmp_path: Path) -> None:
    """Training shuffles: any row may be in the first batch."""
    with pytest.raises(ValueError, match="train_dataset, row 23: labels: got 3"):
        new_trainer(
            new_model("pabee"), tmp_path, [At("on_train_begin", no_step)], changed(23, label=3), max_steps=1
        ).train()


def test_the_checksum_depends_on_the_data_but_not_on_their_batches() -> None:
    model = new_model("deebert")

    def checksum(rows: Any, batch_size: int = 4, columns: Any = ("attention_mask",), wide: bool = False) -> int:
        def collate_as_told(rows: list[dict[str, Any]]) -> Any:
            batch = collate([*rows, {"input_ids": [1] * 16, "label": 0}] if wide else rows)
            return {
                name: values[: len(rows)]
                for name, values in batch.items()
                if name in ("input_ids", "labels", *columns)
            }

        return check_dataset(model, rows, collate_as_told, batch_size, "rows", True)

    rows = texts()
    same = [checksum(rows, 7), checksum(rows, 1), checksum(rows, 4, ()), checksum(rows, wide=True)]
    assert set(same) == {checksum(rows)}
    moved = [rows[0] | {"input_ids": [*rows[0]["input_ids"], rows[1]["input_ids"][0]]}]
    moved += [rows[1] | {"input_ids": rows[1]["input_ids"][1:]}, *rows[2:]]
    others = [changed(3, label=(rows[3]["label"] + 1) % 3), changed(3, input_ids=[1, 9, 9, 2]), moved, rows[::-1]]
    assert len({checksum(rows), *map(checksum, others)}) == 5


COLUMNS = {"input_ids": [[1, 7, 2]] * 4, "label": [0, 1, 2, 0]}
KINDS = {
    "data frame": (lambda: pandas.DataFrame(COLUMNS), r"DataFrame; pass its rows, datasets.Dataset.from_pandas\(df\)"),
    "table": (lambda: pyarrow.table(COLUMNS), r"Table; pass its rows, datasets.Dataset\(table\)"),
    "columns": (lambda: COLUMNS, r"dict; pass its rows, datasets.Dataset.from_dict\(columns\)"),
    "what a tokenizer returns": (lambda: BatchEncoding(COLUMNS), r"BatchEncoding; pass its rows, .*from_dict"),
    "data loader": (lambda: DataLoader(texts()), "DataLoader; pass its data set, dataloader.dataset"),
    "generator": (lambda: (row for row in texts()), r"generator; pass its rows, list\(dataset\), or .*from_generator"),
    "values of a dict": (lambda: dict(enumerate(texts())).values(), r"dict_values; pass its rows, list\(dataset\)$"),
    "file": (lambda: "train.csv", r"str; pass rows, e.g. datasets.load_dataset\('csv'"),
    "number": (lambda: 7, "int; pass a list of rows, or a data set with __len__ and __getitem__"),
}
SPLITS = {
    "splits": lambda: datasets.DatasetDict(train=datasets.Dataset.from_dict(COLUMNS)),
    "streamed splits": lambda: datasets.IterableDatasetDict(
        train=datasets.Dataset.from_dict(COLUMNS).to_iterable_dataset()
    ),
    "splits of rows": lambda: {"train": texts()},
}


def quiet(folder: Path) -> EarlyExitTrainingArguments:
    return EarlyExitTrainingArguments(str(folder), use_cpu=True, report_to="none", disable_tqdm=True)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_without_rows_is_refused_with_the_call_to_make(kind: str, tmp_path: Path) -> None:
    make, message = KINDS[kind]
    model = new_model("deebert")
    with pytest.raises(ValueError, match=f"^train_dataset: got {message}"):
        EarlyExitTrainer(model, quiet(tmp_path), train_dataset=make())
    with pytest.raises(ValueError, match=f"^eval_dataset: got {message}"):
        EarlyExitTrainer(model, quiet(tmp_path), collate, texts(), make())
    with pytest.raises(ValueError, match=rf"^eval_dataset\['late'\]: got {message}"):
        EarlyExitTrainer(model, quiet(tmp_path), train_dataset=texts(), eval_dataset={"late": make()})
    trainer = EarlyExitTrainer(model, quiet(tmp_path), collate, texts())
    with pytest.raises(ValueError, match=f"^test_dataset: got {message}"):
        trainer.predict(make())
    if kind != "file":  # the name of an evaluation set
        with pytest.raises(ValueError, match=f"^eval_dataset: got {message}"):
            trainer.evaluate(make())
    trainer.train_dataset = make()
    with pytest.raises(ValueError, match=f"^train_dataset: got {message}"):
        trainer.train()


@pytest.mark.parametrize("kind", SPLITS)
def test_one_split_is_trained_on_and_several_are_evaluated(kind: str, tmp_path: Path) -> None:
    splits = SPLITS[kind]()
    with pytest.raises(ValueError, match=r"^train_dataset: got \w+; pass one of its splits, e.g. dataset\['train'\]"):
        EarlyExitTrainer(new_model("deebert"), quiet(tmp_path), train_dataset=splits)
    EarlyExitTrainer(new_model("deebert"), quiet(tmp_path), collate, texts(), splits)


def test_a_data_set_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def counted(*args: Any) -> int:
        checked.append(args[4])
        return check_dataset(*args)

    monkeypatch.setattr("adaexit_hf.trainer.trainer.check_dataset", counted)
    trainer = new_trainer(new_model("deebert"), tmp_path, max_steps=1, trainer_options={"eval_dataset": texts(4)})
    trainer.train()
    trainer.train()
    assert checked == ["train_dataset", "eval_dataset"]


# ---- The collator


@pytest.mark.parametrize("column", ["input_ids", "attention_mask", "labels"])
def test_a_collator_that_returns_lists_is_refused(column: str, tmp_path: Path) -> None:
    def lists(rows: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(rows)
        return batch | {column: batch[column].tolist()}

    trainer = new_trainer(new_model("deebert"), tmp_path, [At("on_train_begin", no_step)])
    trainer.data_collator = lists
    with pytest.raises(
        ValueError, match=rf"train_dataset: the collator returns {column} as list; .*tensor\({column}\)"
    ):
        trainer.train()


def test_labels_are_brought_to_the_cpu_for_the_checksum() -> None:
    read = []

    class Elsewhere(torch.Tensor):
        def numpy(self, *args: Any, **kwargs: Any) -> Any:
            pytest.fail("numpy() of a tensor that is not on the CPU")

        def cpu(self, *args: Any, **kwargs: Any) -> Any:
            read.append(self.shape)
            return self.as_subclass(torch.Tensor)

    def collate_elsewhere(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        return batch | {"labels": batch["labels"].as_subclass(Elsewhere)}

    model = new_model("deebert")
    expected = check_dataset(model, texts(), collate, 4, "rows", True)
    assert check_dataset(model, texts(), collate_elsewhere, 4, "rows", True) == expected and read


@pytest.mark.parametrize("method", ["deebert", "depth-adaptive"])
def test_settings_of_a_collator_are_kept(method: str, tmp_path: Path) -> None:
    widths = set()
    model = new_model(method)
    model.register_forward_pre_hook(lambda _, args, kwargs: widths.add(kwargs["input_ids"].shape[1]), with_kwargs=True)
    args = EarlyExitTrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    for collator in (
        DataCollatorWithPadding(new_tokenizer(WORDS), pad_to_multiple_of=8),
        DataCollatorWithPadding(new_tokenizer(WORDS), padding="max_length", max_length=14),
    ):
        trainer = EarlyExitTrainer(model, args, data_collator=collator, train_dataset=texts())
        assert (trainer.data_collator is collator) == (method == "deebert")
        trainer.train()
    assert widths == {8, 14}


def test_a_collator_of_the_users_is_left_alone(tmp_path: Path) -> None:
    trainer = new_trainer(new_model("depth-adaptive"), tmp_path)
    assert trainer.data_collator is collate
