"""Fail if a test ran in no stage: every marker expression left it out, or a package that it needs was never there.

    python .ci/every_test_ran.py COLLECTED REPORT.xml...

COLLECTED is what ``pytest --collect-only --quiet -m ""`` printed, the reports what ``--junitxml`` wrote. A test ran if
it passed in some report, or was skipped there for want of something that no package brings.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

NO_PACKAGE_BRINGS = {
    "an editable install has no wheel",
    "needs /dev/full",
    "needs a CUDA device",
    "needs a CUDA device with sparse tensor cores",
    "no fork here",
    "powers of ten are rounded otherwise on this processor, so that the scores are others",
    "root can write everywhere, and there is no setpriv to change that",
}
"""The reasons to skip that continuous integration accepts."""


def collected(text: str) -> Iterator[str]:
    """Yield the tests that pytest listed, as ``module::name`` or ``module.Class::name``."""
    for line in text.splitlines():
        path, found, name = line.partition("::")
        if found:
            yield f"{path.removesuffix('.py').replace('/', '.')}::{name}"


def ran(report: Path) -> Iterator[str]:
    """Yield the tests of a report that ran, named in the same way."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if skipped is None or skipped.get("message") in NO_PACKAGE_BRINGS:
            yield f"{case.get('classname')}::{case.get('name')}"


def main(collection: str, *reports: str) -> int:
    """Compare the collection with the reports; return the exit code."""
    wanted = set(collected(Path(collection).read_text(encoding="utf-8")))
    if not wanted:
        print("nothing was collected")
        return 1
    missing = sorted(wanted - {name for report in reports for name in ran(Path(report))})
    print(f"{len(wanted) - len(missing)} of {len(wanted)} tests ran in at least one of {len(reports)} runs")
    print(*(f"ran nowhere: {name}" for name in missing), sep="\n", end="\n" if missing else "")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
