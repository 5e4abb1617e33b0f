"""Renders the catalogue as accessible, script-free HTML (keyboard, mobile, dark mode).

Cards, names and reports are texts of strangers: every value is escaped, and the headers below stop a script that would
slip through. Pages load nothing from other hosts.
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
"""Decimals of the settlement asset."""


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
        # A report needs no links or images, and an author could mislead with them.
        self._markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        self._markdown.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])

    def home(self, dapps: list[Json], unserved: list[Json]) -> str:
        """The list of DApps; `dapps` are rows of the catalogue with `health`."""
        return self._environment.get_template("home.html").render(dapps=dapps, unserved=unserved)

    def dapp(self, row: Json) -> str:
        """One DApp: its purpose, price, measures, calls and owners."""
        calls = snippets.all_of(self._mesh["url"], row)
        models = [plots.of_card(card) for card in row["cards"]]
        return self._environment.get_template("dapp.html").render(dapp=row, calls=calls, plots=models)

    def answer(self, row: Json, sample: str, text: str, markdown: bool, picture: bool) -> str:
        """The answer to a sample.

        Args:
            row: the DApp's row of the catalogue.
            sample: the sample's name.
            text: the report or the tensors.
            markdown: whether `text` is Markdown; other text is shown verbatim.
            picture: whether the sample has a picture.
        """
        body = Markup(_with_breaks(self._markdown.render(text))) if markdown else None  # noqa: S704 - HTML is off
        page = self._environment.get_template("answer.html")
        return page.render(dapp=row, sample=sample, body=body, text=text, picture=picture)


def _intervals(model: plots.Model) -> Markup:
    return Markup(plots.intervals(model))  # noqa: S704 - it escapes what it draws


def _reliability(model: plots.Model) -> Markup:
    return Markup(plots.reliability(model.name, model.bins))  # noqa: S704 - it escapes what it draws


def _with_breaks(escaped: str) -> str:
    # The only HTML in our own reports, in cells of tables; it can do no more than break a line.
    return escaped.replace("&lt;br&gt;", "<br>")


def asset(name: str) -> bytes:
    """A file of the pages: `style.css` or `icon.svg`."""
    return files(__name__).joinpath(name).read_bytes()


def amount(atomic: str | int) -> str:
    """Atomic units as a decimal: `400` is `0.0004`."""
    whole, part = divmod(int(atomic), 10**DECIMALS)
    return f"{whole}.{part:0{DECIMALS}d}".rstrip("0").rstrip(".") if part else str(whole)


def words(name: object) -> str:
    """A key of a card, as words."""
    return str(name).replace("_", " ")


def number(value: object) -> str:
    """A value of a card, as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "not known" if value is None else str(value)


def shape(sizes: list[int]) -> str:
    """A shape as text: the batch is `n`, a variable size is `?`."""
    return " \u00d7 ".join(["n", *("?" if size < 0 else str(size) for size in sizes[1:])])
