"""Fine-tune an early-exit model on GLUE, SICK, or your own labelled texts, and choose its exit threshold.

    accelerate launch examples/run_glue_exit.py --method berxit --model_name_or_path google-bert/bert-base-uncased \
        --task_name mrpc --output_dir out

Flags may also come from one JSON or YAML file: `python examples/run_glue_exit.py settings.yaml`. Your own data: a data
set on the Hub or a folder (`--dataset_name`), or CSV, JSON or parquet files (`--train_file`, `--validation_file`),
with one or two text columns and a label column of classes, or of floats for regression. `--validation_fraction 0.1`
takes a missing validation split from train. `--method plain` fine-tunes the encoder without exits; its
`--method_config` goes to the encoder's config, e.g. '{"num_hidden_layers": 3}', and with `--layer_drop 0.2` its curve
is that of the models with 1, 2, ... evenly spaced layers, and the threshold their number (the model is saved whole).
`--calibrate` fits the exits' temperatures on one half of the validation set, the same for every seed. The threshold is
chosen on the whole of it nonetheless, as without, so that all methods choose on the same rows.
Writes the model, with its threshold, `metrics.json` and `curve.json` to the output folder.
"""

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    set_seed,
)

from adaexit_hf import (
    METHODS,
    EarlyExitTrainer,
    EarlyExitTrainingArguments,
    choose_threshold,
    collect_trace,
    tradeoff_curve,
)
from adaexit_hf.evaluation import ExitTrace, expected_saving, predictions, spread_thresholds
from adaexit_hf.reconstruction import DataCollatorWithTokenDepths, estimate_depths_by_reconstruction
from adaexit_hf.static import evenly_spaced, layer_drop, only_layers
from adaexit_hf.tasks import TASKS, Labels, check_columns, compute_score, labels_of, metric_function, tokenize


@dataclass
class Arguments:
    """What to train on what."""

    model_name_or_path: str = field(
        metadata={"help": "Any supported encoder or fine-tuned classifier: Hub name or folder."}
    )
    method: str = field(default="berxit", metadata={"help": "berxit, dact-bert, deebert, ..., or plain for no exits."})
    method_config: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "JSON: settings of the method, e.g. '{\"ponder_cost\": 0.01}'."}
    )
    layer_drop: float = field(
        default=0.0, metadata={"help": "With --method plain: LayerDrop, the share of layers to skip in training."}
    )
    stage: str | None = field(
        default=None, metadata={"help": "Train only this stage, e.g. exits from an already fine-tuned classifier."}
    )
    calibrate: bool = field(
        default=False, metadata={"help": "Fit the exits' temperatures, on one half of the validation set."}
    )
    token_depths_model: str | None = field(
        default=None,
        metadata={"help": "With depth_source 'reconstruction': masked LM that depths_by_reconstruction.py trained."},
    )
    masked_at_once: int = field(default=1, metadata={"help": "With it: tokens masked in one copy; the paper's is 1."})
    max_drop: float = field(
        default=0.01, metadata={"help": "How much of the full-depth score exits may cost, relative."}
    )
    task_name: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(TASKS)}; else give the columns."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Hub data set or folder. Default: nyu-mll/glue."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Its configuration. Default: the task's name on GLUE."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Its branch, e.g. refs/convert/parquet for a data set that is a script."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "CSV, JSON or parquet file, in place of a data set."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "One or two. Default: the task's."})
    label_column: str = field(default="label", metadata={"help": "Classes (any type), or floats for regression."})
    metrics: list[str] | None = field(
        default=None, metadata={"help": "Headline first. Default: the task's, or accuracy."}
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={"help": "Without a validation split: set aside this share of train, the same rows for every seed."},
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are cut."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on the first so many, after a shuffle."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on so many of each split, the same rows for every seed."}
    )

    def __post_init__(self) -> None:
        if self.method_config is None or isinstance(self.method_config, str):  # the parser's forms of a dict
            self.method_config = json.loads(self.method_config or "{}")


def load_splits(arguments: Arguments) -> datasets.DatasetDict:
    if arguments.train_file:
        if not arguments.validation_file:
            raise ValueError(
                "validation_file: missing; --train_file needs --validation_file, to choose the threshold on"
            )
        kind = Path(arguments.train_file).suffix.lstrip(".").replace("jsonl", "json")
        if kind not in ("csv", "json", "parquet"):
            raise ValueError(f"train_file: got '{arguments.train_file}'; pass a .csv, .json, .jsonl or .parquet file")
        return datasets.load_dataset(
            kind, data_files={"train": arguments.train_file, "validation": arguments.validation_file}
        )
    name = arguments.dataset_name or "nyu-mll/glue"
    glue = arguments.task_name in TASKS and arguments.task_name != "sick"
    if arguments.dataset_name is None and not glue:
        raise ValueError(
            f"task_name: got {arguments.task_name!r}; only GLUE's tasks have a default data set, pass --dataset_name "
            "(for SICK one with sentence1, sentence2 and the relatedness in label) or --train_file"
        )
    config = arguments.dataset_config or (arguments.task_name if glue else None)
    return datasets.load_dataset(name, config, revision=arguments.dataset_revision)


def reserve_validation(
    splits: datasets.DatasetDict, known: tuple[str, ...], fraction: float | None
) -> datasets.DatasetDict:
    """With a share of train as validation, if there is none and a share is given."""
    if fraction is None or "train" not in splits or any(name in splits for name in known):
        return splits
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction: got {fraction}; pass a share of train between 0 and 1, e.g. 0.1")
    parts = splits["train"].train_test_split(test_size=fraction, seed=0)
    return datasets.DatasetDict({**splits, "train": parts["train"], known[0]: parts["test"]})


def build_model(arguments: Arguments, labels: Labels) -> Any:
    options: dict[str, Any] = {"num_labels": labels.num_labels}
    if labels.names is not None:
        options["id2label"] = dict(enumerate(labels.names))
        options["label2id"] = {name: index for index, name in enumerate(labels.names)}
    if arguments.method == "plain":
        options |= arguments.method_config
        return AutoModelForSequenceClassification.from_pretrained(arguments.model_name_or_path, **options)
    methods = {config.model_type: model for config, model, _ in METHODS}
    if arguments.method_config.get("fine_tuning") == "limit":
        layers = json.dumps({"num_hidden_layers": arguments.method_config.get("limit_layer", 3)})
        raise ValueError(
            "method_config: fine_tuning='limit' leaves full depth untrained, so no threshold can be compared with it; "
            f"pass --method plain --method_config '{layers}', which is the same model (limit-K in compare_methods.py)"
        )
    if arguments.method not in methods:
        raise ValueError(f"method: got '{arguments.method}'; choose one of {', '.join(methods)}, plain")
    return methods[arguments.method].from_encoder_pretrained(
        arguments.model_name_or_path, **options, **arguments.method_config
    )


def check_extras(arguments: Arguments, model: Any) -> None:
    """Refuse flags that the model has no use for, before anything is trained."""
    if arguments.calibrate and (arguments.method == "plain" or model.config.num_labels == 1):
        raise ValueError(
            f"calibrate: needs exits with probabilities; got --method {arguments.method} with "
            f"{model.config.num_labels} labels"
        )
    if arguments.layer_drop and arguments.method != "plain":
        raise ValueError(
            f"layer_drop: got {arguments.layer_drop} with --method {arguments.method}; pass --method plain"
        )
    reads_depths = getattr(model.config, "depth_source", None) == "reconstruction"
    if reads_depths and not arguments.token_depths_model:
        raise ValueError(
            "token_depths_model: missing; depth_source='reconstruction' needs the folder of a masked language model "
            "that examples/depths_by_reconstruction.py trained"
        )
    if arguments.token_depths_model and not reads_depths:
        raise ValueError(
            f"token_depths_model: got '{arguments.token_depths_model}' with --method {arguments.method}; pass "
            '--method depth-adaptive --method_config \'{"depth_source": "reconstruction"}\''
        )


def with_token_depths(
    arguments: Arguments, training: Any, model: Any, tokenizer: Any, sets: dict[str, datasets.Dataset]
) -> dict[str, datasets.Dataset]:
    """The column `token_depths`, for all sets; the losses behind it stay in the output folder."""
    masked_lm = AutoModelForMaskedLM.from_pretrained(arguments.token_depths_model).to(training.device)
    theirs, ours = masked_lm.config, model.config.encoder_config
    if (theirs.num_hidden_layers, theirs.vocab_size) != (ours.num_hidden_layers, ours.vocab_size):
        raise ValueError(
            f"token_depths_model: has {theirs.num_hidden_layers} layers and {theirs.vocab_size} words, the encoder "
            f"{ours.num_hidden_layers} and {ours.vocab_size}; train it from the same encoder"
        )
    output = Path(training.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    return {
        name: estimate_depths_by_reconstruction(
            rows,
            masked_lm,
            tokenizer,
            masked_at_once=arguments.masked_at_once,
            losses_file=output / f"losses-{name}.jsonl",
        )
        for name, rows in sets.items()
    }


def trace_of(model: Any, rows: datasets.Dataset, tokenizer: Any, batch_size: int, every_depth: bool) -> ExitTrace:
    """What every exit says; a plain classifier has one, at the end, or one for every number of layers kept."""
    if hasattr(model, "stages"):
        return collect_trace(model, rows, batch_size)
    depth = model.config.num_hidden_layers
    depths = range(1, depth + 1) if every_depth else [depth]
    logits = []
    for kept in depths:
        with only_layers(model, evenly_spaced(depth, kept)) if every_depth else nullcontext():
            logits.append(logits_of(model, rows, tokenizer, batch_size))
    scores = torch.tensor(depths).float().repeat(len(rows), 1)  # (samples, depths)
    return ExitTrace(torch.stack(logits, dim=1), scores, torch.tensor(rows["labels"]), tuple(depths), "ge")


@torch.inference_mode()
def logits_of(model: Any, rows: datasets.Dataset, tokenizer: Any, batch_size: int) -> torch.Tensor:
    model.eval()
    batches = DataLoader(rows, batch_size, collate_fn=DataCollatorWithPadding(tokenizer))
    return torch.cat([model(**batch.to(model.device)).logits.float().cpu() for batch in batches])


def report(trace: ExitTrace, metrics: tuple[str, ...], threshold: float | None) -> dict[str, Any]:
    """All metrics at full depth, at the threshold, and at every exit."""

    def scores(logits: torch.Tensor) -> dict[str, float]:
        return {name: compute_score(name, predictions(logits).numpy(), trace.labels.numpy()) for name in metrics}

    logits, exit_layer = trace.at(threshold)
    return {
        "samples": len(trace.logits),
        "full_depth": scores(trace.logits[:, -1]),
        "at_threshold": scores(logits),
        "exit_threshold": threshold,
        "mean_exit_layer": exit_layer.double().mean().item(),
        "saving": expected_saving(exit_layer, trace.exit_layers[-1]),
        "by_exit": {str(layer): scores(trace.logits[:, k]) for k, layer in enumerate(trace.exit_layers)},
        "exit_histogram": {str(layer): int((exit_layer == layer).sum()) for layer in trace.exit_layers},
        "not_finite": int((~trace.logits.isfinite()).any(dim=-1).sum()),
    }


def print_curve(points: list[Any], metric: str, chosen: float | None) -> None:
    print(f"\n{'threshold':>12} {metric:>20} {'mean exit layer':>16} {'saved':>7}")
    shown = points[:: max(1, len(points) // 12)]
    for point in sorted({*shown, *[p for p in points if p.threshold in (chosen, None)]}, key=lambda p: p.mean_layers):
        name = "full depth" if point.threshold is None else f"{point.threshold:.6g}"
        mark = " <- chosen" if point.threshold == chosen else ""
        print(f"{name:>12} {point.score:>20.4f} {point.mean_layers:>16.2f} {point.saving:>7.1%}{mark}")


def print_results(results: dict[str, Any], metric: str) -> None:
    for split, result in results.items():
        full, exits = result["full_depth"], result["at_threshold"]
        print(f"\n{split}, {result['samples']} samples: mean exit layer {result['mean_exit_layer']:.2f}")
        for name in full:
            print(f"  {name}: {full[name]:.4f} at full depth, {exits[name]:.4f} with exits")
        print(
            "  exit by layer:  " + "  ".join(f"{layer}: {count}" for layer, count in result["exit_histogram"].items())
        )
        by_exit = result["by_exit"].items()
        print(f"  {metric} by layer:  " + "  ".join(f"{layer}: {score[metric]:.4f}" for layer, score in by_exit))


def parse() -> tuple[Arguments, EarlyExitTrainingArguments]:
    parser = HfArgumentParser((Arguments, EarlyExitTrainingArguments))
    if len(sys.argv) == 2 and sys.argv[1].endswith((".json", ".yaml", ".yml")):
        read = parser.parse_json_file if sys.argv[1].endswith(".json") else parser.parse_yaml_file
        return read(sys.argv[1])
    return parser.parse_args_into_dataclasses()


def evaluation_splits(arguments: Arguments, splits: datasets.DatasetDict, known: tuple[str, ...]) -> list[str]:
    """The splits to report on; the threshold is chosen on the first."""
    found = [name for name in known if name in splits]
    if "train" not in splits or not found:
        raise ValueError(
            f"dataset: has splits {', '.join(splits)}; needs train and {' or '.join(known)}; "
            "--validation_fraction 0.1 takes the latter from train"
        )
    # GLUE's test sets carry -1 for a label; a labelled one tells what the chosen threshold is worth.
    if "test" in splits and arguments.label_column in splits["test"].column_names:
        held_out = splits["test"][arguments.label_column]
        found += ["test"] if all(value is not None and value != -1 for value in held_out) else []
    return found


def main() -> None:
    arguments, training = parse()
    set_seed(training.seed)

    task = TASKS.get(arguments.task_name or "")
    text_columns = arguments.text_columns or (task.text_columns if task else None)
    if not text_columns or len(text_columns) > 2:
        raise ValueError(f"text_columns: got {text_columns}; pass one or two column names, or a --task_name of GLUE")
    known = task.evaluation_splits if task else ("validation",)
    splits = reserve_validation(load_splits(arguments), known, arguments.validation_fraction)
    evaluation = evaluation_splits(arguments, splits, known)
    for name in ("train", *evaluation):
        check_columns(splits[name], text_columns, arguments.label_column, name)
    labels = labels_of(splits["train"], arguments.label_column)
    usual = task.metrics if task else ("accuracy",) if labels.names else ("spearmanr", "pearson")
    metrics = tuple(arguments.metrics or usual)
    if labels.names and {"pearson", "spearmanr"} & set(metrics):
        raise ValueError(
            f"label_column: '{arguments.label_column}' holds the classes {labels.names[:5]}, but {metrics} need "
            "numbers; pass the column of the scores as --label_column, or --metrics accuracy"
        )

    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    model = build_model(arguments, labels)
    check_extras(arguments, model)
    dropping = layer_drop(model, arguments.layer_drop) if arguments.layer_drop else None
    length = min(arguments.max_seq_length, tokenizer.model_max_length)

    def encode(rows: datasets.Dataset) -> datasets.Dataset:
        return tokenize(rows, tokenizer, text_columns, arguments.label_column, labels, length)

    with training.main_process_first(desc="tokenizing"):
        train_set = splits["train"]
        if arguments.max_train_samples is not None and arguments.max_train_samples < len(train_set):
            train_set = train_set.shuffle(seed=training.seed).select(range(arguments.max_train_samples))
        for name in evaluation:
            if arguments.max_eval_samples is not None and arguments.max_eval_samples < len(splits[name]):
                splits[name] = splits[name].shuffle(seed=0).select(range(arguments.max_eval_samples))
        sets = {"train": encode(train_set)} | {name: encode(splits[name]) for name in evaluation}
        if arguments.token_depths_model:
            sets = with_token_depths(arguments, training, model, tokenizer, sets)
        train_set = sets.pop("train")
    if arguments.method != "plain":
        model.prepare(train_set)

    def compute_metrics(result: Any) -> dict[str, float]:
        guesses = predictions(torch.as_tensor(result.predictions)).numpy()
        return {name: compute_score(name, guesses, result.label_ids) for name in metrics}

    trainer = (Trainer if arguments.method == "plain" else EarlyExitTrainer)(
        model,
        training,
        train_dataset=train_set,
        eval_dataset=sets[evaluation[0]],
        data_collator=DataCollatorWithTokenDepths(tokenizer) if arguments.token_depths_model else None,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    resume = training.resume_from_checkpoint
    options = {"stage": arguments.stage} if arguments.stage else {}
    trainer.train(resume_from_checkpoint=True if resume in ("True", "true") else resume, **options)

    if dropping:
        dropping.remove()
    if trainer.is_world_process_zero():
        size = training.per_device_eval_batch_size
        if arguments.calibrate:
            half = sets[evaluation[0]].train_test_split(test_size=0.5, seed=0)["test"]  # the same for all seeds
            trainer.model.calibrate_temperatures(half, size)
        traces = {
            name: trace_of(trainer.model, rows, tokenizer, size, dropping is not None) for name, rows in sets.items()
        }
        first = traces[evaluation[0]]
        thresholds = first.scores[0, :-1].tolist() if dropping else spread_thresholds(first)
        if arguments.method != "plain" and isinstance(trainer.model.config.exit_threshold, float):
            thresholds.append(trainer.model.config.exit_threshold)  # the method's own default, e.g. DACT's sound 0
        curve = tradeoff_curve(first, metric_function(metrics[0]), thresholds)
        chosen = choose_threshold(curve, arguments.max_drop).threshold
        if arguments.method != "plain":
            trainer.model.config.exit_threshold = chosen
        temperatures = {"exit_temperatures": getattr(trainer.model.config, "exit_temperatures", None)}
        results = {name: report(trace, metrics, chosen) | temperatures for name, trace in traces.items()}
        print_curve(curve, f"{evaluation[0]} {metrics[0]}", chosen)
        print_results(results, metrics[0])
        output = Path(training.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        everything = {"settings": vars(arguments), "seed": training.seed, "results": results}
        (output / "metrics.json").write_text(json.dumps(everything, indent=2))
        (output / "curve.json").write_text(json.dumps([point._asdict() for point in curve], indent=2))
    trainer.accelerator.wait_for_everyone()
    trainer.save_model()
    if training.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
