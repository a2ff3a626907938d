"""An HTML page in one file: sections with tables and figures, a table of contents, no script and no network."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from nnunetv2_anomaly.reporting.drawing import figure_bytes

_STYLE = """
:root { --ink: #1f2328; --quiet: #5b636d; --line: #d5d9de; --soft: #f5f6f8; --accent: #1f5a94; }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: var(--ink);
  background: #fff; max-width: 76rem; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .8rem; padding-top: .9rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 1.8rem 0 .5rem; }
p { max-width: 52rem; margin: .6rem 0; }
a { color: var(--accent); }
nav { background: var(--soft); border-radius: .4rem; padding: .8rem 1.2rem; margin: 1.4rem 0; }
nav ol { margin: 0; padding-left: 1.4rem; columns: 22rem auto; }
nav ol ol { columns: auto; list-style: none; padding-left: .8rem; font-size: .92em; }
nav li { break-inside: avoid; }
.scroll { overflow-x: auto; margin: .8rem 0 1.6rem; }
table { border-collapse: collapse; font-size: .9rem; border-bottom: 1.5px solid var(--ink); }
caption { text-align: left; font-weight: 600; padding: 0 0 .4rem; }
thead th { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); vertical-align: bottom;
  overflow-wrap: break-word; max-width: 11rem; }
th, td { padding: .28rem .65rem; text-align: right; vertical-align: top; font-weight: 400;
  font-variant-numeric: tabular-nums; }
thead th { font-weight: 600; }
td { white-space: nowrap; }
th.left, td.left { text-align: left; white-space: normal; overflow-wrap: break-word; max-width: 22rem; }
tbody tr.group > * { border-top: 1px solid var(--line); }
td.bold { font-weight: 700; }
td small { display: block; color: var(--quiet); font-weight: 400; font-size: .82em; line-height: 1.25;
  white-space: pre-line; }
/* Marks hang beside the numbers, so that these stay in line. */
td sup { position: absolute; font-weight: 400; font-size: .72em; line-height: 1; padding-left: .1em; }
td:not(.left), thead th:not(.left) { padding-right: 1.1rem; }
ul.notes { list-style: none; margin: .4rem 0 0; padding: 0; max-width: 60rem; font-size: .85rem; color: var(--quiet); }
figure { margin: 1rem 0 1.8rem; }
figcaption { font-size: .9rem; color: var(--quiet); max-width: 52rem; }
img { max-width: 100%; height: auto; }
td.code { max-width: 48rem; }
code { background: var(--soft); padding: .1rem .3rem; overflow-wrap: anywhere; }
@media print {
  @page { margin: 1.5cm; }
  :root { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  table { font-size: .82rem; }
  th, td { padding: .15rem .4rem; }
  td:not(.left), thead th:not(.left) { padding-right: .8rem; }
  h2, h3, caption { break-after: avoid; }
  tr, figure, nav { break-inside: avoid; }
  .scroll { overflow: visible; }
  a { color: inherit; text-decoration: none; }
}
"""


@dataclass(frozen=True)
class Section:
    """A part of a page, listed in the table of contents.

    Attributes:
        title: plain text.
        html: what stands beneath it, ready HTML as ``paragraph``, ``table`` and ``figure`` give it.
        sections: parts of it, beneath that.
    """

    title: str
    html: str = ""
    sections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A table's cell of plain text.

    Attributes:
        text: what it says.
        bold, code: how it is set.
        left: aligned to the left, as words are, rather than to the right, as numbers are.
        mark: signs set high after the text, such as those of notes.
        beneath: smaller lines under the text.
    """

    text: str
    bold: bool = False
    code: bool = False
    left: bool = False
    mark: str = ""
    beneath: str = ""


def number(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; "n/a" where there is none, or it is not finite."""
    if value is None or not math.isfinite(value):
        return "n/a"
    text = f"{value:.{digits}f}"
    # A negative number that rounds to nothing is nothing.
    return text.lstrip("-") if float(text) == 0 else text


def paragraph(text: str) -> str:
    """A paragraph of plain text, as HTML."""
    return f"<p>{html.escape(text)}</p>"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    caption: str = "",
    *,
    notes: Sequence[str] = (),
    words: int = 1,
    grouped: int = 0,
) -> str:
    """A table, as HTML; it scrolls by itself where it is wider than the page.

    Args:
        header: plain text, one per column.
        rows: plain text or ``Cell``, as many per row as the header has.
        caption: plain text above it.
        notes: plain text beneath it, a line each.
        words: that many leading columns hold words, aligned to the left; the others hold numbers.
        grouped: in that many leading columns, a cell that repeats the one above it is written once for all of them.

    Raises: ValueError if a row has another number of cells than the header.
    """
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    if wrong := [len(row) for row in cells if len(row) != len(header)]:
        raise ValueError(f"a row has {wrong[0]} cells; expected {len(header)}, as the header has")
    head = "".join(
        f'<th scope="col"{_classes("left" if column < words else "")}>{html.escape(name)}</th>'
        for column, name in enumerate(header)
    )
    body = []
    for index, row in enumerate(cells):
        parts = []
        for column, cell in enumerate(row):
            lead = [entry.text for entry in row[: column + 1]]
            if column >= grouped:
                parts.append(_cell(cell, words=column < words))
            elif index == 0 or lead != [entry.text for entry in cells[index - 1][: column + 1]]:
                same = 1
                while index + same < len(cells) and lead == [c.text for c in cells[index + same][: column + 1]]:
                    same += 1
                parts.append(f'<th scope="rowgroup" class="left" rowspan="{same}">{html.escape(cell.text)}</th>')
        new_group = grouped and (index == 0 or cells[index - 1][0].text != row[0].text)
        body.append(f"<tr{_classes('group' if new_group else '')}>{''.join(parts)}</tr>")
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    beneath = f'<ul class="notes">{"".join(f"<li>{html.escape(note)}</li>" for note in notes)}</ul>' if notes else ""
    return (
        f'<div class="scroll"><table>{above}<thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
        f"{beneath}</div>"
    )


def _classes(*names: str) -> str:
    names = tuple(name for name in names if name)
    return f' class="{" ".join(names)}"' if names else ""


def _cell(cell: Cell, *, words: bool) -> str:
    text = html.escape(cell.text)
    parts = [
        f"<code>{text}</code>" if cell.code else text,
        f"<sup>{html.escape(cell.mark)}</sup>" if cell.mark else "",
        f"<small>{html.escape(cell.beneath)}</small>" if cell.beneath else "",
    ]
    classes = _classes("left" if cell.left or words else "", "bold" if cell.bold else "", "code" if cell.code else "")
    return f"<td{classes}>{''.join(parts)}</td>"


def figure(drawn: Figure, alt: str, caption: str = "") -> str:
    """A figure as PNG inside the page, as HTML.

    Args:
        drawn: the figure; on the screen an inch of it is 96 pixels wide where the page has room.
        alt: what it shows, for those who do not see it.
        caption: plain text beneath it.
    """
    encoded = base64.b64encode(figure_bytes(drawn, "png", dpi=130)).decode("ascii")
    width = round(96 * drawn.get_figwidth())
    beneath = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    image = f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{encoded}">'
    return f"<figure>{image}{beneath}</figure>"


def page(title: str, sections: Sequence[Section], introduction: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        sections: in order; they and their own sections make the table of contents.
        introduction: ready HTML between the title and the table of contents.
    """
    contents, body = [], []
    for n, section in enumerate(sections, 1):
        entries = []
        body.append(f'<h2 id="s{n}">{html.escape(section.title)}</h2>{section.html}')
        for m, part in enumerate(section.sections, 1):
            entries.append(f'<li><a href="#s{n}-{m}">{html.escape(part.title)}</a></li>')
            body.append(f'<h3 id="s{n}-{m}">{html.escape(part.title)}</h3>{part.html}')
        inner = f"<ol>{''.join(entries)}</ol>" if entries else ""
        contents.append(f'<li><a href="#s{n}">{html.escape(section.title)}</a>{inner}</li>')
    navigation = f'<nav aria-label="Contents"><ol>{"".join(contents)}</ol></nav>' if contents else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><header><h1>{html.escape(title)}</h1>{introduction}</header>"
        f"{navigation}<main>{''.join(body)}</main></body></html>\n"
    )
