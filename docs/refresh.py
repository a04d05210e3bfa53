"""Run what the pages in this folder show, and write down what it prints.

    python docs/refresh.py

A ``console`` block holds commands after "$ ", each followed by its output. In a ``python`` block every ">>> " example
is followed by what it prints; the examples of a page share their names. A test holds the pages against this script.
"""

import contextlib
import doctest
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def run_command(command: str) -> str:
    """Return what a command line of transmask prints."""
    program, *arguments = shlex.split(command)
    if program != "transmask":
        raise ValueError(f"a console block must run transmask, got {command!r}")
    done = subprocess.run([sys.executable, "-m", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def run_example(example: doctest.Example, names: dict[str, object]) -> str:
    """Return what an example of the interactive interpreter prints, with the example before it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example.source, "<page>", "single"), names)
    first, *more = example.source.splitlines()
    return "\n".join([f">>> {first}", *(f"... {line}".rstrip() for line in more), ""]) + printed.getvalue()


def render(text: str) -> str:
    """Return a page with the outputs that its commands and examples have now."""
    names: dict[str, object] = {"__name__": "page"}

    def run(block: re.Match[str]) -> str:
        language, body = block.groups()
        if language == "console":
            commands = [line for line in body.splitlines() if line.startswith("$ ")]
            body = "".join(f"{command}\n{run_command(command[2:])}" for command in commands)
        else:
            body = "".join(run_example(example, names) for example in doctest.DocTestParser().get_examples(body))
        return f"```{language}\n{body}```"

    return re.sub(r"```(console|python)\n(.*?)```", run, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the pages."""
    for page in sorted(FOLDER.glob("*.md")):
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
