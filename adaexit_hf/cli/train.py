"""Fine-tune an early-exit model on GLUE, SICK, or your own labelled texts, and choose its exit threshold.

    accelerate launch examples/run_glue_exit.py --method berxit --model_name_or_path google-bert/bert-base-uncased \
        --task_name mrpc --output_dir out

`adaexit train` takes the same flags. All flags can also be given in one JSON or YAML file:
`python examples/run_glue_exit.py settings.yaml`.

Your own data is a data set on the Hub or a local folder (`--dataset_name`), or .csv, .tsv, .jsonl, .json or .parquet
files (`--train_file`, `--validation_file`). It has one or two text columns, and a label column with classes, or with
floats for regression, which are guessed if only one choice makes sense. Several labels at once are a column with lists
of classes, or columns of 0 and 1, one per label (`--label_columns`). If there is no validation split, a tenth of train
becomes one.

`--method plain` fine-tunes the encoder without exits. Its `--method_config` goes to the encoder's config, e.g.
'{"num_hidden_layers": 3}'. With `--layer_drop 0.2` its curve has one point for each number of evenly spaced layers
that are kept, and the threshold is this number; the saved model has all layers.

The threshold is chosen on the validation split. The scores with exits that are reported there are cross-fitted: each
half of the rows is answered with a threshold that was chosen on the other half.

`--calibrate` fits one temperature per exit on half of the validation split, the same half for every seed. The
threshold is still chosen on the whole validation split, so that all methods choose on the same rows. The labels of the
first half then have also been used for the temperatures, which cross-fitting does not undo.

The output folder contains the model with its threshold, `metrics.json` and `curve.json`.
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field, fields
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
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import HubStrategy, get_last_checkpoint
from transformers.utils import CONFIG_NAME

from ..data.collators import DataCollatorWithTokenDepths
from ..data.reconstruction import estimate_depths_by_reconstruction
from ..data.tasks import Labels, check_columns, check_labels, labels_of, tokenize
from ..evaluation.collect import collect_trace
from ..evaluation.metrics import compute_score
from ..evaluation.summary import results_at_threshold, write_results
from ..evaluation.thresholds import check_max_drop, choose_threshold, spread_thresholds
from ..evaluation.trace import ExitTrace, scored_predictions
from ..evaluation.tradeoff import tradeoff_curve
from ..models import METHODS
from ..pruning.layerdrop import evenly_spaced, layer_drop, only_layers
from ..trainer.recipe import recommended_recipe
from ..trainer.trainer import EarlyExitTrainer
from ..trainer.training_args import EarlyExitTrainingArguments
from ..utils.files import check_writable
from ..utils.spelling import did_you_mean
from .data_arguments import DataArguments, evaluation_splits, first_rows, load_splits
from .evaluate import honest_scores, tell_of_choice
from .options import MAX_DROP_HELP, Fraction, limit_length
from .parser import CommandParser
from .printing import print_curve, print_results

# The flags that the help text shows first.
MAIN_FLAGS = [
    "help",
    "help_all",
    "model_name_or_path",
    "method",
    "recipe",
    "task_name",
    "output_dir",
    "train_file",
    "validation_file",
    "text_columns",
    "label_column",
    "label_columns",
    "num_train_epochs",
    "learning_rate",
    "exits_learning_rate",
    "per_device_train_batch_size",
    "max_drop",
    "metrics",
    "seed",
    "resume_from_checkpoint",
    "push_to_hub",
]


@dataclass(kw_only=True)
class Arguments(DataArguments):
    """Flags of `adaexit train`, besides those of `EarlyExitTrainingArguments`."""

    model_name_or_path: str = field(
        metadata={"help": "Hub name or folder of a supported encoder or of a fine-tuned classifier."}
    )
    method: str | None = field(
        default=None,
        metadata={
            "help": "berxit, dact-bert, deebert, ...: a method as in its paper; or plain, without exits. "
            "Default: the recommended recipe."
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "'recommended': our heads and rates; 'paper': those of the paper. Default: "
            "recommended, or paper with --method."
        },
    )
    method_config: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Config settings of the method, as JSON: '{\"ponder_cost\": 0.01}'."}
    )
    layer_drop: float = field(
        default=0.0,
        metadata={
            "help": "Only with --method plain: LayerDrop, the fraction of layers to skip in each training step."
        },
    )
    stage: str | None = field(
        default=None,
        metadata={"help": "Train only this stage, e.g. exits if you start from a fine-tuned classifier."},
    )
    calibrate: bool = field(
        default=False, metadata={"help": "Fit one temperature per exit on half of the validation split."}
    )
    token_depths_model: str | None = field(
        default=None,
        metadata={
            "help": "Only with depth_source 'reconstruction': folder of the masked language model that "
            "benchmarks/depths_by_reconstruction.py trained."
        },
    )
    masked_at_once: int = field(
        default=1,
        metadata={"help": "Only with --token_depths_model: tokens masked in each copy of a text. The paper uses 1."},
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Truncate texts to this many tokens, then and in all uses of the model. Default: 128, or fewer "
            "if the encoder's tokenizer truncates earlier."
        },
    )
    max_drop: Fraction = field(default=Fraction(0.01), metadata={"help": MAX_DROP_HELP})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, chosen with the training seed."}
    )
    save_traces: str | None = field(
        default=None,
        metadata={
            "help": "Folder: save the trace of every split (logits and scores of every exit) for ExitTrace.load."
        },
    )

    def __post_init__(self) -> None:
        self.max_drop = Fraction(self.max_drop)  # "2%" in a file of settings
        if self.validation_fraction is not None:
            self.validation_fraction = Fraction(self.validation_fraction)
        if self.method_config is None or isinstance(self.method_config, str):  # how the parser passes a dict
            try:
                self.method_config = json.loads(self.method_config or "{}")
            except json.JSONDecodeError as error:
                raise ValueError(f"method_config: got {self.method_config!r}, which is not JSON ({error})") from None
        if self.recipe is None:
            self.recipe = "recommended" if self.method is None else "paper"
        if self.recipe not in ("recommended", "paper"):
            raise ValueError(f"recipe: got {self.recipe!r}; choose one of 'recommended', 'paper'")
        if self.recipe == "paper" and self.method is None:
            raise ValueError(f"method: missing; --recipe paper needs one of {', '.join(METHODS)}, or plain")
        if self.recipe == "recommended" and self.method == "plain":
            raise ValueError(
                "recipe: got 'recommended' with --method plain, which has no exits; leave out one of them"
            )


def follow_recipe(arguments: Arguments, training: EarlyExitTrainingArguments, labels: Labels) -> None:
    """Add the settings of the recommended recipe, if it is chosen, to those that were passed, which have priority.

    They are printed to stderr.
    """
    if arguments.recipe == "recommended":
        pairs = len(arguments.columns()) == 2
        recipe = recommended_recipe(labels.num_labels, pairs, arguments.method)
        arguments.method = recipe.method
        arguments.method_config = recipe.config | cast(dict[str, Any], arguments.method_config)
        for name, value in recipe.training.items():
            if getattr(training, name) is None:
                setattr(training, name, value)
        if training.should_log:
            settings = ", ".join(f"{name}={value!r}" for name, value in cast(Any, arguments.method_config).items())
            rates = ", ".join(f"{name}={getattr(training, name)}" for name in recipe.training)
            print(f"adaexit train: recommended recipe, {arguments.method} with {settings}; {rates}", file=sys.stderr)


def build_model(arguments: Arguments, labels: Labels) -> Any:
    """The model to train, of the chosen method or without exits.

    Raises:
        ValueError: The method is unknown, or its settings cannot be compared at full depth.
    """
    options: dict[str, Any] = {"num_labels": labels.num_labels}
    if arguments.method != "plain":
        options["pairs"] = len(arguments.columns()) == 2
    # Said in every case: `plain` would take over that of a fine-tuned classifier.
    if labels.multi_label:
        options["problem_type"] = "multi_label_classification"
    else:
        options["problem_type"] = "regression" if labels.names is None else "single_label_classification"
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
            "method_config: fine_tuning='limit' does not train the last layers, so there is no full-depth score to "
            f"compare with; pass --method plain --method_config '{layers}', which is the same model (limit-K in "
            "compare_methods.py)"
        )
    method = cast(str, arguments.method)  # `follow_recipe` has set it
    if method not in METHODS:
        raise ValueError(
            f"method: got '{method}'; choose one of {', '.join(METHODS)}, plain{did_you_mean(method, METHODS)}"
        )
    return METHODS[method].from_encoder_pretrained(arguments.model_name_or_path, **options, **settings)


def check_flags(arguments: Arguments, model: Any) -> None:
    """Reject flags that do not apply to the model, before training starts.

    Raises:
        ValueError: A flag does not apply, or one that the model needs is missing.
    """
    if arguments.calibrate and (arguments.method == "plain" or model.config.num_labels == 1):
        raise ValueError(
            f"calibrate: got --method {arguments.method} with {model.config.num_labels} labels, but temperatures need "
            "exits that predict classes; leave --calibrate out"
        )
    if arguments.layer_drop and arguments.method != "plain":
        raise ValueError(
            f"layer_drop: got {arguments.layer_drop} with --method {arguments.method}; pass --method plain"
        )
    needs_depths = getattr(model.config, "depth_source", None) == "reconstruction"
    if needs_depths and not arguments.token_depths_model:
        raise ValueError(
            "token_depths_model: missing; with depth_source='reconstruction' pass the folder of the masked language "
            "model that benchmarks/depths_by_reconstruction.py trained"
        )
    if arguments.token_depths_model and not needs_depths:
        raise ValueError(
            f"token_depths_model: got '{arguments.token_depths_model}' with --method {arguments.method}; pass "
            '--method depth-adaptive --method_config \'{"depth_source": "reconstruction"}\''
        )


def with_token_depths(
    arguments: Arguments, training: Any, model: Any, tokenizer: Any, datasets_by_split: dict[str, datasets.Dataset]
) -> dict[str, datasets.Dataset]:
    """Add the column `token_depths` to every split; the losses it is computed from are saved in the output folder.

    Raises:
        ValueError: The masked language model has another number of layers or another vocabulary than the encoder.
    """
    masked_lm = AutoModelForMaskedLM.from_pretrained(arguments.token_depths_model).to(training.device)
    lm_config, encoder = masked_lm.config, model.config.encoder_config
    if (lm_config.num_hidden_layers, lm_config.vocab_size) != (encoder.num_hidden_layers, encoder.vocab_size):
        raise ValueError(
            f"token_depths_model: '{arguments.token_depths_model}' has {lm_config.num_hidden_layers} layers and "
            f"{lm_config.vocab_size} tokens in its vocabulary, but the encoder has {encoder.num_hidden_layers} and "
            f"{encoder.vocab_size}; train the masked language model from the same encoder"
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
        for name, rows in datasets_by_split.items()
    }


def trace_of(model: Any, rows: datasets.Dataset, tokenizer: Any, batch_size: int, every_depth: bool) -> ExitTrace:
    """The trace of a model with or without exits.

    A classifier without exits counts as one exit at the last layer or, with `every_depth`, as one exit for each number
    of evenly spaced layers that are kept.
    """
    if hasattr(model, "stages"):
        return collect_trace(model, rows, batch_size=batch_size)
    depth = model.config.num_hidden_layers
    depths = range(1, depth + 1) if every_depth else [depth]
    logits = []
    for layers in depths:
        with only_layers(model, evenly_spaced(depth, layers)) if every_depth else nullcontext():
            logits.append(logits_of(model, rows, tokenizer, batch_size))
    scores = torch.tensor(depths).float().repeat(len(rows), 1)  # (samples, depths)
    several = model.config.problem_type == "multi_label_classification"
    labels = torch.tensor(rows["labels"][:])
    return ExitTrace(torch.stack(logits, dim=1), scores, labels, tuple(depths), "ge", multi_label=several)


@torch.inference_mode()
def logits_of(model: Any, rows: datasets.Dataset, tokenizer: Any, batch_size: int) -> torch.Tensor:
    """Logits of a classifier without exits, (samples, labels)."""
    model.eval()
    batches = DataLoader(rows, batch_size, collate_fn=DataCollatorWithPadding(tokenizer))
    return torch.cat([model(**batch.to(model.device)).logits.float().cpu() for batch in batches])


def parse(argv: Sequence[str], prog: str | None = None) -> tuple[Arguments, EarlyExitTrainingArguments]:
    """Parse flags, or the one JSON or YAML file that contains them."""
    parser = CommandParser((Arguments, EarlyExitTrainingArguments), prog=prog, description=__doc__)
    parser.add_argument("--help_all", action="help", help="Also show the flags of Transformers' Trainer, over 100.")
    own = {field.name for kind in (Arguments, EarlyExitTrainingArguments) for field in fields(kind)} - {
        field.name for field in fields(TrainingArguments)
    }
    of_trainer = set() if "--help_all" in argv else {field.name for field in fields(TrainingArguments)} - own
    parser.show_first(MAIN_FLAGS, hide=sorted(of_trainer - set(MAIN_FLAGS)))
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
        read = parser.parse_json_file if argv[0].endswith(".json") else parser.parse_yaml_file
        return read(argv[0])
    arguments, training, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    if unknown:
        parser.refuse(unknown)
    return arguments, training


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train a model, choose its exit threshold, print the results and save everything.

    Args:
        argv: Flags. Default: those of the process.
        prog: Name of the program in help texts. Default: that of the process.
    """
    arguments, training = parse(sys.argv[1:] if argv is None else argv, prog)
    check_max_drop(arguments.max_drop)
    if training.should_save:
        check_writable("output_dir", training.output_dir)
        if arguments.save_traces:
            check_writable("save_traces", arguments.save_traces)
    resume: Any = training.resume_from_checkpoint
    if not resume and Path(training.output_dir, CONFIG_NAME).exists():
        raise ValueError(
            f"output_dir: '{training.output_dir}' already contains a model; pass another folder, or "
            "--resume_from_checkpoint True or auto to continue that run"
        )
    set_seed(training.seed)
    if training.hub_strategy == HubStrategy.EVERY_SAVE:  # models pushed during training have no threshold yet
        training.hub_strategy = HubStrategy.END

    splits = load_splits(arguments, training=True)
    text_columns, column = arguments.columns(), arguments.label()
    has_minus_one = "train" in splits and column in splits["train"].column_names and -1 in splits["train"][column]
    evaluation = evaluation_splits(arguments, splits, ("train",), has_minus_one)
    for name in ("train", *evaluation):
        check_columns(splits[name], text_columns, column, name)
    labels = labels_of(splits["train"], column)
    for name in ("train", *evaluation):
        check_labels(splits[name], column, labels, name)
    metrics = arguments.metric_names(labels)

    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    follow_recipe(arguments, training, labels)
    model = build_model(arguments, labels)
    check_flags(arguments, model)
    dropping = layer_drop(model, arguments.layer_drop) if arguments.layer_drop else None
    encoder_config = None if arguments.method == "plain" else model.config.encoder_config
    limit_length(tokenizer, encoder_config, arguments.max_seq_length, default=128)

    def encode(rows: datasets.Dataset) -> datasets.Dataset:
        return tokenize(rows, tokenizer, text_columns, column, labels)

    with training.main_process_first(desc="tokenizing"):
        datasets_by_split = {"train": encode(first_rows(splits["train"], arguments.max_train_samples, training.seed))}
        datasets_by_split |= {
            name: encode(first_rows(splits[name], arguments.max_eval_samples)) for name in evaluation
        }
        if arguments.token_depths_model:
            datasets_by_split = with_token_depths(arguments, training, model, tokenizer, datasets_by_split)
        train_set = datasets_by_split.pop("train")

    def compute_metrics(result: Any) -> dict[str, float]:
        references = torch.as_tensor(result.label_ids)
        predicted = scored_predictions(torch.as_tensor(result.predictions), references)
        return {name: compute_score(name, predictions=predicted, references=references) for name in metrics}

    trainer = (Trainer if arguments.method == "plain" else EarlyExitTrainer)(
        model,
        training,
        train_dataset=train_set,
        eval_dataset=datasets_by_split[evaluation[0]],
        data_collator=DataCollatorWithTokenDepths(tokenizer) if arguments.token_depths_model else None,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    if resume == "auto" and arguments.method == "plain":  # which Transformers' own Trainer does not know
        resume = get_last_checkpoint(training.output_dir)
    options: dict[str, Any] = {"stage": arguments.stage} if arguments.stage else {}
    with redirect_stdout(sys.stderr):  # for what Transformers logs
        start = time.monotonic()
        trained = trainer.train(resume_from_checkpoint=True if resume in ("True", "true") else resume, **options)
        cost = {"seconds": round(time.monotonic() - start, 1), "optimizer_steps": trained.global_step}

    if dropping:
        dropping.remove()
    if trainer.is_world_process_zero():
        batch_size = training.per_device_eval_batch_size
        if arguments.calibrate:
            half = datasets_by_split[evaluation[0]].train_test_split(test_size=0.5, seed=0)[
                "test"
            ]  # the same for all seeds
            trainer.model.calibrate_temperatures(half, batch_size=batch_size)
        traces = {
            name: trace_of(trainer.model, rows, tokenizer, batch_size, dropping is not None)
            for name, rows in datasets_by_split.items()
        }
        if arguments.save_traces:
            for name, trace in traces.items():
                trace.save(Path(arguments.save_traces, f"{name}.safetensors"))
        validation = traces[evaluation[0]]
        also = []
        if arguments.method != "plain" and isinstance(trainer.model.config.exit_threshold, float):
            also = [trainer.model.config.exit_threshold]  # the method's default, e.g. 0 of DACT-BERT
        curve = tradeoff_curve(validation, metrics[0], [*spread_thresholds(validation), *also])
        chosen = choose_threshold(curve, arguments.max_drop).threshold
        if arguments.method != "plain":
            trainer.model.config.exit_threshold = chosen
        dataset = arguments.for_card()
        several = len(validation.exit_layers) > 1
        honest = honest_scores("train", validation, metrics, arguments.max_drop, also) if several else None
        results = {
            name: results_at_threshold(
                trace,
                metrics,
                chosen,
                {"name": dataset.name, "split": name},
                honest if name == evaluation[0] else None,
            )
            for name, trace in traces.items()
        }
        tell_of_choice("train", validation, chosen)
        print_curve(curve, f"{evaluation[0]} {metrics[0]}", chosen)
        print_results(results, metrics[0])
        summary = {"settings": arguments.published(), "seed": training.seed, "dataset": dataset._asdict()}
        summary |= {"training": cost, "results": results}
        write_results(Path(training.output_dir), summary, curve)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(_internal_call=True)  # a public call would push the model before its card is written
    if trainer.is_world_process_zero() and arguments.method != "plain":
        trainer.create_model_card(curve=curve, metrics=results, dataset=dataset)
    if trainer.is_world_process_zero():
        print(f"\nsaved in {training.output_dir}")
    if training.push_to_hub:
        trainer.push_to_hub()
