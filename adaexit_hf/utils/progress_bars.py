"""Progress bars in log files: a line every few seconds, not one every tenth of a second."""

import functools
import os
import sys

SECONDS = 10
# tqdm reads them when it is imported.
VARIABLE, DELAY = "TQDM_MININTERVAL", "TQDM_DELAY"


def write_seldom_to_files() -> None:
    """Let tqdm's bars, of whatever library, write every 10 seconds if stderr is neither a terminal nor a notebook.

    Nothing is written in the first 10 seconds. For processes that train or run a command: there most bars are those
    of Transformers and `datasets`. A value of the user's, in the environment variable `TQDM_MININTERVAL` or as the
    argument of a bar, is kept.
    """
    if sys.stderr is None or sys.stderr.isatty() or "ipykernel" in sys.modules or VARIABLE in os.environ:
        return
    os.environ[VARIABLE] = os.environ[DELAY] = str(SECONDS)
    tqdm = sys.modules.get("tqdm.std")
    if tqdm is not None:
        tqdm.tqdm.__init__ = functools.partialmethod(tqdm.tqdm.__init__, mininterval=SECONDS, delay=SECONDS)
