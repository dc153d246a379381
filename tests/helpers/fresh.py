"""Code in a process of its own, where neither this package nor Transformers is imported yet.

What they import of other packages is, once for all calls: that takes most of the seconds of a new process. So it has
the environment and the folder that there were at the first call, other than what a call passes.
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

OTHERS = ["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo", "scipy.optimize", "sympy"]
if "forkserver" in get_all_start_methods():
    CONTEXT = get_context("forkserver")
    CONTEXT.set_forkserver_preload(OTHERS)
else:  # Windows, where every process imports everything anew
    CONTEXT = get_context("spawn")
SECONDS = 300


def alone() -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # rather than hang
    early = {name.split(".")[0] for name in sys.modules} & {"adaexit_hf", "transformers"}
    if early:
        raise RuntimeError(f"a new process has {early} already")


def executed(code: str) -> str:
    alone()
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    return printed.getvalue().strip()


def run(code: str) -> str:
    """What it prints; an error that other modules know is raised here."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(executed, code).result()


def started(script: Path, arguments: list[str], environment: dict[str, str]) -> None:
    alone()
    os.environ.update(environment)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def run_script(script: Path, *arguments: str, **environment: str) -> None:
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        pool.submit(started, script, list(arguments), environment).result()
