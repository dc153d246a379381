"""Train an early-exit model on your own texts with a few lines of Python, and choose its threshold on held-out texts.

    python examples/train_on_csv.py reviews.csv --text review --label stars --encoder google-bert/bert-base-uncased

The CSV file has a header, a column with texts and a column with labels; a tenth of its rows is held out. For pairs of
texts, other metrics, several devices, or resuming use `run_glue_exit.py`.
"""

import argparse


def main() -> None:
    """Train, choose the threshold, save the model and its card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="CSV file with a header")
    parser.add_argument("--text", default="text", help="column of the texts")
    parser.add_argument("--label", default="label", help="column of the labels, of any type")
    parser.add_argument("--encoder", default="google-bert/bert-base-uncased", help="Hub name or folder of the encoder")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the training texts")
    parser.add_argument("--output", default="out", help="folder of the finished model")
    options = parser.parse_args()

    # Here, so that --help works without the extra `train`, and at once.
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from adaexit_hf import (
        BerxitForSequenceClassification,
        EarlyExitTrainer,
        EarlyExitTrainingArguments,
        choose_threshold,
        collect_trace,
        tradeoff_curve,
    )

    # Only an empty field is missing: "None" and "NA" are labels and texts.
    missing = {"keep_default_na": False, "na_values": [""]}
    rows = load_dataset("csv", data_files=options.file, split="train", **missing)
    for column in (options.text, options.label):
        if column not in rows.column_names:
            parser.error(f"no column '{column}' in {options.file}; it has {', '.join(rows.column_names)}")
    names = [str(value) for value in sorted(set(rows[options.label]))]
    label2id = {name: index for index, name in enumerate(names)}
    # Saved with the model: all that uses it truncates texts as training does.
    tokenizer = AutoTokenizer.from_pretrained(options.encoder, model_max_length=128)
    rows = rows.map(
        lambda row: tokenizer(row[options.text], truncation=True) | {"labels": label2id[str(row[options.label])]},
        remove_columns=rows.column_names,
    )
    splits = rows.train_test_split(test_size=0.1, seed=0)

    model = BerxitForSequenceClassification.from_encoder_pretrained(
        options.encoder, id2label=dict(enumerate(names)), label2id=label2id, pairs=False
    )
    args = EarlyExitTrainingArguments(options.output, num_train_epochs=options.epochs, save_strategy="no")
    trainer = EarlyExitTrainer(model, args, train_dataset=splits["train"], processing_class=tokenizer)
    trainer.train()

    curve = tradeoff_curve(collect_trace(model, splits["test"]), "accuracy")
    chosen = choose_threshold(curve, max_drop=0.01)
    print(f"threshold {chosen.threshold}: accuracy {chosen.score:.3f}, {chosen.saving:.0%} of the layers saved")
    model.config.exit_threshold = chosen.threshold
    trainer.save_model()
    trainer.create_model_card(curve=curve)


if __name__ == "__main__":
    main()
