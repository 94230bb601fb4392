"""`make coverage`: print the branch coverage of `worker/`, and the files below 90 %."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEAST_PERCENT = 90.0


def main() -> int:
    """Read the data that pytest-cov has written, and print it."""
    report = ROOT / ".coverage.json"
    # Data of worker processes that ended after pytest had collected the rest; there may be none.
    combine = [sys.executable, "-m", "coverage", "combine", "--append", "-q"]
    subprocess.run(combine, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", str(report)], cwd=ROOT, check=True)
    found = json.loads(report.read_text())
    report.unlink()
    below = {
        name: file["summary"]
        for name, file in found["files"].items()
        if file["summary"]["percent_covered"] < LEAST_PERCENT
    }
    for name, summary in sorted(below.items(), key=lambda item: float(item[1]["percent_covered"])):
        lines, branches = summary["missing_lines"], summary["missing_branches"]
        print(f"{summary['percent_covered']:5.1f} %  {name}: {lines} lines and {branches} branches are not run")
    total = found["totals"]["percent_covered"]
    print(f"{total:5.1f} %  of lines and branches of worker/; {len(below)} files are below {LEAST_PERCENT:.0f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
