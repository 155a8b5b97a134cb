"""Reads YAML without guessing types: a scalar stays the characters that were typed, its key says the type."""

import codecs
import re
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError
from yaml.parser import ParserError
from yaml.reader import ReaderError
from yaml.scanner import ScannerError

from heal.errors import UserError

Settings = dict[str, Any]  # values as YAML has them, nested or by dotted key: nothing is known of them yet

_NULLS = ("", "~", "null", "Null", "NULL")
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_NOT_UTF8 = {  # by the bytes that a file begins with; the longer ones first, as one begins with another
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


_SURROGATE = re.compile("[\ud800-\udfff]")
_COMMENT = re.compile(r"[ \t]+(#[^\n\0]*)")
_NEXT_LINE = re.compile(r"[ \t]*\n([ \t]*)(#[^\s#\0][^\n\0]*)")  # a comment does not begin like this, words may
_PROPERTY = re.compile(r"[&!](?!!)[^\s\0]*")  # but for `!!str`, which says that a text follows


class Plain(str):
    """A scalar without quotes, which may be a text, a number, a truth value or null: its key knows which.

    Attributes:
        line: where it is in its file, from 1; 0: from no file.
        before, after: what is written directly before and after it and is no part of it to YAML: an anchor or a tag,
            and a comment.
    """

    line = 0
    before = ""
    after = ""

    @property
    def is_null(self) -> bool:
        return self in _NULLS


class _Loader(yaml.SafeLoader):
    """Scalars without quotes are Plain; of YAML's implicit types only the merge key `<<` is left."""

    yaml_constructors: ClassVar[dict[str | None, Any]] = {}
    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("^<<$"))]}  # noqa: RUF012

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if half := _SURROGATE.search(str(value)):
            said = f"\\u{ord(half[0]):04x} is half of a character; write the character itself"
            raise ConstructorError(None, None, said, node.start_mark)
        if not isinstance(node, yaml.ScalarNode) or node.style is not None:
            return value
        plain, start, end = Plain(value), node.start_mark, node.end_mark
        plain.line = start.line + 1
        source = start.buffer
        assert isinstance(source, str)  # as `parse` gives the loader a text
        if found := _PROPERTY.match(source, start.pointer, end.pointer):
            plain.before = found[0]
        if found := _COMMENT.match(source, end.pointer):
            plain.after = found[1]
        elif found := _NEXT_LINE.match(source, end.pointer):
            line = source[source.rfind("\n", 0, start.pointer) + 1 : start.pointer]
            if len(found[1]) > len(line) - len(line.lstrip()):
                plain.after = found[2]
        return plain

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _refuse_duplicates(node, "", {}, ())
        return node


def _refuse_tag(loader: _Loader, node: yaml.Node) -> None:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    said = f"the tag {tag}: its key says the type of a value; leave the tag out, or put a text in quotes"
    raise ConstructorError(None, None, said, node.start_mark)


for _tag, _construct in {
    "str": _Loader.construct_scalar,
    "merge": _Loader.construct_scalar,  # `<<` where it is no key
    "seq": _Loader.construct_yaml_seq,
    "map": _Loader.construct_yaml_map,
}.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _construct)
_Loader.add_constructor(None, _refuse_tag)


def _refuse_duplicates(node: yaml.Node, name: str, lines: dict[str, int], above: tuple[yaml.Node, ...]) -> None:
    """Raises ConstructorError for a key that is there twice, nested or dotted, and for a node inside itself.

    Args:
        node: where to look, `name` in dotted form.
        lines: the lines, from 1, of the keys met so far that hold no mapping; those of `node` are added.
        above: the nodes that `node` is in.
    """
    if any(node is other for other in above):
        raise ConstructorError(None, None, f"'{name}' contains itself", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value, 1):
            _refuse_duplicates(entry, f"{name}[{number}]", lines, (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    sections: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConstructorError(None, None, "a key that is not a text", key.start_mark)
        inner = f"{name}.{key.value}" if name else key.value
        holder = sections if isinstance(value, yaml.MappingNode) else lines
        first, line = sections.get(inner, lines.get(inner)), key.start_mark.line + 1
        if first is not None:
            raise ConstructorError(None, None, f"'{inner}' is there twice, in lines {first} and {line}; keep one")
        holder[inner] = line
        _refuse_duplicates(value, inner, lines, (*above, node))


def parse(text: str) -> Any:
    """The content of a YAML text: scalar, list, mapping, or None where there is none.

    Raises:
        yaml.YAMLError: it is not YAML, has a tag such as !!int, or a key twice.
    """
    return yaml.load(text, _Loader)


def typed_text(text: str) -> str:
    """A text as it was typed on the command line; quotes around the whole of it are taken off as in YAML."""
    if not text:
        return text
    return parse(text) if _QUOTED.fullmatch(text) else Plain(text)


def refuse_cut(value: Any, where: str, prose: bool = False) -> None:
    """Raises UserError, which begins with `where`, for a text without quotes that YAML's signs took words from.

    A single word that is not `prose` may have an anchor, and a comment that begins as comments do, with `# `.
    """
    if not isinstance(value, Plain):
        return
    single = not prose and len(value.split()) == 1
    if value.before and not single:
        sign, words = "an anchor or a tag", value.before
    elif value.after and not (single and not value.after[1:2].strip()):
        sign, words = "a comment", value.after
    else:
        return
    raise UserError(
        f"{where}: in line {value.line}, YAML takes '{' '.join(words.split())}' for {sign} and not for a part of the "
        f"text; put the text in quotes{', or the comment on a line before it' if words == value.after else ''}"
    )


def read_yaml(path: Path) -> Settings:
    """The mapping in `path`, UTF-8 with or without a byte order mark; UserError when it is not one."""
    text = ""
    try:
        text = read_utf8(path)
        content = parse(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: another encoding
        raise UserError(f"{path}: not valid YAML: {_reason(error, text)}") from error
    if content is None or (isinstance(content, Plain) and content.is_null):
        return {}
    if not isinstance(content, dict):
        kind = "text" if isinstance(content, str) else type(content).__name__
        raise UserError(f"{path}: a mapping of keys was expected, not a {kind}")
    return content


def read_utf8(path: Path) -> str:
    """The text in `path`, UTF-8 with or without a byte order mark, whatever ends its lines.

    Raises:
        ValueError: it has another encoding, which is named if its first bytes tell it.
    """
    content = path.read_bytes()
    encoding = next((name for mark, name in _NOT_UTF8.items() if content.startswith(mark)), None)
    if encoding is None and len(content) > 1 and content[:2].count(0) == 1:
        encoding = "UTF-16"  # without a mark: every other byte of ASCII characters is zero
    if encoding:
        raise ValueError(f"the file is {encoding}; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, wrong = error.object.count(b"\n", 0, error.start) + 1, error.object[error.start]
        raise ValueError(f"line {line} is not UTF-8 (byte 0x{wrong:02x}); save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _reason(error: yaml.YAMLError | ValueError, text: str) -> str:
    """What is wrong and where, in one line."""
    if isinstance(error, ReaderError):
        number = text.count("\n", 0, error.position) + 1
        return f"line {number}: the control character U+{error.character:04X}; take it out, or write it as an escape"
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    if error.problem_mark is None:
        return str(error.problem)
    number, column = error.problem_mark.line, error.problem_mark.column
    line = [*text.split("\n"), ""][number]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"line {number + 1} is indented with a tab; YAML takes spaces only"
    if line[column : column + 1] == "\t":
        return f"line {number + 1}, column {column + 1}: a tab; YAML takes spaces only"
    problem = error.problem if error.context is None else f"{error.context}, {error.problem}"
    quotes = "; a text with special characters needs quotes" if isinstance(error, ScannerError | ParserError) else ""
    return f"line {number + 1}, column {column + 1}: {problem}{quotes}"


def flatten(tree: Settings, where: str, prefix: str = "") -> Settings:
    """A nested mapping as dotted keys."""
    flat: Settings = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, where, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
