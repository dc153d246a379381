"""Which files of a model's folder are never uploaded to the Hub."""

# Stages keep their checkpoints and optimizers in folders of their own, which Trainer's patterns do not match. The
# pickled arguments need this package to be read, and hold paths of this machine and the token.
NEVER_UPLOADED = ("_*", "checkpoint-*", "stage-*/*", "stages.json", "training_args.bin")
