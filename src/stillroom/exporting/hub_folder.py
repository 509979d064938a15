"""A folder to upload to a hub of models or data sets: product, card, evidence, report and a note on licences.

Nothing is sent anywhere: uploading is left to the hub's own tools.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoint import write_json, write_text
from stillroom.evidence import read_evidence
from stillroom.exporting.card import Card
from stillroom.run import RESULT

if TYPE_CHECKING:
    from stillroom.exporting.writing import Source

NOTICE = """\
# Licence

Stillroom does not know under which terms this {kind} may be used and passed on, and gives it none: that is for you to
say, in this file and as `license` at the top of README.md, before you publish it. What it was made from may bind you:

- the data: {data}
- the teacher: {teacher}
- the student's architecture, and weights that it started from: {student}

Stillroom itself is under the Apache License 2.0, which says nothing of what is made with it.
"""


def write_hub_folder(
    folder: Path,
    found: Source,
    base: Card,
    library: Callable[[Path, Source, Card], tuple[dict[str, Any], Card]],
) -> tuple[dict[str, Any], Card]:
    """Write everything but README.md; returns what export.json says of it, and the card.

    Where the product is a library's, the folder is laid out as that library's (by `library`), and stillroom.json holds
    what Stillroom knows of the student; elsewhere it is the student folder.
    """
    about, portable = found.about, found.portable
    facts: dict[str, Any] = {"kind": portable.kind}
    card = base
    if portable.library is not None:
        more, card = library(folder, found, base)
        facts |= more
        own = next(name for name in ("stillroom.json", "config.json") if (found.student / name).is_file())
        shutil.copyfile(found.student / own, folder / "stillroom.json")
    else:
        skip = shutil.ignore_patterns("README.md", "pipeline")
        shutil.copytree(found.student, folder, ignore=skip, dirs_exist_ok=True)
    evidence = folder / "evidence"
    evidence.mkdir()
    shutil.copyfile(found.run.path / RESULT, evidence / "run.json")
    claims = read_evidence(about["system"]) if about.get("system") else []
    if claims:
        write_json(evidence / "claims.json", {"system": about["system"], "claims": claims})
    report = found.run.path / "report.html"
    if report.is_file():
        shutil.copyfile(report, folder / "report.html")
    data = about["data"]
    words = {key: data.get(key) or "none" for key in ("teacher", "student")}
    write_text(folder / "LICENCE.md", NOTICE.format(kind=portable.kind, data=data["name"], **words))
    licence = {"license": "other", "license_name": "unstated", "license_link": "LICENCE.md"}
    files = [
        "- `evidence/run.json`: all numbers of this run",
        *(["- `evidence/claims.json`: what was measured of the system's claims"] if claims else []),
        *(["- `report.html`: the run's page"] if report.is_file() else []),
        "- `LICENCE.md`: under which terms, to be filled in",
    ]
    return facts, card.but(front={**licence, **card.front}, sections=[*card.sections, ("Beside it", files)])
