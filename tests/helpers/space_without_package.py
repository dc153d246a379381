"""Run by test_demo.py where adaexit_hf cannot be imported: space_without_package.py FOLDER.

Run the app of the Space in FOLDER, ask it once, and save its answer beside it.
"""

import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # it runs as a script
from helpers.load_without_package import Blocked

FOLDER = Path(sys.argv[1])


def main() -> None:
    sys.meta_path.insert(0, Blocked())
    import gradio
    import torch
    from gradio_client import Client

    torch.set_num_threads(1)
    launch, pages = gradio.Blocks.launch, list[Any]()

    def started(page: Any, **options: Any) -> Any:
        pages.append(page)
        return launch(page, **options, prevent_thread_lock=True, quiet=True)

    gradio.Blocks.launch = started
    runpy.run_path(str(FOLDER / "app.py"), run_name="__main__")
    client = Client(pages[0].local_url, verbose=False, analytics_enabled=False)
    result, _, _ = client.predict(True, 1.0, "w5 w6", api_name="/classify")
    (FOLDER / "answer.html").write_text(result, encoding="utf-8")
    pages[0].close(verbose=False)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
