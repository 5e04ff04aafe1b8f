"""The page on redaction lists the types as the rules have them; ``python tests/redaction/test_redaction_page.py`` writes it."""

from __future__ import annotations

from pathlib import Path

from aperion.redaction import Kind, kinds

PAGE = Path(__file__).parents[2] / "docs" / "redaction.md"
MARK = "<!-- types -->\n"


def table() -> str:
    """Return the types as Markdown."""
    lines = ["", "| type | what | form | check | source | example |", "| --- | --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *map(_row, kinds())]) + "\n"


def _row(kind: Kind) -> str:
    example = kind.example if len(kind.example) <= 60 else kind.example[:57] + "…"
    cells = (f"`{kind.name}`", kind.what, kind.looks, kind.check, kind.source, f"`{example}`")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def test_the_page_is_that_of_the_rules() -> None:
    """It is written anew when they change."""
    _, _, shown = PAGE.read_text(encoding="utf-8").partition(MARK)

    assert shown == table(), "run python tests/redaction/test_redaction_page.py"


if __name__ == "__main__":
    text, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(text + mark + table(), encoding="utf-8")
