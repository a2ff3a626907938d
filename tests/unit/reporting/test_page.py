"""Facts about the blocks that pages are made of."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from nnunetv2_anomaly.reporting.page import Picture, Section, Terms, page
from nnunetv2_anomaly.reporting.table import Cell, Table, number

NASTY = "<script>\"&'</script>"


class Reader(HTMLParser):
    """Collects tags and text, and sees that every element is closed."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def compact(*content):
    """A page with these contents, without the white space between tags."""
    return re.sub(r">\s+<", "><", page("title", [Section("one", content)]))


def table(header, rows, title="", **more):
    return Table(
        title, header, [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows], **more
    )


def drawn():
    made = Figure(figsize=(2, 1))
    made.subplots().plot([0, 1], [0, 1])
    return made


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.25, "1.2"), (-0.04, "0.0"), (-0.06, "-0.1"), (None, "n/a"), (math.nan, "n/a"), (math.inf, "n/a")],
)
def test_numbers_are_rounded_and_undefined_ones_told(value, text):
    assert number(value, 1) == text


def test_plain_text_is_escaped_everywhere():
    made = table([NASTY], [[NASTY]], NASTY, notes=[NASTY])
    whole = page(NASTY, [Section(NASTY, [NASTY, made, Picture(drawn(), NASTY)])])
    reader = Reader(whole)
    assert reader.count("script") == 0
    # The title twice; heading and contents; paragraph; caption, header, cell and note of the table.
    assert reader.texts.count(NASTY) == 2 + 2 + 1 + 4
    assert [attrs["alt"] for tag, attrs in reader.tags if tag == "img"] == [NASTY]


def test_a_cell_shows_its_mark_and_its_smaller_lines():
    cell = Cell("1.5", bold=True, mark="†", beneath="n = 2")
    assert '<td class="bold">1.5<sup>†</sup><small>n = 2</small></td>' in compact(table(["a", "b"], [["x", cell]]))
    assert '<td class="left code"><code>run</code></td>' in compact(
        table(["a", "b"], [["x", Cell("run", code=True, left=True)]])
    )


def test_leading_columns_of_words_are_aligned_to_the_left():
    shown = compact(table(["a", "b", "c"], [["x", "y", "1"]], words=2))
    assert '<td class="left">x</td><td class="left">y</td><td>1</td>' in shown
    assert '<th scope="col" class="left">b</th><th scope="col">c</th>' in shown


def test_a_repeated_cell_is_written_once_for_its_rows():
    rows = [["u", "1", "p"], ["u", "1", "q"], ["u", "2", "r"], ["v", "2", "s"]]
    reader = Reader(compact(table(["a", "b", "c"], rows, words=3, grouped=2)))
    spans = [attrs["rowspan"] for tag, attrs in reader.tags if attrs.get("scope") == "rowgroup"]
    # u over three rows, 1 over two; 2 of u and 2 of v are different cells.
    assert spans == ["3", "2", "1", "1", "1"]
    assert reader.count("td") == 4


def test_a_figure_is_a_png_of_the_page_itself_as_wide_as_it_was_made():
    reader = Reader(compact(Picture(drawn(), "a line", "caption")))
    image = next(attrs for tag, attrs in reader.tags if tag == "img")
    assert (image["alt"], image["width"]) == ("a line", "192")
    kind, content = image["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content).startswith(b"\x89PNG")


def test_every_heading_is_in_the_table_of_contents_and_every_link_leads_to_one():
    sections = [Section("one", ["1"], (Section("inner"), Section("other"))), Section("two")]
    reader = Reader(page("title", sections))
    links = [attrs["href"].removeprefix("#") for tag, attrs in reader.tags if tag == "a"]
    headings = [attrs["id"] for tag, attrs in reader.tags if tag in ("h2", "h3")]
    assert links == headings
    assert len(set(headings)) == 4


def test_the_lead_comes_before_the_contents_and_folded_sections_open_by_their_links():
    sections = [Section("one", ["1"], [Section("inner")], folded=True), Section("two", ["2"])]
    text = page("title", sections, ["what matters", table(["a"], [["x"]])])
    assert text.index("what matters") < text.index("<table") < text.index("<nav") < text.index("<details")
    reader = Reader(text)
    assert reader.count("details") == reader.count("summary") == 1
    # A link into what is folded opens it; one to the summary would not.
    links = {attrs["href"].removeprefix("#") for tag, attrs in reader.tags if tag == "a"}
    inside = text[text.index("</summary>") : text.index("</details>")]
    assert links == {"s1", "s1-1", "s2"}
    assert all(f'id="{link}"' in inside for link in ("s1", "s1-1"))
    assert "details::details-content" in text  # open on paper


def test_terms_are_listed_with_their_meanings():
    reader = Reader(compact(Terms({"DSC": NASTY, NASTY: "b"})))
    assert (reader.count("dt"), reader.count("dd"), reader.texts.count(NASTY)) == (2, 2, 2)


def test_what_is_wider_than_a_screen_is_scrolled_and_reached_by_keyboard():
    reader = Reader(compact(table(["a"], [["x"]], "wide"), Picture(drawn(), "a line", "caption")))
    regions = [attrs for tag, attrs in reader.tags if attrs.get("class") == "scroll"]
    assert [(of["tabindex"], of["aria-label"]) for of in regions] == [("0", "wide"), ("0", "caption")]


def test_a_page_asks_for_nothing_outside_itself():
    whole = page("title", [Section("one", ["hello", Picture(drawn(), "a line")])])
    text = re.sub(r'src="data:image/png;base64,[A-Za-z0-9+/=]+"', "", whole)  # random letters
    assert len(text) < len(whole)
    assert not re.search(r"https?://|//[a-z]|@import|<link|<script|url\(", text)


def test_the_same_page_is_the_same_text():
    assert page("title", [Section("one", [Picture(drawn(), "x")])]) == page(
        "title", [Section("one", [Picture(drawn(), "x")])]
    )
