"""What holds of the source files themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.commanded import ROOT


def global_names(module: ast.Module) -> set[str]:
    """What a module defines or imports."""
    found: set[str] = set()
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            found.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found |= {name for target in targets for name in variables(target)}
    return found


def variables(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def shadowing(path: Path) -> Iterator[str]:
    module = ast.parse(path.read_text(encoding="utf-8"))
    names = global_names(module)
    for node in ast.walk(module):
        if isinstance(node, ast.comprehension):
            for name in sorted(variables(node.target) & names):
                yield f"{path.relative_to(ROOT)}:{node.target.lineno}: {name}"


def test_no_variable_of_a_comprehension_has_the_name_of_something_in_its_module():
    """The first releases of Python 3.12 take the module's for an unset local one, where one function uses both."""
    paths = sorted(path for part in ("heal", "scripts", "tests") for path in (ROOT / part).rglob("*.py"))
    assert len(paths) > 300
    assert [found for path in paths for found in shadowing(path)] == []
