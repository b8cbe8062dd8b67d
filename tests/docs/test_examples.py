"""The examples in the README and the documentation run.

The ```python blocks of a file are executed in order and share their names, as a reader would type them. A block that opens with
```python no-run is only compiled. A failure points at the line of the file.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`\n]*)$")


def blocks(text: str) -> list[tuple[int, str, str]]:
    """(line of its first line, info string, code) of each fenced block."""
    found = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        opening = FENCE.match(lines[at])
        at += 1
        if opening is None:
            continue
        first, indent = at, len(opening["indent"])
        while at < len(lines) and lines[at].strip() != "```":
            at += 1
        assert at < len(lines), f"the block that opens in line {first} is never closed"
        found.append((first + 1, opening["info"].strip(), "\n".join(line[indent:] for line in lines[first:at])))
        at += 1
    return found


def pages() -> list[Path]:
    notes = ROOT / "docs" / "notes"  # working notes, for engineers
    return [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if notes not in page.parents)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = [
        (line, info.split(), code)
        for line, info, code in blocks(page.read_text(encoding="utf-8"))
        if info.split()[:1] == ["python"]
    ]
    if not python:
        pytest.skip("no example in Python")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for line, info, code in python:
        unknown = set(info[1:]) - {"no-run"}
        assert not unknown, f"{page.name}:{line}: a block is 'python' or 'python no-run', not {' '.join(info)!r}"
        # Empty lines before the code make the lines of a traceback those of the page.
        program = compile("\n" * (line - 1) + code, str(page), "exec")
        if "no-run" not in info:
            exec(program, names)


def test_the_readme_has_an_example() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert any(info.split() == ["python"] for _, info, _ in blocks(text))
    assert text.count("<!-- bench:begin -->") == 1 == text.count("<!-- bench:end -->")


def test_links_inside_the_repository_lead_somewhere() -> None:
    broken = []
    for page in [*pages(), ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", target) or target.startswith("#"):
                continue
            if not (page.parent / target.partition("#")[0]).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not broken, broken
