"""Tables as text, and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

Row = Sequence[str]


def text(caption: str, head: Row, body: Sequence[Row], *, left: int) -> str:
    """Lay out cells in columns, the first `left` of them aligned to the left."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(cells: Row) -> str:
        placed = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(placed).rstrip()

    return "\n".join([caption, *map(line, [head, *body])])


def as_html(caption: str, head: Row, body: Sequence[Row], *, left: int) -> str:
    """Write the same as an HTML table."""

    def line(cells: Row, tag: str) -> str:
        sides = ["left" if i < left else "right" for i in range(len(cells))]
        placed = zip(cells, sides, strict=True)
        return "".join(f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>' for cell, side in placed)

    rows = "".join(f"<tr>{line(cells, 'td')}</tr>\n" for cells in body)
    return (
        f"<table>\n<caption>{html.escape(caption)}</caption>\n"
        f"<thead><tr>{line(head, 'th')}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"
    )


def share(share: float) -> str:
    """Write a share in percent."""
    return f"{100 * share:.3g}%" if share else "0"
