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
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

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
from transformers.trainer_utils import HubStrategy

from ..data.collators import DataCollatorWithTokenDepths
from ..data.reconstruction import estimate_depths_by_reconstruction
from ..data.tasks import Labels, check_columns, labels_of, tokenize
from ..evaluation.collect import collect_trace
from ..evaluation.curves import choose_threshold
from ..evaluation.metrics import compute_score
from ..evaluation.summary import report, write_results
from ..evaluation.trace import ExitTrace, predictions
from ..evaluation.tradeoff import spread_thresholds, tradeoff_curve
from ..models import METHODS
from ..pruning.layerdrop import evenly_spaced, layer_drop, only_layers
from ..trainer.trainer import EarlyExitTrainer
from ..trainer.training_args import EarlyExitTrainingArguments
from .data_arguments import DataArguments, evaluation_splits, first_rows, load_splits, reserve_validation
from .printing import print_curve, print_results


@dataclass(kw_only=True)
class Arguments(DataArguments):
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
    train_file: str | None = field(
        default=None,
        metadata={"help": "CSV, JSON or parquet file, in place of a data set; needs --validation_file, too."},
    )
    validation_fraction: float | None = field(
        default=None,
        metadata={"help": "Without a validation split: set aside this share of train, the same rows for every seed."},
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on the first so many, after a shuffle."}
    )
    save_traces: str | None = field(
        default=None,
        metadata={"help": "Folder: keep what every exit answered, one file per split, for ExitTrace.load."},
    )

    def __post_init__(self) -> None:
        if self.method_config is None or isinstance(self.method_config, str):  # the parser's forms of a dict
            try:
                self.method_config = json.loads(self.method_config or "{}")
            except json.JSONDecodeError as error:
                raise ValueError(f"method_config: got {self.method_config!r}, which is no JSON ({error})") from None
        if self.train_file and not self.validation_file:
            raise ValueError(
                "validation_file: missing; --train_file needs --validation_file, to choose the threshold on"
            )


def build_model(arguments: Arguments, labels: Labels) -> Any:
    options: dict[str, Any] = {"num_labels": labels.num_labels}
    if labels.names is not None:
        options["id2label"] = dict(enumerate(labels.names))
        options["label2id"] = {name: index for index, name in enumerate(labels.names)}
    settings = cast(dict[str, Any], arguments.method_config)
    if arguments.method == "plain":
        options |= settings
        return AutoModelForSequenceClassification.from_pretrained(arguments.model_name_or_path, **options)
    if settings.get("fine_tuning") == "limit":
        layers = json.dumps({"num_hidden_layers": settings.get("limit_layer", 3)})
        raise ValueError(
            "method_config: fine_tuning='limit' leaves full depth untrained, so no threshold can be compared with it; "
            f"pass --method plain --method_config '{layers}', which is the same model (limit-K in compare_methods.py)"
        )
    if arguments.method not in METHODS:
        raise ValueError(f"method: got '{arguments.method}'; choose one of {', '.join(METHODS)}, plain")
    return METHODS[arguments.method].from_encoder_pretrained(arguments.model_name_or_path, **options, **settings)


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
            "that benchmarks/depths_by_reconstruction.py trained"
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


def parse(argv: Sequence[str], prog: str | None = None) -> tuple[Arguments, EarlyExitTrainingArguments]:
    """Flags, or one JSON or YAML file in their place."""
    parser = HfArgumentParser((Arguments, EarlyExitTrainingArguments), prog=prog, description=__doc__)
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
        read = parser.parse_json_file if argv[0].endswith(".json") else parser.parse_yaml_file
        return read(argv[0])
    return parser.parse_args_into_dataclasses(list(argv))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train, choose the threshold, report and save."""
    arguments, training = parse(sys.argv[1:] if argv is None else argv, prog)
    set_seed(training.seed)
    if training.hub_strategy == HubStrategy.EVERY_SAVE:  # what training pushes by itself has no threshold yet
        training.hub_strategy = HubStrategy.END

    text_columns, known = arguments.columns(), arguments.evaluation_names()
    splits = load_splits(arguments, arguments.train_file)
    splits = reserve_validation(splits, known, arguments.validation_fraction)
    evaluation = evaluation_splits(arguments, splits, ("train",))
    for name in ("train", *evaluation):
        check_columns(splits[name], text_columns, arguments.label_column, name)
    labels = labels_of(splits["train"], arguments.label_column)
    metrics = arguments.metric_names(labels)

    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    model = build_model(arguments, labels)
    check_extras(arguments, model)
    dropping = layer_drop(model, arguments.layer_drop) if arguments.layer_drop else None
    length = min(arguments.max_seq_length, tokenizer.model_max_length)

    def encode(rows: datasets.Dataset) -> datasets.Dataset:
        return tokenize(rows, tokenizer, text_columns, arguments.label_column, labels, length)

    with training.main_process_first(desc="tokenizing"):
        sets = {"train": encode(first_rows(splits["train"], arguments.max_train_samples, training.seed))}
        sets |= {name: encode(first_rows(splits[name], arguments.max_eval_samples)) for name in evaluation}
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
    options: dict[str, Any] = {"stage": arguments.stage} if arguments.stage else {}
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
        if arguments.save_traces:
            for name, trace in traces.items():
                trace.save(Path(arguments.save_traces, f"{name}.safetensors"))
        first = traces[evaluation[0]]
        thresholds = first.scores[0, :-1].tolist() if dropping else spread_thresholds(first)
        if arguments.method != "plain" and isinstance(trainer.model.config.exit_threshold, float):
            thresholds.append(trainer.model.config.exit_threshold)  # the method's own default, e.g. DACT's sound 0
        curve = tradeoff_curve(first, metrics[0], thresholds)
        chosen = choose_threshold(curve, arguments.max_drop).threshold
        if arguments.method != "plain":
            trainer.model.config.exit_threshold = chosen
        temperatures = {"exit_temperatures": getattr(trainer.model.config, "exit_temperatures", None)}
        results = {name: report(trace, metrics, chosen) | temperatures for name, trace in traces.items()}
        print_curve(curve, f"{evaluation[0]} {metrics[0]}", chosen)
        print_results(results, metrics[0])
        dataset = arguments.for_card()
        everything = {"settings": arguments.published(), "seed": training.seed, "dataset": dataset._asdict()}
        everything |= {"results": results}
        write_results(Path(training.output_dir), everything, curve)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(_internal_call=True)  # else it would push a model without its card
    if trainer.is_world_process_zero() and arguments.method != "plain":
        trainer.create_model_card(curve=curve, metrics=results, dataset=dataset)
    if trainer.is_world_process_zero():
        print(f"\nsaved in {training.output_dir}")
    if training.push_to_hub:
        trainer.push_to_hub()
