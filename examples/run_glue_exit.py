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

from adaexit_hf.cli.train import main

if __name__ == "__main__":
    main()
