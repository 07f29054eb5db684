"""The command line prints in one way, so that nothing foreign acts on a terminal and nothing is cut in a pipe."""

from __future__ import annotations

import re
from pathlib import Path

CLI = Path(__file__).parents[2] / "cli"


def test_every_command_prints_through_the_screen() -> None:
    """A plain `Console` would cut ids at 80 columns and let a title move the cursor."""
    own = [path.name for path in sorted(CLI.glob("*.py")) if re.search(r"\bConsole\(", path.read_text("utf-8"))]
    assert own == []


def test_every_identifier_column_is_whole() -> None:
    """Tables are made by `cli.screen.table_of`, but for those that align or frame their columns themselves."""
    own = [path.name for path in sorted(CLI.glob("*.py")) if re.search(r"\bTable\(", path.read_text("utf-8"))]
    assert set(own) <= {"screen.py", "evaluating.py", "indexes.py"}
