"""What mkdocs fills in while it builds the site, and a last look at what the pages load.

- config.md: the option tables are those of the schema.
- `<!-- generated: commands -->`: what every command prints with --help.
- `<!-- generated: NAME.ipynb, ... -->`: the cells of a notebook in the page's folder.
- Short code in a line of text is not broken.
"""

import importlib
import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

COMMANDS_GO_HERE = "<!-- generated: commands -->"
NOTEBOOK_GOES_HERE = re.compile(r"<!-- generated: (\w+\.ipynb), .*-->")
SHORT = re.compile(r"<code>([^<]{1,24})</code>")  # in one line on phones, too: site.css
OPTIONS = "\n## DATA\n"  # the first heading of the tables in config.md
SUBCOMMANDS = {"prepare": ("custom", "pack")}
# what a browser fetches without being asked: element -> attribute
FETCHED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "link": "href",
}
FETCHING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill a page in."""
    if page.file.src_uri == "config.md":
        from stripseg.config.schema import reference

        before, found, _ = markdown.partition(OPTIONS)
        if not found:
            raise ValueError("config.md: has no heading '## DATA' where the option tables begin")
        return f"{before}\n{reference()}"
    folder = Path(page.file.abs_src_path).parent
    markdown = NOTEBOOK_GOES_HERE.sub(lambda match: cells_of(folder / match[1]), markdown)
    if COMMANDS_GO_HERE not in markdown:
        return markdown
    return markdown.replace(COMMANDS_GO_HERE, command_reference())


def on_page_content(html: str, **_: Any) -> str:
    """Mark short code, which a browser would break behind `--`."""
    return SHORT.sub(r'<code class="short">\1</code>', html)


def cells_of(notebook: Path) -> str:
    """The cells of a notebook in Markdown, without its title, which is the page's."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [output_of(output) for output in cell.get("outputs", [])]
    return re.sub(r"\A# .*\n", "", "\n\n".join(parts))


def output_of(output: dict[str, Any]) -> str:
    """The picture, or else the text, of one output of a notebook's cell, in Markdown."""
    shown = output.get("data", {})
    if "image/png" in shown:
        picture = "".join(shown["image/png"]).replace("\n", "")
        return f'<img alt="output" src="data:image/png;base64,{picture}">'
    text = "".join(output.get("text") or shown.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```"


def command_reference() -> str:
    """Every command and what it prints with --help, in Markdown."""
    from stripseg.tool.main import COMMANDS

    parts = []
    for group, commands in COMMANDS.items():
        parts.append(f"## {group.capitalize()}")
        for name in commands:
            for words in ([name], *([name, sub] for sub in SUBCOMMANDS.get(name, ()))):
                parts.append(f"### stripseg {' '.join(words)}")
                parts.append(f"```text\n{help_of(words).strip()}\n```")
    return "\n\n".join(parts)


def help_of(words: Sequence[str]) -> str:
    """What `stripseg WORDS --help` prints, 96 columns wide."""
    from stripseg.tool.main import MODULES

    os.environ["COLUMNS"] = "96"
    module = importlib.import_module(f"stripseg.tool.{MODULES[words[0]]}")
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        module.main([*words[1:], "--help"])
    return printed.getvalue()


class Fetched(HTMLParser):
    """Collects the addresses that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and not FETCHING_LINKS & set((given.get("rel") or "").split()):
            return
        address = given.get(FETCHED.get(tag, ""))
        if address:
            self.addresses.append(address)


def on_post_build(*, config: Any, **_: Any) -> None:
    """Check that the site asks no other host for anything.

    Raises:
        ValueError: a page or style sheet does; the message names it.
    """
    site = Path(config.site_dir)
    wrong = []
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            parser = Fetched()
            parser.feed(text)
            addresses = parser.addresses
        else:
            addresses = re.findall(r"""(?:url\(|@import\s)\s*["']?([^"')\s]+)""", text)
        foreign = [a for a in addresses if a.startswith(("//", "http:", "https:"))]
        wrong += [f"{path.relative_to(site)}: {address}" for address in foreign]
    if wrong:
        raise ValueError("the site would ask other hosts: " + "; ".join(wrong))
