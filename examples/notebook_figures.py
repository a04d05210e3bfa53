"""Copy the figures that the README shows out of the notebooks, whose cell tagged "readme" has put out each.

    python examples/notebook_figures.py docs/img

Writes notebook-01.png and so on, byte for byte what is committed in the notebooks. Needs the standard library alone.
"""

import base64
import json
import sys
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def main():
    """Write one figure for every notebook into the folder that is named, docs/img if none is."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        figures = [cell["outputs"] for cell in cells if "readme" in cell["metadata"].get("tags", [])]
        if [len(outputs) for outputs in figures] != [1]:
            raise SystemExit(f"{path.name} must have one cell tagged readme, with one figure. Run notebooks/run.py.")
        target = folder / f"notebook-{path.name[:2]}.png"
        target.write_bytes(base64.b64decode(figures[0][0]["data"]["image/png"]))
        print(f"wrote {target}")


if __name__ == "__main__":
    main()
