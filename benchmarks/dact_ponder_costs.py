"""How the depth of DACT-BERT follows its ponder cost tau (Fig. 2 and 3 of the paper), at its exact halting rule.

    python benchmarks/dact_ponder_costs.py --dataset_name CogComp/trec --dataset_revision refs/convert/parquet \
        --text_columns text --label_column coarse_label --validation_fraction 0.1 \
        --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --ponder_costs 0.02 0.05 0.1 0.2 0.3 0.5 --results benchmarks/dact_ponder_costs.jsonl

Only the last stage depends on tau. The stages before it are trained once for a seed and kept in `--work_dir`. Every
value of tau then trains the last stage from there, and gives one line of the results file. The same command continues
a stopped run. With threshold 0 no exit changes the class of full depth, so quality and depth are those that tau has
chosen in training; no threshold is chosen on the data that is scored.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compare_methods import append_line, machine, whole_lines
from transformers import AutoTokenizer, DataCollatorWithPadding, set_seed

from adaexit_hf import DactBertForSequenceClassification, EarlyExitTrainer, EarlyExitTrainingArguments, collect_trace
from adaexit_hf.cli.data_arguments import DataArguments, evaluation_splits, first_rows, load_splits, reserve_validation
from adaexit_hf.data.tasks import labels_of, tokenize
from adaexit_hf.evaluation.summary import results_at_threshold
from adaexit_hf.models.early_exit_loop import InFlight, LayerLoop
from adaexit_hf.models.padded_batches import model_inputs, padded_batch


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("task_name", "dataset_name", "dataset_revision"):
        parser.add_argument(f"--{name}", help="As in adaexit train.")
    parser.add_argument("--text_columns", nargs="+", help="As in adaexit train.")
    parser.add_argument("--label_column", default="label", help="As in adaexit train.")
    parser.add_argument("--validation_fraction", type=float, help="As in adaexit train.")
    parser.add_argument("--max_train_samples", type=int, help="As in adaexit train.")
    parser.add_argument("--model_name_or_path", required=True, help="Hub name or folder of the encoder.")
    parser.add_argument("--ponder_costs", type=float, nargs="+", required=True, help="Values of tau.")
    parser.add_argument("--method_config", type=json.loads, default={}, help="Other settings of DACT-BERT, as JSON.")
    parser.add_argument("--seed", type=int, default=0, help="Training seed.")
    parser.add_argument("--epochs", type=float, default=3, help="Epochs of each stage.")
    parser.add_argument("--batch_size", type=int, default=16, help="Texts per training step.")
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="Learning rate of the encoder.")
    parser.add_argument("--exits_learning_rate", type=float, default=1e-3, help="That of exits and halting units.")
    parser.add_argument("--bf16", action="store_true", help="Train with bf16.")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines file, one line per value of tau.")
    parser.add_argument(
        "--work_dir", type=Path, default=Path("out/dact_ponder_costs"), help="For the stages before the last."
    )
    return parser.parse_args(argv)


@torch.inference_mode()
def by_layer(model: Any, rows: Any, batch_size: int) -> dict[str, list[float]]:
    """Mean halting value h_n of every exit, and accuracy of its own output y_n, which the accumulated answer mixes."""
    model.eval()
    halting, right = [], []
    for start in range(0, len(rows), batch_size):
        batch = padded_batch([rows[place] for place in range(start, min(start + batch_size, len(rows)))],
                             model.config.encoder_config)  # fmt: skip
        labels = torch.tensor(rows[start : start + batch_size]["labels"])
        flight = InFlight.of(*model.embed(model_inputs(model, batch)))
        extras = [step.exit.extras for _, (step,) in LayerLoop(model, [flight]) if step.exit is not None]
        halting.append(torch.stack([value.cpu() for _, value in extras], dim=1))
        right.append(torch.stack([logits.cpu().argmax(dim=-1) == labels for logits, _ in extras], dim=1))
    return {name: torch.cat(values).double().mean(dim=0).tolist()
            for name, values in {"halting": halting, "own_accuracy": right}.items()}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, and print one line per value of tau."""
    options = parse(argv)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(options).items()
        if name not in ("results", "work_dir", "ponder_costs", "dataset_revision")
    }
    for name in ("model_name_or_path", "dataset_name"):  # a folder's place on this machine does not identify a run
        settings[name] = "/".join(Path(settings[name]).parts[-2:]) if settings[name] else None
    done = [row["ponder_cost"] for row in whole_lines(options.results) if row["settings"] == settings]
    missing = [cost for cost in options.ponder_costs if cost not in done]
    if not missing:
        return
    data = DataArguments(
        task_name=options.task_name,
        dataset_name=options.dataset_name,
        dataset_revision=options.dataset_revision,
        text_columns=options.text_columns,
        label_column=options.label_column,
    )
    columns = data.columns()
    splits = reserve_validation(load_splits(data), data.evaluation_names(), options.validation_fraction, data.label())
    names = evaluation_splits(data, splits, ("train",))
    labels = labels_of(splits["train"], data.label())
    metrics = data.metric_names(labels)
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path, model_max_length=128)
    rows = {
        name: tokenize(
            first_rows(splits[name], options.max_train_samples if name == "train" else None, options.seed),
            tokenizer, columns, data.label(), labels,
        )
        for name in ("train", *names)
    }  # fmt: skip

    def train(model: Any, stage: str, folder: Path) -> float:
        arguments = EarlyExitTrainingArguments(
            str(folder),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            exits_learning_rate=options.exits_learning_rate,
            warmup_steps=0.1,
            train_sampling_strategy="group_by_length",
            seed=options.seed,
            bf16=options.bf16,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        start = time.monotonic()
        trainer = EarlyExitTrainer(
            model,
            arguments,
            train_dataset=rows["train"],
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train(stage=stage)
        return round(time.monotonic() - start, 1)

    first = options.work_dir / hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    if not (first / "config.json").exists():
        set_seed(options.seed)
        config = {"num_labels": labels.num_labels, **options.method_config}
        model = DactBertForSequenceClassification.from_encoder_pretrained(options.model_name_or_path, **config)
        for stage in model.stages[:-1]:
            print(f"stage {stage.name}: {train(model, stage.name, first / 'run'):.0f} s", flush=True)
        model.save_pretrained(first)
    for cost in missing:
        set_seed(options.seed)
        model = DactBertForSequenceClassification.from_pretrained(first, ponder_cost=cost)
        seconds = train(model, model.stages[-1].name, first / "run")
        results = {
            name: results_at_threshold(collect_trace(model, rows[name], batch_size=64), metrics, 0.0) for name in names
        }
        append_line(
            options.results,
            {
                "ponder_cost": cost,
                "settings": settings,
                "results": results,
                "by_layer": by_layer(model, rows[names[0]], 64),
                "seconds": seconds,
                "versions": {package: version(package) for package in ("torch", "transformers", "adaexit_hf")},
                "machine": machine(os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads()))),
            },
        )
        first_split = results[names[0]]
        print(
            f"tau {cost}: {metrics[0]} {first_split['full_depth'][metrics[0]]:.4f} at full depth, mean layer "
            f"{first_split['mean_exit_layer']:.2f}, by exit "
            + " ".join(f"{score[metrics[0]]:.3f}" for score in first_split["by_exit"].values())
            + f", {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
