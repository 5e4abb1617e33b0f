"""`Pages`: the catalogue as HTML that a person can read, with and without a mouse, on a phone, by day and by night.

Whatever stands in a card, a name or a report is somebody's text: every value is escaped, no page runs a script, and the
headers below would stop one that slipped through. Nothing is fetched from elsewhere. Knows no Ray.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from dapps.evaluation import plots
from serving.control.pages import snippets

Json = dict[str, Any]
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "vary": "accept",
}
DECIMALS = 6
"""Of the settlement asset."""


class Pages:
    """Renders the pages.

    Args:
        version: of the mesh.
        mesh: its address, network, asset and who signs its receipts.
    """

    def __init__(self, version: str, mesh: dict[str, str]) -> None:
        self._mesh = mesh
        self._environment = Environment(
            loader=PackageLoader("serving.control", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {"version": version, "mesh": mesh}
        self._environment.globals |= {"intervals_svg": _intervals, "reliability_svg": _reliability}
        self._environment.filters |= {"amount": amount, "words": words, "number": number, "shape": shape}
        # The default is links and images too: a report needs neither, and an author could make them mislead.
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        self._markdown.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])

    def home(self, dapps: list[Json], unserved: list[Json]) -> str:
        """The list; `dapps` are rows of the catalogue with `health`."""
        return self._environment.get_template("home.html").render(dapps=dapps, unserved=unserved)

    def dapp(self, row: Json) -> str:
        """One DApp: what it is for, what it costs, how it was measured, how it is called, and who is paid."""
        calls = snippets.all_of(self._mesh["url"], row)
        models = [plots.of_card(card) for card in row["cards"]]
        return self._environment.get_template("dapp.html").render(dapp=row, calls=calls, plots=models)

    def answer(self, row: Json, sample: str, text: str, markdown: bool, picture: bool) -> str:
        """The answer to a sample.

        Args:
            row: the DApp's.
            sample: its name.
            text: the report or the tensors.
            markdown: whether `text` is Markdown; else it is shown as it is.
            picture: whether there is one beside it.
        """
        body = Markup(_with_breaks(self._markdown.render(text))) if markdown else None  # noqa: S704 - HTML is off
        page = self._environment.get_template("answer.html")
        return page.render(dapp=row, sample=sample, body=body, text=text, picture=picture)


def _intervals(model: plots.Model) -> Markup:
    return Markup(plots.intervals(model))  # noqa: S704 - it escapes what it draws


def _reliability(model: plots.Model) -> Markup:
    return Markup(plots.reliability(model.name, model.bins))  # noqa: S704 - it escapes what it draws


def _with_breaks(escaped: str) -> str:
    # The one piece of HTML that our own reports use, in cells of tables; it can do nothing but break a line.
    return escaped.replace("&lt;br&gt;", "<br>")


def asset(name: str) -> bytes:
    """A file that the pages use: `style.css` or `icon.svg`."""
    return files(__name__).joinpath(name).read_bytes()


def amount(atomic: str | int) -> str:
    """Atomic units as people read them: `400` is `0.0004`."""
    whole, part = divmod(int(atomic), 10**DECIMALS)
    return f"{whole}.{part:0{DECIMALS}d}".rstrip("0").rstrip(".") if part else str(whole)


def words(name: object) -> str:
    """A key of a card as words."""
    return str(name).replace("_", " ")


def number(value: object) -> str:
    """A value of a card."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "not known" if value is None else str(value)


def shape(sizes: list[int]) -> str:
    """A shape as people read it: the batch is `n`, what varies is `?`."""
    return " \u00d7 ".join(["n", *("?" if size < 0 else str(size) for size in sizes[1:])])
