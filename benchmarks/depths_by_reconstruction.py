"""Depth-adaptive transformer with depths by reconstruction, for several penalties (Table 4 of Liu et al., AAAI 2021).

    python benchmarks/depths_by_reconstruction.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset_name CogComp/trec --dataset_revision refs/convert/parquet --label_column coarse_label --work_dir out

Trains an anytime masked language model on the texts of train and test, without labels, as in the paper
(`--masked_lm_on_train_only`: of train); restores every token to find its depth; then, for each penalty, fine-tunes a
classifier on the column `token_depths` and prints its accuracy and mean depth. The masked language model, which serves
all seeds, the tokens' losses and the table (`table.jsonl`) stay in the work folder: the same command goes on where it
was stopped. `--masked_lm_only` trains no more than that model, for `run_glue_exit.py --token_depths_model`.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from adaexit_hf import (
    DepthAdaptiveForSequenceClassification,
    EarlyExitTrainer,
    EarlyExitTrainingArguments,
    collect_trace,
)
from adaexit_hf.data.collators import DataCollatorWithTokenDepths
from adaexit_hf.data.reconstruction import anytime_masked_lm, estimate_depths_by_reconstruction
from adaexit_hf.data.tasks import check_columns, labels_of, tokenize
from adaexit_hf.evaluation.trace import predictions


@dataclass
class Arguments:
    """What to train on what."""

    model_name_or_path: str = field(metadata={"help": "Encoder, Hub name or folder."})
    dataset_name: str = field(metadata={"help": "Hub data set or folder with train and test splits."})
    work_dir: str = field(metadata={"help": "Keeps what is finished."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch."})
    text_columns: list[str] = field(default_factory=lambda: ["text"], metadata={"help": "The texts: one or two."})
    label_column: str = field(default="label", metadata={"help": "Their classes."})
    penalties: list[float] = field(
        default_factory=lambda: [0.05, 0.1, 0.15, 0.2], metadata={"help": "Lambda of Eq. 4."}
    )
    masked_at_once: int = field(default=1, metadata={"help": "Tokens masked in one copy; the paper's is 1."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many."})
    masked_lm_epochs: float = field(default=3.0, metadata={"help": "Epochs of masked language modelling."})
    masked_lm_on_train_only: bool = field(default=False, metadata={"help": "Leave the test texts out there."})
    masked_lm_only: bool = field(default=False, metadata={"help": "Train no classifier."})


def source_of(arguments: Arguments) -> dict[str, Any]:
    """What the masked language model depends on, save for the seed; also part of the key of a line."""
    names = """model_name_or_path dataset_name dataset_config dataset_revision text_columns max_seq_length
        max_train_samples masked_lm_epochs masked_lm_on_train_only"""
    return {name: vars(arguments)[name] for name in names.split()}


def train_masked_lm(arguments: Arguments, training: Any, texts: datasets.Dataset, tokenizer: Any) -> Any:
    folder, key = Path(arguments.work_dir, "masked-lm"), Path(arguments.work_dir, "masked-lm.json")
    source = source_of(arguments)
    if folder.exists():
        known = json.loads(key.read_text()) if key.exists() else "unknown settings"
        if known != source:
            raise ValueError(
                f"work_dir: '{folder}' was trained with {known}, not {source}; pass another --work_dir, or the same "
                "settings"
            )
        return AutoModelForMaskedLM.from_pretrained(folder)
    model = anytime_masked_lm(AutoModelForMaskedLM.from_pretrained(arguments.model_name_or_path))
    settings = training.to_dict() | {"num_train_epochs": arguments.masked_lm_epochs, "output_dir": f"{folder}-runs"}
    own = {name: settings[name] for name in TrainingArguments.__dataclass_fields__ if name in settings}
    collator = DataCollatorForLanguageModeling(tokenizer, seed=training.seed)
    Trainer(model, TrainingArguments(**own), train_dataset=texts, data_collator=collator).train()
    key.write_text(json.dumps(source))
    model.save_pretrained(f"{folder}.new")
    Path(f"{folder}.new").rename(folder)  # whole, or not there
    return model


def main() -> None:
    parser = HfArgumentParser((Arguments, EarlyExitTrainingArguments))
    parser.set_defaults(save_strategy="no")
    arguments, training = parser.parse_args_into_dataclasses()
    set_seed(training.seed)
    work = Path(arguments.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    splits = datasets.load_dataset(
        arguments.dataset_name, arguments.dataset_config, revision=arguments.dataset_revision
    )
    train = splits["train"]
    for name in ("train", "test"):
        check_columns(splits[name], arguments.text_columns, arguments.label_column, name)
    labels = labels_of(train, arguments.label_column)
    if labels.names is None and not arguments.masked_lm_only:
        raise ValueError(
            f"label_column: '{arguments.label_column}' holds numbers; the table is of accuracies, so pass "
            "--masked_lm_only, and its folder to run_glue_exit.py --token_depths_model"
        )
    if arguments.max_train_samples:
        train = train.shuffle(seed=0).select(range(min(arguments.max_train_samples, len(train))))
    train, test = (
        tokenize(rows, tokenizer, arguments.text_columns, arguments.label_column, labels, arguments.max_seq_length)
        for rows in (train, splits["test"])
    )
    texts = datasets.concatenate_datasets([train] if arguments.masked_lm_on_train_only else [train, test])
    masked_lm = train_masked_lm(arguments, training, texts.remove_columns("labels"), tokenizer)
    if arguments.masked_lm_only:
        return
    masked_lm.to(training.device)
    table = work / "table.jsonl"
    done = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    recipe = ("num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size")
    key = source_of(arguments) | {"label_column": arguments.label_column, "masked_at_once": arguments.masked_at_once}
    key |= {name: getattr(training, name) for name in recipe}
    done = [line for line in done if key.items() <= line.items()]
    for penalty in arguments.penalties:
        if any((line["penalty"], line["seed"]) == (penalty, training.seed) for line in done):
            continue
        rows = {
            name: estimate_depths_by_reconstruction(
                split,
                masked_lm,
                tokenizer,
                penalty,
                masked_at_once=arguments.masked_at_once,
                losses_file=work / f"losses-{name}-{arguments.masked_at_once}.jsonl",
            )
            for name, split in (("train", train), ("test", test))
        }
        set_seed(training.seed)
        model = DepthAdaptiveForSequenceClassification.from_encoder_pretrained(
            arguments.model_name_or_path, num_labels=labels.num_labels, depth_source="reconstruction"
        )
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
        training.output_dir = str(work / f"penalty-{penalty}-seed-{training.seed}-{name}")
        trainer = EarlyExitTrainer(
            model, training, train_dataset=rows["train"], data_collator=DataCollatorWithTokenDepths(tokenizer)
        )
        begun = training.save_strategy != "no" and Path(training.output_dir, "stages.json").exists()
        trainer.train(resume_from_checkpoint=begun)
        trace = collect_trace(model, rows["test"])
        special = set(tokenizer.all_special_ids)
        depths = [
            depth
            for row in rows["test"]
            for token, depth in zip(row["input_ids"], row["token_depths"], strict=True)
            if token not in special
        ]
        line = key | {
            "penalty": penalty,
            "seed": training.seed,
            "accuracy": (predictions(trace.logits[:, -1]) == trace.labels).double().mean().item(),
            "mean_depth": sum(depths) / len(depths),
            "mean_exit_layer": trace.at(1.0)[1].double().mean().item(),
        }
        with table.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done.append(line)
    print(f"\n{'penalty':>8} {'seed':>5} {'accuracy':>9} {'mean depth':>11} {'mean exit layer':>16}")
    for line in done:
        print(f"{line['penalty']:>8} {line['seed']:>5} {line['accuracy']:>9.4f} ", end="")
        print(f"{line['mean_depth']:>11.2f} {line['mean_exit_layer']:>16.2f}")


if __name__ == "__main__":
    main()
