"""The model that `adaexit train` trains: the recipe, the method and its settings."""

import json
import sys
from typing import Any, cast

from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig

from ..data.tasks import Labels
from ..evaluation.trace import made_up
from ..models import METHODS
from ..trainer.recipe import recommended_recipe, sentence_pooling, settings_that_keep_a_classifier
from ..trainer.training_args import EarlyExitTrainingArguments
from ..utils.spelling import did_you_mean
from .classifier import stage_before
from .errors import wrong_usage
from .options import limit_length
from .train_options import Arguments


def make_model(
    arguments: Arguments, training: EarlyExitTrainingArguments, labels: Labels, source: PreTrainedConfig
) -> tuple[Any, Any]:
    """The model to train, and its tokenizer, which truncates as the model will always do.

    The settings of the recipe are added to the flags.

    Args:
        arguments: The flags.
        training: Those of the trainer.
        labels: What the labels are.
        source: The config of the encoder or classifier that is trained.

    Raises:
        UsageError: The method is unknown, or a flag does not apply to it.
    """
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
    encoder_config = None if arguments.method == "plain" else model.config.encoder_config
    # A classifier that stays as it is reads texts of the length it was made for.
    limit_length(tokenizer, encoder_config, arguments.max_seq_length, default=None if arguments.add_exits else 128)
    return model, tokenizer


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
