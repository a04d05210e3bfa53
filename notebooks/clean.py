"""Keep of what the notebooks put out the figures, and nothing else.

    python notebooks/clean.py            rewrite every notebook that holds more
    python notebooks/clean.py --check    change nothing; name those that hold more, and exit with 1 if there are any

Printed text, tables, errors, counters and times of execution change with every run and every machine; figures are what
a reader on a code-hosting site comes for. Needs the standard library alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def clean(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a notebook (format 4) with no outputs but its PNG figures, and no counters."""
    return notebook | {"cells": [clean_cell(cell) for cell in notebook["cells"]], "metadata": METADATA}


def clean_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a cell; of its metadata the tags stay."""
    metadata = {"tags": cell["metadata"]["tags"]} if cell["metadata"].get("tags") else {}
    if cell["cell_type"] != "code":
        return cell | {"metadata": metadata}
    figures = [
        {
            "data": {"image/png": "".join(output["data"]["image/png"]).strip()},
            "metadata": {},
            "output_type": "display_data",
        }
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]
    return cell | {"metadata": metadata, "execution_count": None, "outputs": figures}


def text_of(notebook: dict[str, Any]) -> str:
    """Write a notebook as Jupyter does, with sorted keys."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Clean or check every notebook of this folder."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        print(f"usage: python notebooks/clean.py [--check], got {' '.join(sys.argv[1:])}")
        return 2
    offenders = 0
    for path in sorted(FOLDER.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        cleaned = text_of(clean(json.loads(text)))
        if cleaned != text:
            offenders += 1
            if not check:
                path.write_text(cleaned, encoding="utf-8")
            print(f"{path.name}: " + ("holds more than figures, run notebooks/clean.py" if check else "cleaned"))
    return int(check and offenders > 0)


if __name__ == "__main__":
    sys.exit(main())
