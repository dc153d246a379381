"""Train depth-adaptive models with depths by reconstruction, for several penalties (Liu et al., AAAI 2021, Table 4).

    python benchmarks/depths_by_reconstruction.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset_name CogComp/trec --dataset_revision refs/convert/parquet --label_column coarse_label --work_dir out

The script first trains a masked language model with a prediction after every layer. As in the paper it is trained on
the texts of train and test, without labels (`--masked_lm_on_train_only`: only of train). Predicting every token with
it gives the token's depth. Then, for each penalty, a classifier is fine-tuned with the column `token_depths`, and its
accuracy and mean depth are printed. The masked language model, which is used for all seeds, the losses of the tokens
and the table (`table.jsonl`) are saved in the work folder, so the same command continues a stopped run.
`--masked_lm_only` trains only the masked language model, for `run_glue_exit.py --token_depths_model`.
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
    """Model, data and settings."""

    model_name_or_path: str = field(metadata={"help": "Hub name or folder of the encoder."})
    dataset_name: str = field(metadata={"help": "Data set on the Hub or folder, with train and test splits."})
    work_dir: str = field(metadata={"help": "Folder for everything that is finished."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the data set."})
    text_columns: list[str] = field(
        default_factory=lambda: ["text"], metadata={"help": "One or two columns with texts."}
    )
    label_column: str = field(default="label", metadata={"help": "Column with classes."})
    penalties: list[float] = field(
        default_factory=lambda: [0.05, 0.1, 0.15, 0.2], metadata={"help": "Values of lambda in Eq. 4."}
    )
    masked_at_once: int = field(
        default=1, metadata={"help": "Tokens masked in each copy of a text. The paper uses 1."}
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are truncated to this many tokens."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many texts, chosen with seed 0."}
    )
    masked_lm_epochs: float = field(default=3.0, metadata={"help": "Epochs of masked language modelling."})
    masked_lm_on_train_only: bool = field(
        default=False, metadata={"help": "Train the masked language model without the test texts."}
    )
    masked_lm_only: bool = field(default=False, metadata={"help": "Train only the masked language model."})


def source_of(arguments: Arguments) -> dict[str, Any]:
    """The settings that the masked language model depends on, without the seed; they are also written to the table."""
    names = """model_name_or_path dataset_name dataset_config dataset_revision text_columns max_seq_length
        max_train_samples masked_lm_epochs masked_lm_on_train_only"""
    return {name: vars(arguments)[name] for name in names.split()}


def train_masked_lm(arguments: Arguments, training: Any, texts: datasets.Dataset, tokenizer: Any) -> Any:
    """Train the masked language model, or load it if it exists.

    Raises:
        ValueError: The existing model was trained with other settings.
    """
    folder, source_file = Path(arguments.work_dir, "masked-lm"), Path(arguments.work_dir, "masked-lm.json")
    source = source_of(arguments)
    if folder.exists():
        trained_with = json.loads(source_file.read_text()) if source_file.exists() else "unknown settings"
        if trained_with != source:
            raise ValueError(
                f"work_dir: '{folder}' was trained with {trained_with}, not {source}; pass another --work_dir or the "
                "same settings"
            )
        return AutoModelForMaskedLM.from_pretrained(folder)
    model = anytime_masked_lm(AutoModelForMaskedLM.from_pretrained(arguments.model_name_or_path))
    settings = training.to_dict() | {"num_train_epochs": arguments.masked_lm_epochs, "output_dir": f"{folder}-runs"}
    plain_settings = {name: settings[name] for name in TrainingArguments.__dataclass_fields__ if name in settings}
    collator = DataCollatorForLanguageModeling(tokenizer, seed=training.seed)
    Trainer(model, TrainingArguments(**plain_settings), train_dataset=texts, data_collator=collator).train()
    source_file.write_text(json.dumps(source))
    model.save_pretrained(f"{folder}.new")
    Path(f"{folder}.new").rename(folder)  # so that an existing folder is always complete
    return model


def main() -> None:
    """Train what is missing, and print the table."""
    parser = HfArgumentParser((Arguments, EarlyExitTrainingArguments))
    parser.set_defaults(save_strategy="no")
    arguments, training = parser.parse_args_into_dataclasses()
    set_seed(training.seed)
    work = Path(arguments.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path, model_max_length=arguments.max_seq_length)
    splits = datasets.load_dataset(
        arguments.dataset_name, arguments.dataset_config, revision=arguments.dataset_revision
    )
    train = splits["train"]
    for name in ("train", "test"):
        check_columns(splits[name], arguments.text_columns, arguments.label_column, name)
    labels = labels_of(train, arguments.label_column)
    if labels.names is None and not arguments.masked_lm_only:
        raise ValueError(
            f"label_column: '{arguments.label_column}' contains numbers, which have no accuracy; pass "
            "--masked_lm_only, and then the work folder's masked-lm to run_glue_exit.py --token_depths_model"
        )
    if arguments.max_train_samples:
        train = train.shuffle(seed=0).select(range(min(arguments.max_train_samples, len(train))))
    train, test = (
        tokenize(rows, tokenizer, arguments.text_columns, arguments.label_column, labels)
        for rows in (train, splits["test"])
    )
    texts = datasets.concatenate_datasets([train] if arguments.masked_lm_on_train_only else [train, test])
    masked_lm = train_masked_lm(arguments, training, texts.remove_columns("labels"), tokenizer)
    if arguments.masked_lm_only:
        return
    masked_lm.to(training.device)
    table = work / "table.jsonl"
    done = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
    training_flags = ("num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size")
    key = source_of(arguments) | {"label_column": arguments.label_column, "masked_at_once": arguments.masked_at_once}
    key |= {name: getattr(training, name) for name in training_flags}
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
        resume = training.save_strategy != "no" and Path(training.output_dir, "stages.json").exists()
        trainer.train(resume_from_checkpoint=resume)
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
