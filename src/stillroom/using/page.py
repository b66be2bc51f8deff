"""One self-contained HTML page: nothing is fetched, and no script but ours can run.

Functions take plain text and return HTML; whatever comes from a file is escaped here.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from PIL import Image

_FOLDER = files("stillroom.using")


def page(title: str, about: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a page of sections (heading, HTML) under a title; empty sections are left out."""
    style, script = (_FOLDER.joinpath(n).read_text("utf-8") for n in ("page.css", "page.js"))
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{sha}'"
    )
    parts = [(f"s{i}", heading, body) for i, (heading, body) in enumerate(sections) if body]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in parts)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>'
        for name, heading, content in parts
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{style}</style>'
        f"</head><body><header><h1>{escape(title)}</h1>{paragraph(about)}<nav>{links}</nav>"
        f"</header><main>{body}</main><script>{script}</script></body></html>\n"
    )


def paragraph(text: str) -> str:
    """Return a dim paragraph."""
    return f'<p class="dim">{escape(text)}</p>' if text else ""


def cards(figures: Sequence[tuple[str, str]]) -> str:
    """Return figures (name, value) large and side by side."""
    items = (f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in figures)
    return f'<dl class="cards">{"".join(items)}</dl>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """Return a table that scrolls by itself, "" where it has no row; the first `num_left` columns
    are set to the left.
    """
    if not rows:
        return ""

    def line(cells: Sequence[str], tag: str) -> str:
        sides = [' class="left"' * (i < num_left) for i in range(len(cells))]
        pairs = zip(cells, sides, strict=True)
        return f"<tr>{''.join(f'<{tag}{side}>{escape(c)}</{tag}>' for c, side in pairs)}</tr>"

    wide = " wide" * (num_left > 1)
    body = "".join(line(row, "td") for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{wide.strip()}"><thead>{line(head, "th")}'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, body: str) -> str:
    """Return what is folded away until it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def lines(texts: Sequence[str]) -> str:
    """Return a list of sentences."""
    return f'<ul class="dim">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'


def legend(colours: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Return names, each beside its colour."""
    items = (
        f'<li><i style="background:rgb{tuple(map(int, colour))}"></i> {escape(name)}</li>'
        for name, colour in colours
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def beside(figures: Iterable[str]) -> str:
    """Return figures side by side, as many as fit; "" where there is none."""
    body = "".join(figures)
    return f'<div class="charts">{body}</div>' if body else ""


def data_url(image: Image.Image, kind: str, **options: int) -> str:
    """Return a picture as the address of itself; `kind` and `options` are Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
