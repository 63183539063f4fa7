"""Run named commands one after the other, all of them even when one fails, and end with what each took.

``tools/stages.py NAME 'shell command' [NAME 'shell command' ...]``
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SLOW_MINUTES = 15.0


def main() -> int:
    arguments = sys.argv[1:]
    results: list[tuple[str, float, int]] = []
    for name, command in zip(arguments[::2], arguments[1::2], strict=True):
        print(f"===== {name}: {command}", flush=True)
        started = time.monotonic()
        code = subprocess.run(command, shell=True, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
        results.append((name, (time.monotonic() - started) / 60, code))
    print("===== minutes per stage")
    for name, minutes, code in results:
        slow = f", slow: over {SLOW_MINUTES:.0f} min" if minutes > SLOW_MINUTES else ""
        print(f"{minutes:6.1f}  {name}{slow}{f', FAILED with exit status {code}' if code else ''}")
    print(f"{sum(minutes for _name, minutes, _code in results):6.1f}  together, on {os.cpu_count()} cores")
    failed = [name for name, _minutes, code in results if code]
    if failed:
        print(f"broken: {', '.join(failed)}")
    print(f"stages: {len(results) - len(failed)} passed, {len(failed)} failed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
