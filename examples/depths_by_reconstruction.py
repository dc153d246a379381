"""Depth-adaptive transformer with depths by reconstruction, for several penalties (Table 4 of Liu et al., AAAI 2021).

    python examples/depths_by_reconstruction.py --model_name_or_path google-bert/bert-base-uncased \
        --dataset_name CogComp/trec --dataset_revision refs/convert/parquet --label_column coarse_label --work_dir out

Trains an anytime masked language model on the texts, without labels; restores every token to find its depth; then, for
each penalty, fine-tunes a classifier on the column `token_depths` and prints its accuracy and mean depth. The masked
language model, the tokens' losses and the table (`table.jsonl`) stay in the work folder: the same command goes on
where it was stopped.
"""

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
from adaexit_hf.evaluation import predictions
from adaexit_hf.reconstruction import (
    DataCollatorWithTokenDepths,
    anytime_masked_lm,
    estimate_depths_by_reconstruction,
)
from adaexit_hf.tasks import check_columns, labels_of, tokenize


@dataclass
class Arguments:
    """What to train on what."""

    model_name_or_path: str = field(metadata={"help": "Encoder, Hub name or folder."})
    dataset_name: str = field(metadata={"help": "Hub data set or folder with train and test splits."})
    work_dir: str = field(metadata={"help": "Keeps what is finished."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Its branch."})
    text_column: str = field(default="text", metadata={"help": "The texts."})
    label_column: str = field(default="label", metadata={"help": "Their classes."})
    penalties: list[float] = field(
        default_factory=lambda: [0.05, 0.1, 0.15, 0.2], metadata={"help": "Lambda of Eq. 4."}
    )
    masked_at_once: int = field(default=1, metadata={"help": "Tokens masked in one copy; the paper's is 1."})
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many."})
    masked_lm_epochs: float = field(default=3.0, metadata={"help": "Epochs of masked language modelling."})


def train_masked_lm(arguments: Arguments, training: Any, texts: datasets.Dataset, tokenizer: Any) -> Any:
    folder = Path(arguments.work_dir, "masked-lm")
    if (folder / "config.json").exists():
        return AutoModelForMaskedLM.from_pretrained(folder)
    model = anytime_masked_lm(AutoModelForMaskedLM.from_pretrained(arguments.model_name_or_path))
    settings = training.to_dict() | {"num_train_epochs": arguments.masked_lm_epochs, "output_dir": f"{folder}-runs"}
    own = {name: settings[name] for name in TrainingArguments.__dataclass_fields__ if name in settings}
    collator = DataCollatorForLanguageModeling(tokenizer, seed=training.seed)
    Trainer(model, TrainingArguments(**own), train_dataset=texts, data_collator=collator).train()
    model.save_pretrained(folder)
    return model


def main() -> None:
    arguments, training = HfArgumentParser((Arguments, EarlyExitTrainingArguments)).parse_args_into_dataclasses()
    set_seed(training.seed)
    work = Path(arguments.work_dir)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    splits = datasets.load_dataset(
        arguments.dataset_name, arguments.dataset_config, revision=arguments.dataset_revision
    )
    train = splits["train"]
    for name in ("train", "test"):
        check_columns(splits[name], [arguments.text_column], arguments.label_column, name)
    labels = labels_of(train, arguments.label_column)
    if arguments.max_train_samples:
        train = train.shuffle(seed=0).select(range(min(arguments.max_train_samples, len(train))))
    train, test = (
        tokenize(rows, tokenizer, [arguments.text_column], arguments.label_column, labels, arguments.max_seq_length)
        for rows in (train, splits["test"])
    )
    masked_lm = train_masked_lm(arguments, training, train.remove_columns("labels"), tokenizer)
    masked_lm.to(training.device)
    table = work / "table.jsonl"
    done = [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []
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
                losses_file=work / f"losses-{name}.jsonl",
            )
            for name, split in (("train", train), ("test", test))
        }
        set_seed(training.seed)
        model = DepthAdaptiveForSequenceClassification.from_encoder_pretrained(
            arguments.model_name_or_path, num_labels=labels.num_labels, depth_source="reconstruction"
        )
        training.output_dir = str(work / f"penalty-{penalty}")
        trainer = EarlyExitTrainer(
            model, training, train_dataset=rows["train"], data_collator=DataCollatorWithTokenDepths(tokenizer)
        )
        trainer.train()
        trace = collect_trace(model, rows["test"])
        special = set(tokenizer.all_special_ids)
        depths = [
            depth
            for row in rows["test"]
            for token, depth in zip(row["input_ids"], row["token_depths"], strict=True)
            if token not in special
        ]
        line = {
            "penalty": penalty,
            "seed": training.seed,
            "accuracy": (predictions(trace.logits[:, -1]) == trace.labels).double().mean().item(),
            "mean_depth": sum(depths) / len(depths),
            "mean_exit_layer": trace.at(1.0)[1].double().mean().item(),
        }
        with table.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done.append(line)
    print(f"\n{'penalty':>8} {'accuracy':>9} {'mean depth':>11} {'mean exit layer':>16}")
    for line in done:
        print(f"{line['penalty']:>8} {line['accuracy']:>9.4f} ", end="")
        print(f"{line['mean_depth']:>11.2f} {line['mean_exit_layer']:>16.2f}")


if __name__ == "__main__":
    main()
