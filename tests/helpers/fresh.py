"""Run code in a new process, in which neither this package nor Transformers is imported yet.

Importing other packages, torch above all, takes most of the time that a new process needs. They are imported once, in
a server from which the new processes are forked. These have the environment and the working directory of the first
call, save for what a call passes.
"""

import faulthandler
import io
import os
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

PRELOADED = ["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo", "scipy.optimize", "sympy"]
if "forkserver" in get_all_start_methods():
    CONTEXT = get_context("forkserver")
    CONTEXT.set_forkserver_preload(PRELOADED)
else:  # Windows, where every process imports everything anew
    CONTEXT = get_context("spawn")
SECONDS = 300


def check_new() -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # rather than hang
    imported = {name.split(".")[0] for name in sys.modules} & {"adaexit_hf", "transformers"}
    if imported:
        raise RuntimeError(f"a new process has {imported} already")


def executed(code: str) -> str:
    check_new()
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    return printed.getvalue().strip()


def run(code: str) -> str:
    """What the code prints; its error is raised here if it can be pickled."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(executed, code).result()


def started(script: Path, arguments: list[str], environment: dict[str, str]) -> None:
    check_new()
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def run_script(script: Path, *arguments: str, **environment: str) -> None:
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        pool.submit(started, script, list(arguments), environment).result()
