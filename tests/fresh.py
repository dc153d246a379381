"""Code in a process of its own, where neither this package nor Transformers is imported yet.

What they import of other packages is, once for all calls: that takes most of the seconds of a new process.
"""

import io
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context

OTHERS = ["torch", "torch.distributed.tensor", "torch.distributed.fsdp", "torch._dynamo", "scipy.optimize", "sympy"]
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(OTHERS)


def executed(code: str) -> str:
    early = {name.split(".")[0] for name in sys.modules} & {"adaexit_hf", "transformers"}
    if early:
        raise RuntimeError(f"a new process has {early} already")
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {"__name__": "__main__"})
    return printed.getvalue().strip()


def run(code: str) -> str:
    """What it prints; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(executed, code).result()
