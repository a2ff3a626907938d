"""An HTML page: what matters first, sections below, a table of contents; no network, and no script but for scenes."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from nnunetv2_anomaly.reporting.drawing import figure_bytes
from nnunetv2_anomaly.reporting.table import Table

_TEMPLATES = Environment(
    loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
)


@dataclass(frozen=True)
class Picture:
    """A figure with its texts; a page holds it as PNG."""

    kind: ClassVar[str] = "picture"

    figure: Figure
    alt: str  # what it shows, for readers who do not see it
    caption: str = ""  # plain text beneath it
    name: str = ""  # of its file, without ending, where it is written to one as well

    @property
    def width(self) -> int:
        """Pixels on the screen, 96 an inch, where the page has room."""
        return round(96 * self.figure.get_figwidth())

    def png(self) -> str:
        """The PNG in base64."""
        return base64.b64encode(figure_bytes(self.figure, "png", dpi=130)).decode("ascii")


@dataclass(frozen=True)
class Scene:
    """Something to turn and look at from all sides."""

    kind: ClassVar[str] = "scene"

    html: str  # as plotly makes it
    caption: str = ""


@dataclass(frozen=True)
class Terms:
    """Words of a page and what they mean."""

    kind: ClassVar[str] = "terms"

    meanings: Mapping[str, str]  # term -> plain text


#: plain text, which makes a paragraph, or a table, a figure and so on
Content: TypeAlias = str | Table | Picture | Scene | Terms


@dataclass(frozen=True)
class Section:
    """A part of a page, listed in the table of contents; its subsections, after the content, have none of their own."""

    title: str
    content: Sequence[Content] = ()
    sections: Sequence[Section] = ()
    folded: bool = False  # whether readers open it, on paper it is open


def page(title: str, sections: Sequence[Section], lead: Sequence[Content] = ()) -> str:
    """A whole page as HTML: the lead, a table of contents, the sections.

    Every text is escaped; the same content gives the same page.
    """
    return _TEMPLATES.get_template("page.html").render(title=title, sections=sections, lead=lead).lstrip()
