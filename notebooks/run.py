"""Run the notebooks at full size and write them back, with their figures as the only outputs.

    python notebooks/run.py          all of them
    python notebooks/run.py 01 03    those whose names begin so

Needs ``pip install ".[notebooks]"``.
"""

import json
import sys
import time

import nbformat
from clean import FOLDER, clean, text_of
from nbclient import NotebookClient


def main() -> None:
    """Run the notebooks that were asked for."""
    wanted = tuple(sys.argv[1:]) or ("",)
    paths = [path for path in sorted(FOLDER.glob("*.ipynb")) if path.name.startswith(wanted)]
    if not paths:
        raise SystemExit(f"no notebook begins with {' or '.join(wanted)}")
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        began = time.perf_counter()
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
        path.write_text(text_of(clean(json.loads(nbformat.writes(notebook)))), encoding="utf-8")
        print(f"{path.name}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
