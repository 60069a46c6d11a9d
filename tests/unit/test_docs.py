"""The pages say what is true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edge_sdk import cli

ROOT = Path(__file__).resolve().parents[2]


def test_every_verb_is_documented():
    page = (ROOT / "docs" / "reference" / "cli.md").read_text()
    assert [line[8:] for line in page.splitlines() if line.startswith("## edge ")] == list(cli.VERBS)


def test_the_generated_pages_are_fresh_and_every_link_leads_somewhere():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "docs_check.py"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
