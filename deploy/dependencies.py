"""What the installation consists of (``sbom``), and what is known against it (``audit``).

    python deploy/dependencies.py sbom                     of the packages of this Python
    python deploy/dependencies.py sbom requirements.lock   of a lock file
    python deploy/dependencies.py audit requirements.lock  asks pip-audit, if it is installed

Needs nothing but Python. Exit status of ``audit``: 0 nothing is known against any package; 1 something is;
2 it could not be found out, for some or all of them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

PINNED: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)
NOT_CHECKED: Final = 2


def main(arguments: list[str]) -> int:
    """Run one of the two commands; return the exit status."""
    if arguments[:1] == ["sbom"] and len(arguments) <= 2:
        print(json.dumps(sbom(arguments[1] if arguments[1:] else None), indent=1))
        return 0
    if arguments[:1] == ["audit"] and len(arguments) == 2:
        return audit(arguments[1])
    print(__doc__, file=sys.stderr)
    return NOT_CHECKED


def sbom(lock: str | None) -> dict[str, Any]:
    """Return the software bill of materials, in the JSON form of CycloneDX 1.6."""
    if lock is None:
        found = {(each.metadata["Name"], each.version) for each in metadata.distributions()}
    else:
        found = set(PINNED.findall(Path(lock).read_text(encoding="utf-8")))
    components = [
        {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{version}",
        }
        for name, version in sorted(found, key=lambda pair: pair[0].lower())
    ]
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}


def audit(lock: str) -> int:
    """Ask pip-audit about the packages of a lock file, and say what came of it."""
    program = shutil.which("pip-audit")
    if program is None:
        print("NOT CHECKED: pip-audit is not on this machine (pipx install pip-audit)")
        return NOT_CHECKED
    done = subprocess.run(
        [program, "--disable-pip", "--require-hashes", "--requirement", lock, "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"NOT CHECKED: pip-audit cannot reach its data: {reason}")
        return NOT_CHECKED
    known = [
        f"{each['name']} {each['version']}: {one['id']} (fixed in: {', '.join(one['fix_versions']) or '-'})"
        for each in packages
        for one in each.get("vulns", ())
    ]
    skipped = [each["name"] for each in packages if "skip_reason" in each]
    for line in known:
        print(line)
    if skipped:
        print(f"NOT CHECKED: pip-audit has no data here for {len(skipped)} of {len(packages)} packages")
    if known:
        return 1
    if skipped or not packages:
        return NOT_CHECKED
    print(f"nothing is known against {len(packages)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
