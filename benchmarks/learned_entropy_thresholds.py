"""Learn entropy thresholds in training instead of choosing them: DeeBERT as a special case of DACT-BERT.

    python benchmarks/learned_entropy_thresholds.py

The script fine-tunes all-MiniLM-L6-v2 on the demo's sentences as DeeBERT does, first the encoder and then the exits.
Then it learns, for several ponder costs tau, the threshold S_n of every layer n: a text exits where its entropy in
nats is below S_n. `--tied` learns one threshold for all layers.
"""

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import demo
import torch
from demo_sentences import generate
from transformers import AutoTokenizer, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging

from adaexit_hf import DactBertForSequenceClassification, EarlyExitTrainer, EarlyExitTrainingArguments, collect_trace

PONDER_COSTS = (0.001, 0.01, 0.1)
# Stage: (epochs, learning rate). A threshold is a single number that starts far from its final value, so it needs a
# large learning rate.
STAGES = {"backbone": (2, 2e-4), "exits": (1, 1e-3), "halting": (1, 5e-2)}


def main(argv: Sequence[str] | None = None) -> None:
    """Train encoder and exits once, then thresholds for every ponder cost, and print accuracy and mean exit layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="Hub name or folder of an encoder; default: the demo's MiniLM")
    parser.add_argument("--train_size", type=int, default=2000, help="number of training sentences, a multiple of 10")
    parser.add_argument("--tied", action="store_true", help="learn one threshold for all layers")
    options = parser.parse_args(argv)
    set_seed(0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    encoder = options.model_name_or_path or demo.packaged_encoder()
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    training, evaluation = (demo.tokenized(tokenizer, rows) for rows in generate(options.train_size, 500))
    dact = {"halting_input": "entropy", "tied_halting": options.tied, "fine_tuning": "three_stage"}
    model = DactBertForSequenceClassification.from_encoder_pretrained(
        encoder, num_labels=2, exit_pooling="mean", **dact
    )
    bf16 = not torch.cuda.is_available() and demo.bf16_is_faster()
    for stage in ("backbone", "exits"):
        train(model, tokenizer, training, stage, bf16)

    untrained = copy.deepcopy(model.halting.state_dict())
    names = " ".join(f"  S_{layer}" for layer in model.config.exit_layers[:-1])  # all texts exit at the last layer
    print(f"   tau {names}  accuracy  mean exit layer")
    for ponder_cost in PONDER_COSTS:
        model.config.ponder_cost = ponder_cost
        model.halting.load_state_dict(untrained)
        train(model, tokenizer, training, "halting", bf16)
        trace = collect_trace(model, evaluation)
        logits, layers = trace.at(0.0)  # at threshold 0 no exit changes a class
        thresholds = " ".join(f"{value:5.2f}" for value in model.entropy_thresholds()[:-1])
        accuracy = demo.accuracy(logits.argmax(dim=-1), trace.labels)
        print(f"{ponder_cost:6} {thresholds} {accuracy:9.1%} {layers.double().mean().item():16.2f}")


def train(model: Any, tokenizer: Any, rows: list[dict[str, Any]], stage: str, bf16: bool) -> None:
    """Run one training stage."""
    quiet = {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False}
    device = {"bf16": bf16, "use_cpu": bf16, "per_device_train_batch_size": 16}
    epochs, rate = STAGES[stage]
    args = EarlyExitTrainingArguments(
        "out/learned_entropy_thresholds", num_train_epochs=epochs, learning_rate=rate, **device, **quiet
    )
    trainer = EarlyExitTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train(stage=stage)


if __name__ == "__main__":
    main()
