"""The pages of `make docs` that no file of docs/ holds: from README and its like, `--help`, docstrings and error lines.

A hook of mkdocs (mkdocs.yml). A link to a file of the repository that is no page becomes its text; one to a file that
does not exist stops the build.
"""

import ast
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import heal  # noqa: E402
from heal.choices import names  # noqa: E402
from heal.cli import COMMANDS, main  # noqa: E402
from heal.keys import keys  # noqa: E402

COPIED = {"index.md": ROOT / "README.md", "contributing.md": ROOT / "CONTRIBUTING.md",
          "changelog.md": ROOT / "CHANGELOG.md"}  # fmt: skip
LINK = re.compile(r"(!?)\[([^\]\[]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_ENTRY = re.compile(r"(\*{0,2}[\w., ]+?)(?: \(.*?\))?: (.*)")


def on_config(config: Any) -> Any:
    """Puts every file of docs/ that the contents do not name among the studies."""
    listed = re.findall(r"[\w-]+\.md", str(config.nav))
    (studies,) = (part["Studies"] for part in config.nav if "Studies" in part)
    studies += sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name not in listed)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages."""
    from mkdocs.structure.files import File

    texts = {page: source.read_text(encoding="utf-8") for page, source in COPIED.items()}
    for page, text in (texts | generated()).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Makes links go to pages wherever their target is one."""
    return linked(markdown, page.file.src_uri)


def generated() -> dict[str, str]:
    """What is written from the code, by page."""
    return {"commands.md": commands(), "keys.md": recipe_keys(), "api.md": api(), "errors.md": errors()}


def linked(markdown: str, page: str) -> str:
    """A page's text with its links as the site has them.

    Raises:
        FileNotFoundError: a link to a file that is not there.
    """
    source = COPIED.get(page, ROOT / "docs" / page)
    pages = {path: name for name, path in COPIED.items()}

    def moved(link: re.Match[str]) -> str:
        image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = (source.parent / target).resolve()
        if path.parent == ROOT / "docs" and path.name in generated():
            return link[0]
        if not path.exists():
            raise FileNotFoundError(f"{source}: a link to {target}, which does not exist")
        place = pages.get(path) or (os.path.relpath(path, ROOT / "docs") if _published(path) else None)
        return text if place is None else f"{image}[{text}]({place}{anchor})"

    return outside_code(markdown, lambda text: LINK.sub(moved, text))


def outside_code(markdown: str, change: Any) -> str:
    """`markdown` with everything but its fenced blocks changed."""
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _published(path: Path) -> bool:
    return ROOT / "docs" in path.parents and path.is_file() and path.suffix != ".ipynb"


@cache
def help_of(command: str) -> str:
    """What `heal COMMAND --help` prints."""
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        main([command, "--help"])
    return out.getvalue()


@cache
def commands() -> str:
    parts = ["# Commands\n\nWhat `heal COMMAND --help` prints."]
    for name in names(COMMANDS):
        command = name.replace("_", "-")
        parts.append(f"## heal {command}\n\n```text\n{help_of(command)}```")
    return "\n\n".join(parts) + "\n"


@cache
def recipe_keys() -> str:
    lines = ["# Keys of the recipe", "", "Each can be set in a recipe or as `key=value` on the command line."]
    section = None
    for item in keys():
        head = item.name.rpartition(".")[0]
        if head != section:
            lines += [
                "",
                f"## {head or 'the run as a whole'}",
                "",
                "| key | default | meaning |",
                "| --- | --- | --- |",
            ]
            section = head
        meaning = "<br>".join([item.help, *(f"`{name}`: {text}" for name, text in item.meanings.items())])
        cells = (f"`{item.name}`", f"`{item.shown_default}`", meaning)
        lines.append("| " + " | ".join(re.sub(r"<(?!br>)", "&lt;", cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


@cache
def api() -> str:
    parts = ["# Python", "What `import heal` gives; [quickstart.md](quickstart.md) shows it at work."]
    for name in heal.__all__:
        thing = getattr(heal, name)
        kind = "class " if inspect.isclass(thing) else ""
        parts += [f"## {name}", f"```text\n{kind}heal.{name}{_signature(thing)}\n```", _prose(inspect.getdoc(thing))]
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if not member.startswith("_") and inspect.isfunction(function) and function.__doc__:
                    signature = "" if isinstance(value, property) else _signature(function)
                    parts += [f"### {name}.{member}", f"```text\n{member}{signature}\n```",
                              _prose(inspect.getdoc(function))]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _signature(thing: Any) -> str:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return "(text)"
    signature = inspect.signature(thing)
    empty = inspect.Parameter.empty
    bare = [item.replace(annotation=empty) for item in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return text if len(text) < 100 else text.replace("(", "(\n    ", 1).replace(", ", ",\n    ")


def _prose(docstring: str | None) -> str:
    """A docstring as Markdown: its sections as lists."""
    lines: list[str] = []
    for line in (docstring or "").splitlines():
        entry = _ENTRY.fullmatch(line.strip())
        if re.fullmatch(r"[A-Z][\w, ]*:", line):
            lines += ["", f"**{line.removesuffix(':')}**", ""]
        elif line.startswith("    ") and not line.startswith("     ") and entry:
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(line if not line.startswith("    ") else f"  {line.strip()}")
    return re.sub(r"<(?=\w)", "&lt;", "\n".join(lines))


@cache
def errors() -> str:
    lines = [
        "# Error lines",
        "",
        "Every line that heal refuses or fails with, by where it comes from; `{...}` stands for what it names. What to "
        "do is in the line itself; [troubleshooting.md](troubleshooting.md) explains the frequent ones.",
    ]
    for path in sorted((ROOT / "heal").rglob("*.py")):
        found = sorted(set(_said(path)))
        if found:
            lines += ["", f"## {path.relative_to(ROOT)}", "", *(f"- `{line}`" for line in found)]
    return "\n".join(lines) + "\n"


def _said(path: Path) -> Iterator[str]:
    """The text of each error for users that a file makes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UserError", "RoundError") and node.args:
            text = " ".join(text_of(node.args[0]).split()).replace("`", "'")
            if re.search(r"\w{3}", re.sub(r"\{.*?\}", "", text)):
                yield text


def text_of(node: ast.expr) -> str:
    """An expression of text with its unknown parts in braces."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    value = node.value if isinstance(node, ast.FormattedValue) else node
    return "{" + (ast.unparse(value) if isinstance(value, ast.Name | ast.Attribute) else "...") + "}"
