"""Fine-tune an early-exit model on GLUE, SICK, or your own labelled texts, and choose its exit threshold.

    adaexit train --model_name_or_path microsoft/mpnet-base --task_name sst2 --output_dir out
    adaexit train --model_name_or_path ENCODER --train_file train.csv --output_dir out
    adaexit train --add_exits CLASSIFIER --train_file train.csv --validation_file dev.csv
    adaexit train settings.yaml

`examples/run_glue_exit.py` takes the same flags, also under `accelerate launch`. All flags can also be given in one
JSON or YAML file.

`--add_exits FOLDER_OR_HUB_NAME`, in place of `--model_name_or_path`, adds exits to a fine-tuned classifier that stays
as it is: encoder and head are frozen, the head is the last exit, and the exits before it are trained. At the end the
logits at full depth are compared with the classifier's.

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
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, cast

import datasets
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    Trainer,
    set_seed,
)
from transformers.trainer_utils import HubStrategy, get_last_checkpoint

from ..data.collators import DataCollatorWithTokenDepths
from ..data.reconstruction import estimate_depths_by_reconstruction
from ..data.tasks import Labels, check_columns, check_labels, class_names, labels_of, tokenize
from ..evaluation.collect import collect_trace
from ..evaluation.fingerprints import UNKNOWN, hashes_of, read_seen_rows, save_seen_rows, union
from ..evaluation.metrics import compute_score
from ..evaluation.summary import exit_settings, results_at_threshold, write_results
from ..evaluation.thresholds import best_point, check_max_drop, spread_thresholds
from ..evaluation.trace import ExitTrace, made_up, rule_in_words, scored_predictions
from ..evaluation.tradeoff import tradeoff_curve
from ..hub.card_facts import training_facts
from ..models import METHODS
from ..pruning.layerdrop import evenly_spaced, layer_drop, only_layers
from ..trainer.model_card_mixin import hub_name
from ..trainer.recipe import recommended_recipe, sentence_pooling, settings_that_keep_a_classifier
from ..trainer.trainer import EarlyExitTrainer
from ..trainer.training_args import EarlyExitTrainingArguments
from ..utils.files import check_writable
from ..utils.processor import bf16_is_slow
from ..utils.spelling import did_you_mean
from .classifier import KeptClassifier, classifier_config, logits_of, match_labels, stage_before
from .data_arguments import DataArguments, evaluation_splits, first_rows, load_splits
from .errors import wrong_usage
from .evaluate import honest_scores, tell_of_choice
from .options import MAX_DROP_HELP, Fraction, check_folder, is_classifier, limit_length
from .output_folder import check_output_dir, how_to_continue, no_empty_folder, remove_model
from .parser import CommandParser, HelpAll
from .printing import print_curve, print_results

# What flags of Transformers do here, where that is more or less than Transformers says.
TRANSFORMERS_FLAGS = {
    "output_dir": "Folder for the model, metrics.json, curve.json and the model card. Default: trainer_output.",
    "num_train_epochs": "Epochs of each stage.",
    "learning_rate": "Learning rate of the encoder.",
    "per_device_train_batch_size": "Texts per training step and device.",
    "bf16": "Train in bfloat16, if the machine has units for it.",
    "use_cpu": "Do not use a GPU.",
    "seed": "Seed of the training.",
    "resume_from_checkpoint": "True or auto: continue the run in output_dir where it was stopped; auto starts one if "
    "there is none.",
    "push_to_hub": "Push the model to the Hub when it is finished.",
}

# A threshold that may lose fewer texts of the validation split than this is chosen by chance.
FEWEST_TEXTS = 3
# Whole numbers as labels of a regression are probably classes if there are no more of them than this.
MOST_CLASSES = 10


@dataclass(kw_only=True)
class Arguments(DataArguments):
    """Flags of `adaexit train`, besides those of `EarlyExitTrainingArguments`."""

    model_name_or_path: str = field(
        default="", metadata={"help": "Hub name or folder of a supported encoder or of a fine-tuned classifier."}
    )
    add_exits: str | None = field(
        default=None,
        metadata={
            "metavar": "PATH",
            "help": "In place of --model_name_or_path: Hub name or folder of a fine-tuned classifier that stays as it "
            "is; only exits before it are trained.",
        },
    )
    method: str | None = field(
        default=None,
        metadata={
            "help": "deebert, berxit, dact-bert, pabee, fastbert, right-tool or depth-adaptive, as in its paper; or "
            "plain, without exits. Default: the recommended recipe."
        },
    )
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "'recommended': our heads, rates and, for numbers, exits; 'paper': those of the paper. Default: "
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
        metadata={"help": "Train only this stage. To add exits to a fine-tuned classifier, pass --add_exits."},
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
            "if the encoder's tokenizer truncates earlier; with --add_exits the classifier's own limit."
        },
    )
    max_drop: Fraction = field(default=Fraction(0.01), metadata={"help": MAX_DROP_HELP})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, chosen with the training seed."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Remove the model that output_dir contains, and all files of its run, before training."},
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
        if bool(self.add_exits) == bool(self.model_name_or_path):
            raise ValueError(
                f"model_name_or_path, add_exits: got '{self.model_name_or_path}' and {self.add_exits!r}; pass one of "
                "them: --model_name_or_path ENCODER to train an encoder with exits, or --add_exits CLASSIFIER to add "
                "exits to a fine-tuned classifier that stays as it is"
            )
        if self.add_exits and self.method == "plain":
            raise ValueError("add_exits: got it with --method plain, which has no exits; leave out one of them")
        self.model_name_or_path = self.add_exits or self.model_name_or_path
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


def follow_recipe(
    arguments: Arguments, training: EarlyExitTrainingArguments, labels: Labels, encoder: PreTrainedConfig
) -> None:
    """Add the settings of the recommended recipe, if it is chosen, to those that were passed, which have priority.

    They are printed to stderr.
    """
    if arguments.recipe == "recommended":
        pairs = len(arguments.columns()) == 2
        pooling = sentence_pooling(arguments.model_name_or_path)
        keeps = arguments.add_exits is not None
        passed = cast(dict[str, Any], arguments.method_config)
        depth = None
        if labels.num_labels == 1 and arguments.method is None and not keeps:
            # A wrong number, or an encoder without one, is refused when the model is built.
            depth = passed.get("num_hidden_layers") or getattr(encoder, "num_hidden_layers", 1)
            depth = depth if type(depth) is int and depth > 0 else 1
        recipe = recommended_recipe(labels.num_labels, pairs, arguments.method, pooling, keeps, depth)
        arguments.method = recipe.method
        arguments.method_config = recipe.config | passed
        for name, value in recipe.training.items():
            if getattr(training, name) is None:
                setattr(training, name, value)
        if training.should_log:
            settings = ", ".join(f"{name}={value!r}" for name, value in cast(Any, arguments.method_config).items())
            rates = ", ".join(f"{name}={getattr(training, name)}" for name in recipe.training)
            joint = arguments.method == "berxit" and cast(Any, arguments.method_config).get("fine_tuning") == "joint"
            loss = "; train_loss is the sum of the losses of all exits" if joint else ""
            kind = "a regression" if labels.num_labels == 1 else "classes"
            print(
                f"adaexit train: recommended recipe for {kind}, {arguments.method} with {settings}; {rates}{loss}",
                file=sys.stderr,
            )
    elif arguments.add_exits:
        kept = settings_that_keep_a_classifier(cast(str, arguments.method))
        arguments.method_config = kept | cast(dict[str, Any], arguments.method_config)


def build_model(arguments: Arguments, labels: Labels) -> Any:
    """The model to train, of the chosen method or without exits.

    Raises:
        ValueError: The method is unknown, or its settings cannot be compared at full depth.
    """
    if arguments.add_exits:  # its labels and its kind of task are kept
        return _with_exits(arguments, {})
    options: dict[str, Any] = {"num_labels": labels.num_labels}
    # Said in every case: `plain` would take over that of a fine-tuned classifier.
    if labels.multi_label:
        options["problem_type"] = "multi_label_classification"
    else:
        options["problem_type"] = "regression" if labels.names is None else "single_label_classification"
    if labels.names is not None:
        options["id2label"] = dict(enumerate(labels.names))
        options["label2id"] = {name: index for index, name in enumerate(labels.names)}
    if arguments.method == "plain":
        options |= cast(dict[str, Any], arguments.method_config)
        return AutoModelForSequenceClassification.from_pretrained(arguments.model_name_or_path, **options)
    return _with_exits(arguments, options)


def _with_exits(arguments: Arguments, options: dict[str, Any]) -> Any:
    settings = cast(dict[str, Any], arguments.method_config)
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
    options["pairs"] = len(arguments.columns()) == 2
    return METHODS[method].from_encoder_pretrained(arguments.model_name_or_path, **options, **settings)


def tell_of_pooling(arguments: Arguments, model: Any) -> None:
    """Say on stderr if exits read the first token, but the encoder was trained to make the mean over the tokens."""
    reads = getattr(model.config, "pooling", None)  # not defined without exits
    if reads == "first" and sentence_pooling(arguments.model_name_or_path) == "mean":
        print(
            f"adaexit train: the exits read the first token, but {arguments.model_name_or_path} was trained to make "
            'the mean over the tokens; --method_config \'{"exit_pooling": "mean"}\' or --recipe recommended may '
            "save many more layers",
            file=sys.stderr,
        )


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
    stages = () if arguments.method == "plain" else model.stages
    chosen = next((stage for stage in stages if stage.name == arguments.stage), None)
    if arguments.stage and chosen is None:
        raise ValueError(
            f"stage: got '{arguments.stage}'; --method {arguments.method} has "
            f"{', '.join(stage.name for stage in stages) or 'no stages, leave it out'}"
        )
    if chosen is not None and "encoder" in chosen.frozen and not model.took_over_classifier:
        raise ValueError(
            f"stage: got '{arguments.stage}', which freezes the last exit, but its weights are random: the head of "
            f"'{arguments.model_name_or_path}' was not taken over. If that is a fine-tuned classifier, pass "
            f"--add_exits {arguments.model_name_or_path} in place of --model_name_or_path and --stage; if not, leave "
            "out --stage"
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


def check_several_classes(rows: datasets.Dataset, column: str, labels: Labels) -> None:
    """Check that there is something to tell apart.

    Raises:
        ValueError: All rows have the same class.
    """
    if labels.names is None or labels.multi_label:
        return
    found = class_names(rows, column)
    if len(found) == 1:
        raise ValueError(
            f"label_column: all rows of train have the label {found[0]!r} in column '{column}'; pass rows of "
            "two classes or more, or another column as --label_column"
        )


def tell_of_whole_numbers(values: Sequence[float], column: str) -> None:
    """Say on stderr if the labels of a regression may be classes, which become floats where a file has gaps."""
    found = sorted(set(values))
    if len(found) <= MOST_CLASSES and all(float(value).is_integer() for value in found):
        print(
            f"adaexit train: column '{column}' has floating-point numbers, {', '.join(map(str, found))}, so that a "
            "regression is trained; if they are classes, write them as integers or as names",
            file=sys.stderr,
        )


def tell_of_rows(
    train_set: datasets.Dataset,
    evaluated: Mapping[str, datasets.Dataset],
    splits: Mapping[str, datasets.Dataset],
    arguments: Arguments,
    chooses: bool,
) -> None:
    """Say on stderr how many rows there are, and if too few of them choose the threshold.

    Args:
        train_set: The rows to train on.
        evaluated: The rows to evaluate on, by split; the threshold is chosen on the first.
        splits: All rows that were loaded, by split.
        arguments: The flags.
        chooses: Whether a threshold is chosen by answers that are right or wrong.
    """

    def counted(name: str, rows: datasets.Dataset) -> str:
        return f"{len(rows)} rows" if len(rows) == len(splits[name]) else f"{len(rows)} of {len(splits[name])} rows"

    others = ", ".join(f"{name}: {counted(name, rows)}" for name, rows in evaluated.items())
    print(f"adaexit train: train: {counted('train', train_set)}, {others}", file=sys.stderr)
    name, rows = next(iter(evaluated.items()))
    if chooses and arguments.max_drop and len(rows) * arguments.max_drop < FEWEST_TEXTS:
        print(
            f"adaexit train: a loss of {arguments.max_drop:.2%} is {len(rows) * arguments.max_drop:.1f} of the "
            f"{len(rows)} texts in {name}, on which the threshold is chosen: less than chance changes. Hold out more "
            f"rows (--validation_fraction, --validation_file), or allow more loss (--max_drop)",
            file=sys.stderr,
        )


def tell_of_saved_threshold(folder: Path, new: Mapping[str, Any]) -> None:
    """Say on stderr if a finished model's exit settings, which `adaexit calibrate` may have chosen, are replaced."""
    config = folder / "config.json"
    saved = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    for name, value in new.items():
        if name in saved and saved[name] != value:
            print(
                f"adaexit train: the run in {folder} was finished; its {name} {saved[name]} is replaced by {value}: "
                "run adaexit calibrate again if that was not meant",
                file=sys.stderr,
            )


def tell_of_checkpoints(folder: Path) -> None:
    """Say how much room the checkpoints of a finished run take, if there are any."""
    files = [file for path in folder.glob("stage-*") for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if size > 10**8:
        print(
            f"the checkpoints in {folder}/stage-*, {size / 1e9:.1f} GB, are needed no more; --save_total_limit 1 "
            "keeps fewer, --save_strategy no none"
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


def command_parser(prog: str | None = None, everything: bool = False) -> CommandParser:
    """The parser of the flags; `everything` describes them at full length."""
    paragraphs = (__doc__ or "").split("\n\n")
    description = "\n\n".join(paragraphs if everything else paragraphs[:2])
    parser = CommandParser((Arguments, EarlyExitTrainingArguments), prog=prog, description=description)
    parser.describe(TRANSFORMERS_FLAGS)
    parser.add_argument(
        "--help_all", action=HelpAll, help="Show all flags, those of Transformers' Trainer too, over 100."
    )
    return parser


def parse(argv: Sequence[str], prog: str | None = None) -> tuple[Arguments, EarlyExitTrainingArguments]:
    """Parse flags, or the one JSON or YAML file that contains them."""
    parser = command_parser(prog, everything="--help_all" in argv)
    if len(argv) == 1 and argv[0].endswith((".json", ".yaml", ".yml")):
        read = parser.parse_json_file if argv[0].endswith(".json") else parser.parse_yaml_file
        return read(argv[0])
    arguments, training, unknown = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    if unknown:
        settings = {name for model in METHODS.values() for name in model.config_class.own_arguments()}
        parser.refuse(unknown, settings - {"encoder_config", "pairs"} | {"num_hidden_layers"})
    return arguments, training


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Train a model, choose its exit threshold, print the results and save everything.

    Args:
        argv: Flags. Default: those of the process.
        prog: Name of the program in help texts. Default: that of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    with wrong_usage():
        arguments, training = parse(argv, prog)
    folder = Path(training.output_dir)
    begun = Event()
    try:
        with no_empty_folder(folder):
            train(arguments, training, begun)
    except KeyboardInterrupt:
        if training.should_log:
            program = prog or f"python {sys.argv[0]}"
            advice = how_to_continue(folder, program, argv, arguments.overwrite_output_dir, begun.is_set())
            print(f"\nadaexit train: {advice}", file=sys.stderr)
        raise


def train(arguments: Arguments, training: EarlyExitTrainingArguments, begun: Event) -> None:
    """Do what `main` does, with flags that were parsed; `begun` is set before the output folder is changed."""
    resume: Any = training.resume_from_checkpoint
    with wrong_usage():
        check_max_drop(arguments.max_drop)
        check_folder("add_exits" if arguments.add_exits else "model_name_or_path", arguments.model_name_or_path)
        check_output_dir(
            Path(training.output_dir),
            resume=bool(resume),
            overwrite=arguments.overwrite_output_dir,
            plain=arguments.method == "plain",
            source=arguments.model_name_or_path,
        )
        if arguments.save_traces:
            check_writable("save_traces", arguments.save_traces)
    set_seed(training.seed)
    if training.hub_strategy == HubStrategy.EVERY_SAVE:  # models pushed during training have no threshold yet
        training.hub_strategy = HubStrategy.END

    with wrong_usage():
        classifier = classifier_config(arguments.add_exits) if arguments.add_exits else None
    splits = load_splits(arguments, training=True)
    text_columns, column = arguments.columns(), arguments.label()
    has_minus_one = "train" in splits and column in splits["train"].column_names and -1 in splits["train"][column]
    evaluation = evaluation_splits(arguments, splits, ("train",), has_minus_one)
    for name in ("train", *evaluation):
        check_columns(splits[name], text_columns, column, name)
    if classifier is None:
        labels = labels_of(splits["train"], column)
        check_several_classes(splits["train"], column, labels)
    else:
        labels, by_name = match_labels(arguments.model_name_or_path, classifier, splits["train"], column)
    for name in ("train", *evaluation):
        check_labels(splits[name], column, labels, name)
    with wrong_usage():
        metrics = arguments.metric_names(labels)
    if training.should_log and labels.names is None:
        tell_of_whole_numbers(splits["train"][column], column)

    seen_before = read_seen_rows(arguments.model_name_or_path) or {}
    source = AutoConfig.from_pretrained(arguments.model_name_or_path)
    if not seen_before and is_classifier(source):
        seen_before = {UNKNOWN: torch.empty(0, dtype=torch.int64)}
    tokenizer = AutoTokenizer.from_pretrained(arguments.model_name_or_path)
    with wrong_usage():
        follow_recipe(arguments, training, labels, source)
        model = build_model(arguments, labels)
        check_flags(arguments, model)
        if arguments.add_exits:
            arguments.stage = stage_before(arguments.stage, model)
    if arguments.add_exits and labels.names is not None and made_up(list(model.config.id2label.values())):
        model.config.id2label = dict(enumerate(labels.names))
        model.config.label2id = {name: index for index, name in enumerate(labels.names)}
    if training.should_log:
        tell_of_pooling(arguments, model)
    dropping = layer_drop(model, arguments.layer_drop) if arguments.layer_drop else None
    encoder_config = None if arguments.method == "plain" else model.config.encoder_config
    # A classifier that stays as it is reads texts of the length it was made for.
    limit_length(tokenizer, encoder_config, arguments.max_seq_length, default=None if arguments.add_exits else 128)

    def encode(rows: datasets.Dataset) -> datasets.Dataset:
        return tokenize(rows, tokenizer, text_columns, column, labels)

    with training.main_process_first(desc="tokenizing"):
        datasets_by_split = {"train": encode(first_rows(splits["train"], arguments.max_train_samples, training.seed))}
        datasets_by_split |= {
            name: encode(first_rows(splits[name], arguments.max_eval_samples)) for name in evaluation
        }

    kept = None
    if arguments.add_exits and training.should_save:
        held_out = datasets_by_split[evaluation[0]]
        batch_size = training.per_device_eval_batch_size
        kept = KeptClassifier(arguments.add_exits, held_out, evaluation[0], tokenizer, batch_size, training.device)
        kept.tell_score(metrics[0], by_name)
        kept.check(model.to(training.device))

    begun.set()
    with training.main_process_first(desc="preparing the output folder"):
        if arguments.overwrite_output_dir and training.should_save:  # all was checked that could refuse the run
            removed = remove_model(Path(training.output_dir))
            if removed:
                print(f"adaexit train: removed from {training.output_dir}: {', '.join(removed)}", file=sys.stderr)
        if arguments.token_depths_model:
            datasets_by_split = with_token_depths(arguments, training, model, tokenizer, datasets_by_split)
    train_set = datasets_by_split.pop("train")
    if training.should_log:
        several = arguments.method != "plain" and len(model.config.exit_layers) > 1
        tell_of_rows(train_set, datasets_by_split, splits, arguments, several and labels.names is not None)
    if training.device.type == "cpu":
        training.dataloader_pin_memory = False  # PyTorch warns of it where there is no GPU
        if training.should_log and training.bf16 and bf16_is_slow(training.device):
            print(
                "adaexit train: bf16: this CPU has no units for bfloat16, so that training takes several times as "
                "long; leave --bf16 out",
                file=sys.stderr,
            )

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
        if kept is not None:
            # Without the autocast of the training.
            kept.check(trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))
            same = "are equal bit for bit" if labels.names is not None else "are equal up to rounding"
            print(
                f"adaexit train: full depth is '{kept.name}': its logits on the {len(kept.rows)} rows of "
                f"{kept.split} {same}",
                file=sys.stderr,
            )
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
        chosen = best_point(curve, arguments.max_drop).threshold
        if arguments.method != "plain":
            trainer.model.config.exit_threshold = chosen
            if resume:
                tell_of_saved_threshold(Path(training.output_dir), exit_settings(trainer.model.config))
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
        tell_of_choice("train", validation, chosen, metrics[0], training.exits_learning_rate)
        if several:
            with_exits = arguments.method != "plain"
            rule = rule_in_words(validation) if with_exits else "The threshold is the number of layers that are kept."
            print_curve(curve, f"{evaluation[0]} {metrics[0]}", chosen, rule)
        print_results(results, metrics[0])
        seen = {"training": hashes_of(train_set), "threshold": hashes_of(datasets_by_split[evaluation[0]])}
        if arguments.calibrate:
            seen["temperatures"] = hashes_of(half)
        save_seen_rows(training.output_dir, union(seen_before, seen))
        facts = {"recipe": arguments.recipe, **training_facts(training, len(train_set))}
        if arguments.add_exits:
            classifier_name = hub_name(arguments.add_exits) or Path(arguments.add_exits).name
            facts |= {"stage": arguments.stage, "kept_classifier": classifier_name}
        run = {"settings": arguments.published(), "seed": training.seed, "dataset": dataset._asdict()}
        run |= {"base_model": hub_name(arguments.model_name_or_path), "arguments": facts, **cost}
        summary = {"training": run, "dataset": dataset._asdict(), "results": results}
        write_results(Path(training.output_dir), summary, curve)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(_internal_call=True)  # a public call would push the model before its card is written
    if trainer.is_world_process_zero() and arguments.method != "plain":
        trainer.create_model_card(curve=curve, metrics=results, dataset=dataset, training=facts)
    if trainer.is_world_process_zero():
        print(f"\nsaved in {training.output_dir}")
        if arguments.method != "plain":
            texts = "'One text.' 'Another text.'" if len(text_columns) == 2 else "'A text.'"
            tell_of_checkpoints(Path(training.output_dir))
            print(f"next: adaexit predict {shlex.quote(training.output_dir)} {texts}")
    if training.push_to_hub:
        trainer.push_to_hub()
