"""What the site has beside docs/*.md: README as its first page, and the plots of results.md."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as index.md, and pictures of results under benchmarks/."""
    readme = re.sub(r"\]\(docs/", "](", (ROOT / "README.md").read_text())
    # pages call themselves docs/NAME.md, as they lie in a checkout
    files.append(File.generated(config, "index.md", content=re.sub(r"\[docs/", "[", readme)))
    for plot in (ROOT / "benchmarks" / "results").glob("*.png"):
        name = plot.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Let results.md find its plots, which lie outside of docs/ in a checkout."""
    return markdown.replace("](../benchmarks/", "](benchmarks/")
