"""Audit installed packages for known vulnerabilities, where the advisories can be reached.

    python tools/audit.py

Ends with 1 where a package has an advisory that is not listed here, and says so and ends with 0
where there is no network or no pip-audit: a check that can't be made is no fault of the code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

# Advisories that can't be fixed here, each with the reason why it does no harm or has no remedy.
ACCEPTED: dict[str, str] = {}

# What one connection may take, one package, and the whole audit.
_CONNECT_SECONDS, _PROBE_SECONDS, _AUDIT_SECONDS = 5, 25, 600


def audit(arguments: list[str], seconds: float) -> dict | None:
    """Return what pip-audit finds, or None where it can't reach the advisories in time."""
    command = [
        sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off",
        # OSV has the Python advisories and GitHub's, and spares the package index the questions.
        "--vulnerability-service", "osv", "--timeout", str(_CONNECT_SECONDS), *arguments,
    ]  # fmt: skip
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        return json.loads(finished.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return None


def probe() -> bool:
    """Return whether the advisories can be reached, asking for one package alone."""
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.txt"
        one.write_text(f"pip-audit=={metadata.version('pip-audit')}\n")
        options = ["--requirement", str(one), "--no-deps", "--disable-pip"]
        return audit(options, _PROBE_SECONDS) is not None


def main() -> int:
    """Print each advisory that is not accepted and return how the process ends."""
    try:
        metadata.version("pip-audit")
    except metadata.PackageNotFoundError:
        print("audit: skipped, pip-audit is not installed (pip install -e '.[dev]')")
        return 0
    found = audit(["--skip-editable"], _AUDIT_SECONDS) if probe() else None
    if found is None:
        print("audit: skipped, the advisories can't be reached from here")
        return 0
    packages = [each for each in found["dependencies"] if "vulns" in each]
    new = [
        f"{each['name']} {each['version']}: {fault['id']}, fixed in "
        f"{', '.join(fault['fix_versions']) or 'no version yet'}"
        for each in packages
        for fault in each["vulns"]
        if not {fault["id"], *fault["aliases"]} & ACCEPTED.keys()
    ]
    print("\n".join([*new, f"audit: {len(packages)} packages, {len(new)} unexplained advisories"]))
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
