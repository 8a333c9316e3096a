"""The code blocks of docs/distributed.md, by section, which the tests of torch's engines and of MPI run."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "distributed.md"
SECTIONS = {
    title: code
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    if (code := "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)))
}


def run_section(title, **names):
    """Run the blocks of a section, one after the other, with these names; return all names after it."""
    exec(compile(SECTIONS[title], f"{PAGE.name}, {title}", "exec"), names)
    return names
