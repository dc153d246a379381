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
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import datasets
import torch
from transformers import AutoConfig, Trainer, set_seed
from transformers.trainer_utils import HubStrategy, get_last_checkpoint

from ..data.collators import DataCollatorWithTokenDepths
from ..evaluation.collect import collect_trace
from ..evaluation.curves import CurvePoint
from ..evaluation.fingerprints import hashes_of, save_seen_rows, union
from ..evaluation.metrics import compute_score
from ..evaluation.summary import exit_settings, results_at_threshold, write_results
from ..evaluation.thresholds import best_point, check_max_drop, spread_thresholds
from ..evaluation.trace import ExitTrace, rule_in_words, scored_predictions
from ..evaluation.tradeoff import tradeoff_curve
from ..hub.card_facts import training_facts
from ..models import METHODS
from ..pruning.layerdrop import evenly_spaced, layer_drop, only_layers
from ..trainer.model_card_mixin import hub_name
from ..trainer.trainer import EarlyExitTrainer
from ..trainer.training_args import EarlyExitTrainingArguments
from ..utils.files import check_writable
from ..utils.processor import bf16_is_slow
from .classifier import KeptClassifier, logits_of
from .errors import wrong_usage
from .evaluate import honest_scores, tell_of_choice
from .options import check_folder
from .output_folder import check_output_dir, how_to_continue, no_empty_folder, remove_model
from .parser import CommandParser, HelpAll
from .printing import print_curve, print_results
from .train_model import make_model
from .train_options import TRANSFORMERS_FLAGS, Arguments
from .train_rows import TokenizedRows, read_data, rows_seen_by, tell_of_rows, tokenized, with_token_depths


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
    check_before_loading(arguments, training)
    set_seed(training.seed)
    if training.hub_strategy == HubStrategy.EVERY_SAVE:  # models pushed during training have no threshold yet
        training.hub_strategy = HubStrategy.END

    data = read_data(arguments, training)
    source = AutoConfig.from_pretrained(arguments.model_name_or_path)
    seen_before = rows_seen_by(arguments.model_name_or_path, source)
    model, tokenizer = make_model(arguments, training, data.labels, source)
    dropping = layer_drop(model, arguments.layer_drop) if arguments.layer_drop else None
    rows = tokenized(arguments, training, data, tokenizer)
    kept = None
    if arguments.add_exits and training.should_save:
        name, held_out = next(iter(rows.evaluated.items()))
        batch_size = training.per_device_eval_batch_size
        kept = KeptClassifier(arguments.add_exits, held_out, name, tokenizer, batch_size, training.device)
        kept.tell_score(data.metrics[0], data.by_name)
        kept.check(model.to(training.device))

    begun.set()
    with training.main_process_first(desc="preparing the output folder"):
        if arguments.overwrite_output_dir and training.should_save:  # all was checked that could refuse the run
            removed = remove_model(Path(training.output_dir))
            if removed:
                print(f"adaexit train: removed from {training.output_dir}: {', '.join(removed)}", file=sys.stderr)
        if arguments.token_depths_model:
            rows = with_token_depths(arguments, training, model, tokenizer, rows)
    if training.should_log:
        several = arguments.method != "plain" and len(model.config.exit_layers) > 1
        tell_of_rows(rows, data.splits, arguments, several and data.labels.names is not None)
    trainer = make_trainer(arguments, training, model, tokenizer, rows, data.metrics)
    cost = run(trainer, arguments, training)

    if dropping:
        dropping.remove()
    if trainer.is_world_process_zero():
        if kept is not None:
            # Without the autocast of the training.
            kept.check(trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False))
            same = "are equal bit for bit" if data.labels.names is not None else "are equal up to rounding"
            print(
                f"adaexit train: full depth is '{kept.name}': its logits on the {len(kept.rows)} rows of "
                f"{kept.split} {same}",
                file=sys.stderr,
            )
        measured = choose_and_measure(trainer, arguments, training, rows, data.metrics)
        seen = {"training": hashes_of(rows.train), "threshold": hashes_of(rows.held_out)}
        if arguments.calibrate:
            seen["temperatures"] = hashes_of(rows.half_for_temperatures)
        save_seen_rows(training.output_dir, union(seen_before, seen))
        facts = facts_of_run(arguments, training, rows)
        dataset = arguments.for_card()
        settings = {"settings": arguments.published(), "seed": training.seed, "dataset": dataset._asdict()}
        settings |= {"base_model": hub_name(arguments.model_name_or_path), "arguments": facts, **cost}
        summary = {"training": settings, "dataset": dataset._asdict(), "results": measured.results}
        write_results(Path(training.output_dir), summary, measured.curve)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(_internal_call=True)  # a public call would push the model before its card is written
    if trainer.is_world_process_zero():
        if arguments.method != "plain":
            trainer.create_model_card(curve=measured.curve, metrics=measured.results, dataset=dataset, training=facts)
        print(f"\nsaved in {training.output_dir}")
        if arguments.method != "plain":
            texts = "'One text.' 'Another text.'" if len(arguments.columns()) == 2 else "'A text.'"
            tell_of_checkpoints(Path(training.output_dir))
            print(f"next: adaexit predict {shlex.quote(training.output_dir)} {texts}")
    if training.push_to_hub:
        trainer.push_to_hub()


def check_before_loading(arguments: Arguments, training: EarlyExitTrainingArguments) -> None:
    """Check the allowed loss and the folders.

    Raises:
        UsageError: A folder does not exist, cannot be written, or has a model that would be lost; or the loss is not
            allowed.
    """
    with wrong_usage():
        check_max_drop(arguments.max_drop)
        check_folder("add_exits" if arguments.add_exits else "model_name_or_path", arguments.model_name_or_path)
        check_output_dir(
            Path(training.output_dir),
            resume=bool(training.resume_from_checkpoint),
            overwrite=arguments.overwrite_output_dir,
            plain=arguments.method == "plain",
            source=arguments.model_name_or_path,
        )
        if arguments.save_traces:
            check_writable("save_traces", arguments.save_traces)


def make_trainer(
    arguments: Arguments,
    training: EarlyExitTrainingArguments,
    model: Any,
    tokenizer: Any,
    rows: TokenizedRows,
    metrics: tuple[str, ...],
) -> Any:
    """The trainer: `EarlyExitTrainer`, or Transformers' own for a model without exits."""
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

    return (Trainer if arguments.method == "plain" else EarlyExitTrainer)(
        model,
        training,
        train_dataset=rows.train,
        eval_dataset=rows.held_out,
        data_collator=DataCollatorWithTokenDepths(tokenizer) if arguments.token_depths_model else None,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )


def run(trainer: Any, arguments: Arguments, training: EarlyExitTrainingArguments) -> dict[str, float]:
    """Train, or continue a run that was stopped.

    Returns:
        What it cost: seconds, and optimizer steps.
    """
    resume: Any = training.resume_from_checkpoint
    if resume == "auto" and arguments.method == "plain":  # which Transformers' own Trainer does not know
        resume = get_last_checkpoint(training.output_dir)
    options: dict[str, Any] = {"stage": arguments.stage} if arguments.stage else {}
    with redirect_stdout(sys.stderr):  # for what Transformers logs
        start = time.monotonic()
        trained = trainer.train(resume_from_checkpoint=True if resume in ("True", "true") else resume, **options)
        return {"seconds": round(time.monotonic() - start, 1), "optimizer_steps": trained.global_step}


class Measured(NamedTuple):
    """What a finished model was measured to be: its curve, and the results at the chosen threshold by split."""

    curve: list[CurvePoint]
    results: dict[str, Any]


def choose_and_measure(
    trainer: Any,
    arguments: Arguments,
    training: EarlyExitTrainingArguments,
    rows: TokenizedRows,
    metrics: tuple[str, ...],
) -> Measured:
    """Choose the threshold of a trained model, put it into the config, and print the results.

    With `--calibrate` temperatures are fitted first; with `--save_traces` the traces are saved.
    """
    model, with_exits = trainer.model, arguments.method != "plain"
    batch_size = training.per_device_eval_batch_size
    if arguments.calibrate:
        model.calibrate_temperatures(rows.half_for_temperatures, batch_size=batch_size)
    traces = {
        name: trace_of(model, each, trainer.processing_class, batch_size, every_depth=bool(arguments.layer_drop))
        for name, each in rows.evaluated.items()
    }
    if arguments.save_traces:
        for name, trace in traces.items():
            trace.save(Path(arguments.save_traces, f"{name}.safetensors"))
    split, validation = next(iter(traces.items()))
    also = []
    if with_exits and isinstance(model.config.exit_threshold, float):
        also = [model.config.exit_threshold]  # the method's default, e.g. 0 of DACT-BERT
    curve = tradeoff_curve(validation, metrics[0], [*spread_thresholds(validation), *also])
    chosen = best_point(curve, arguments.max_drop).threshold
    if with_exits:
        model.config.exit_threshold = chosen
        if training.resume_from_checkpoint:
            tell_of_saved_threshold(Path(training.output_dir), exit_settings(model.config))
    several = len(validation.exit_layers) > 1
    honest = honest_scores("train", validation, curve, metrics, arguments.max_drop, also) if several else None
    data_name = arguments.for_card().name
    results = {
        name: results_at_threshold(
            trace, metrics, chosen, {"name": data_name, "split": name}, honest if name == split else None
        )
        for name, trace in traces.items()
    }
    tell_of_choice("train", validation, chosen, metrics[0], training.exits_learning_rate)
    if several:
        rule = rule_in_words(validation) if with_exits else "The threshold is the number of layers that are kept."
        print_curve(curve, f"{split} {metrics[0]}", chosen, rule)
    print_results(results, metrics[0])
    return Measured(curve, results)


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


def facts_of_run(arguments: Arguments, training: EarlyExitTrainingArguments, rows: TokenizedRows) -> dict[str, Any]:
    """What metrics.json and the card say about how a model was trained."""
    facts = {"recipe": arguments.recipe, **training_facts(training, len(rows.train))}
    if arguments.add_exits:
        classifier = hub_name(arguments.add_exits) or Path(arguments.add_exits).name
        facts |= {"stage": arguments.stage, "kept_classifier": classifier}
    return facts


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
