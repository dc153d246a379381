"""Fine-tune an early-exit model on GLUE, SICK, or your own labelled texts, and choose its exit threshold.

    accelerate launch examples/run_glue_exit.py --method berxit --model_name_or_path google-bert/bert-base-uncased \
        --task_name mrpc --output_dir out

This is the command `adaexit train` as a script, for `accelerate launch`. `--help` explains all flags. They can also be
given in one JSON or YAML file: `python examples/run_glue_exit.py settings.yaml`.
"""

import sys

from adaexit_hf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
