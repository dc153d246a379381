"""Which files of a model folder are never uploaded to the Hub."""

from ..evaluation.fingerprints import SEEN_ROWS
from ..utils.files import LEDGER

# Training stages have their checkpoints and optimizer states in folders that the patterns of Transformers' Trainer do
# not match. The pickled training arguments can only be read with this package, and contain local paths and the access
# token. `SEEN_ROWS` has hashes of the rows of training, from which short texts can be guessed.
NEVER_UPLOADED = ("_*", "checkpoint-*", "stage-*/*", LEDGER, "training_args.bin", SEEN_ROWS)
