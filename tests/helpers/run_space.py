"""Run by test_demo_page.py where adaexit_hf cannot be imported: run_space.py FOLDER. Run a Space until killed."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # it runs as a script
from helpers.load_without_package import Blocked

if __name__ == "__main__":
    sys.meta_path.insert(0, Blocked())
    runpy.run_path(str(Path(sys.argv[1], "app.py")), run_name="__main__")
