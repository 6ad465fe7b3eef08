"""Writes what an image holds: `sbom.cdx.json` (CycloneDX), `licenses.csv` and `sizes.csv`.

    python inventory.py PYTHON FOLDER

A stage of the image's build runs it, in an environment of its own with the tools of the extra `deploy`, on the
environment of PYTHON. Debian's packages come from dpkg; where there is none, the SBOM is of the Python packages alone.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote


def python_sbom(python: str, project: Path) -> dict[str, Any]:
    """CycloneDX of the packages that a Python finds, with the project as what they are for."""
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--pyproject",
        str(project),
        "--output-reproducible",
    ]
    # Checked against the schema by the tool.
    document: dict[str, Any] = json.loads(run(*command, python))
    return document


def debian_components(listing: str, release: dict[str, str]) -> list[dict[str, str]]:
    """Components of `name<TAB>version<TAB>architecture` lines.

    Args:
        release: of `/etc/os-release`; its ID is the name space of the package URLs.
    """
    system = release.get("ID", "debian")
    distro = f"{system}-{release.get('VERSION_ID', '')}".rstrip("-")
    found = []
    for line in listing.splitlines():
        name, version, architecture = line.split("\t")
        # Names and versions may hold what means something else in a URL.
        url = f"pkg:deb/{system}/{quote(name, safe='')}@{quote(version, safe='')}?arch={architecture}&distro={distro}"
        found.append({"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url})
    return found


def os_release(text: str) -> dict[str, str]:
    """Content of `/etc/os-release`."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key: value.strip('"') for key, _, value in pairs}


def sizes(folder: Path) -> list[tuple[str, float]]:
    """Megabytes (10^6 bytes) by first name in a folder, the largest first."""
    total: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            total[path.relative_to(folder).parts[0]] += path.stat().st_size
    return [(name, round(size / 1e6, 1)) for name, size in total.most_common()]


def run(*command: str) -> str:
    """Output of a command; what it says on stderr is for whoever builds."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603  # our own


def main() -> None:
    """Write the three files."""
    python, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    sbom = python_sbom(python, Path("pyproject.toml"))
    if shutil.which("dpkg-query"):
        listing = run("dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n")
        release = os_release(Path("/etc/os-release").read_text(encoding="utf-8"))
        sbom["components"] += debian_components(listing, release)
    (folder / "sbom.cdx.json").write_text(json.dumps(sbom, indent=1) + "\n", encoding="utf-8")
    table = run(
        sys.executable, "-m", "piplicenses", "--python", python, "--with-system", "--with-urls", "--format", "csv"
    )
    (folder / "licenses.csv").write_text(table, encoding="utf-8")
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with (folder / "sizes.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("folder", "megabytes"), *sizes(Path(site))])


if __name__ == "__main__":
    main()
