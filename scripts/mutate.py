"""Whether the tests notice changes of the numerical core: `python scripts/mutate.py [key=value ...]`."""

import ast
import hashlib
import importlib.abc
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

HELP = """usage: python scripts/mutate.py [key=value ...]

Changes one expression or statement of a module at a time (a mutant) and runs the module's tests: a mutant that no
test notices survives. Each mutant is compiled in a forked process; no file is changed. Writes OUT.json and OUT.txt.

  count=15           mutants of each module; 0: all
  seed=0             which ones are drawn; the same code gives the same mutants
  modules=a,b        only these of: {modules}
  out=mutation       where the results go
  only=survived      with OUT.json of an earlier run: only its survivors again"""

# Each part of the core: its files and its tests, the quickest first: a mutant's tests stop at the first failure.
MODULES = {
    "accumulator": (["heal/accumulator.py"], ["operator_norm", "accumulator", "merged_history", "healing"]),
    "barrier": (
        ["heal/healing/barrier.py", "heal/healing/aggregates.py", "heal/healing/divergences/kl_*.py"],
        ["barrier", "divergences", "trainer"],
    ),
    "divergence": (["heal/divergence.py"], ["divergence"]),
    "root": (["heal/dose/root.py"], ["root"]),
    "calibrate": (["heal/dose/calibrat*.py"], ["calibrate"]),
    "decoding": (["heal/decoding.py"], ["decoding", "loops"]),
    "filters": (["heal/generation/filters.py"], ["filters", "collect"]),
    "references": (["heal/healing/references.py"], ["references", "rows", "trainer"]),
    "run folder": (["heal/run/folder.py", "heal/run/manifest.py", "heal/run/files.py"], ["runfolder", "events"]),
    "stats": (["heal/evaluation/stats.py"], ["stats"]),
    "verdict": (["heal/evaluation/verdict.py"], ["verdict", "validity"]),
}

# Seconds that a mutant's tests may take: at least, and times those of the unchanged module.
SHORTEST, FACTOR = 30.0, 6.0

SWAPPED: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.Mod: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.MatMult: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}


@dataclass(frozen=True)
class Mutant:
    """One change: of which module and function, where, of what kind, from what to what."""

    module: str
    path: str
    function: str
    line: int
    kind: str
    before: str
    after: str
    occurrence: int  # among equal changes of the function

    @property
    def identity(self) -> str:
        """What stays the same when lines move."""
        return "|".join((self.module, self.function, self.kind, self.before, self.after, str(self.occurrence)))


@dataclass(frozen=True)
class Result:
    """What became of a mutant: `killed`, `survived` or `timeout`."""

    mutant: Mutant
    outcome: str
    seconds: float
    said: str


# A change waiting to be made: kind, the node that is shown, and what replaces it in its parent.
Change = tuple[str, ast.AST, ast.AST]


def changes(node: ast.AST) -> Iterator[Change]:
    """The changes that can be made to one node."""

    def edited(edit: Callable[[ast.AST], None]) -> ast.AST:
        new = _copy(node)
        edit(new)
        return new

    match node:
        case ast.Compare(ops=ops):
            for index, operator in enumerate(ops):
                if swapped := SWAPPED.get(type(operator)):
                    kind = "boundary" if isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE) else "comparison"
                    yield kind, node, edited(lambda new, i=index, op=swapped: new.ops.__setitem__(i, op()))
            if len(ops) == 1 and isinstance(ops[0], ast.Lt | ast.LtE | ast.Gt | ast.GtE):
                yield "comparison", node, ast.UnaryOp(ast.Not(), _copy(node))
        case ast.BinOp(op=ast.Div(), left=left, right=right) if _is_text(left) or _is_text(right):
            pass  # a path
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPPED:
            kind = "boolean" if isinstance(node, ast.BoolOp) else "arithmetic"
            yield kind, node, edited(lambda new: setattr(new, "op", SWAPPED[type(op)]()))
        case ast.AugAssign(op=op) if type(op) in SWAPPED:
            yield "arithmetic", node, edited(lambda new: setattr(new, "op", SWAPPED[type(op)]()))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield "boolean" if isinstance(node.op, ast.Not) else "arithmetic", node, _copy(operand)
        case ast.Constant(value=bool() as value):
            yield "constant", node, ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield "constant", node, ast.Constant(value + 1 if isinstance(value, int) else value * 2 or 1.0)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            if not isinstance(test, ast.Compare | ast.UnaryOp):
                yield "condition", test, edited(lambda new: setattr(new, "test", ast.UnaryOp(ast.Not(), _copy(test))))
        case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
            yield "return", node, ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Yield()):
            yield "removal", node, ast.Pass()
        case ast.Continue():
            yield "removal", node, ast.Break()
        case ast.Raise():
            yield "removal", node, ast.Pass()
    match node:
        case ast.AugAssign():
            yield "removal", node, ast.Pass()
        case ast.Call(func=ast.Name(id=name)) if name in RENAMED:
            yield "extremum", node, edited(lambda new: setattr(new.func, "id", RENAMED[name]))
        case ast.Call(func=ast.Attribute(attr=name)) if name in RENAMED:
            yield "extremum", node, edited(lambda new: setattr(new.func, "attr", RENAMED[name]))
        case ast.Call(args=[first, second, *_]) if not isinstance(first, ast.Starred):
            if ast.dump(first) != ast.dump(second) and not isinstance(second, ast.Starred):
                yield "arguments", node, edited(lambda new: new.args.__setitem__(slice(2), new.args[1::-1]))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _copy(node: ast.AST) -> ast.AST:
    fields = {}
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            value = [_copy(item) if isinstance(item, ast.AST) else item for item in value]
        fields[name] = _copy(value) if isinstance(value, ast.AST) else value
    return ast.copy_location(type(node)(**fields), node)


def mutants(module: str, path: str) -> list[tuple[Mutant, ast.Module]]:
    """Every mutant of a file, with its syntax tree."""
    source = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(source)
    made: list[tuple[Mutant, ast.Module]] = []
    seen: Counter[tuple[str, ...]] = Counter()

    def visit(node: ast.AST, function: str) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
                continue
            if isinstance(node, ast.Raise | ast.JoinedStr) and name in ("exc", "cause", "values"):
                continue  # what an error says
            children = value if isinstance(value, list) else [value]
            for index, child in enumerate(children):
                if not isinstance(child, ast.AST) or _is_type_checking(child):
                    continue
                inner = function
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    inner = f"{function}.{child.name}" if function else child.name
                for kind, shown, new in changes(child):
                    before, after = (_line(x) for x in (shown, new.test if kind == "condition" else new))
                    key = (inner, kind, before, after)
                    seen[key] += 1
                    mutant = Mutant(module, path, inner, child.lineno, kind, before, after, seen[key])
                    made.append((mutant, _replaced(tree, node, name, index if value is children else None, new)))
                visit(child, inner)

    visit(tree, "")
    return made


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _line(node: ast.AST) -> str:
    return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())


def _replaced(tree: ast.Module, parent: ast.AST, name: str, index: int | None, new: ast.AST) -> ast.Module:
    """A copy of `tree` in which one child of `parent` is `new`."""
    old = getattr(parent, name) if index is None else getattr(parent, name)[index]

    def copy(node: ast.AST) -> ast.AST:
        if node is old:
            return ast.copy_location(new, old)
        fields = {}
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                fields[field] = [copy(item) if isinstance(item, ast.AST) else item for item in value]
            else:
                fields[field] = copy(value) if isinstance(value, ast.AST) else value
        return ast.copy_location(type(node)(**fields), node)

    result = copy(tree)
    assert isinstance(result, ast.Module)
    return ast.fix_missing_locations(result)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a syntax tree instead of its file."""

    def __init__(self, path: str, tree: ast.Module):
        self.path, self.tree = path, tree
        self.name = path.removesuffix(".py").replace("/", ".")

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, ROOT / self.path, loader=self)

    def exec_module(self, module) -> None:
        exec(compile(self.tree, str(ROOT / self.path), "exec"), module.__dict__)


def warm() -> None:
    """Imports what the tests import that is not ours, once for all mutants."""
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import accelerate  # noqa: F401
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import torch
    import transformers
    import trl

    torch.set_num_threads(1)
    for name in ("Llama", "Qwen2", "Qwen3", "OPT", "Gemma2", "Gemma3"):
        getattr(transformers, f"{name}ForCausalLM")
    _ = trl.SFTTrainer, transformers.Trainer, transformers.PreTrainedTokenizerFast
    assert not any(name == "heal" or name.startswith("heal.") for name in sys.modules)


def run(path: str | None, tree: ast.Module | None, tests: Sequence[str], seconds: float) -> tuple[str, float, str]:
    """Runs `tests` in a forked process, with `tree` as the module in `path`; outcome, seconds, the last failure."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            status = 3
            try:
                os.setsid()
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                if path is not None and tree is not None:
                    sys.meta_path.insert(0, Finder(path, tree))
                import pytest

                options = ["-x", "-q", "-n0", "-p", "no:cacheprovider", "--no-header", "--durations=0", "--tb=line"]
                status = int(pytest.main([*options, f"--rootdir={ROOT}", *tests]))
            finally:
                sys.stdout.flush()
                os._exit(status)
        outcome = ""
        while not outcome:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                outcome = "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
            elif time.monotonic() - start > seconds:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                outcome = "timeout"
            else:
                time.sleep(0.02)
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    said = next((line for line in reversed(lines) if line.startswith(("FAILED", "ERROR"))), "")
    return outcome, time.monotonic() - start, said


def chosen(module: str, paths: Sequence[str], count: int, seed: int) -> list[tuple[Mutant, ast.Module]]:
    """`count` mutants of a part; each has a place of its own in the draw, so that other code changes it little."""

    def place(pair: tuple[Mutant, ast.Module]) -> str:
        return hashlib.sha256(f"{seed}|{pair[0].identity}".encode()).hexdigest()

    drawn = sorted((pair for path in paths for pair in mutants(module, path)), key=place)
    return sorted(drawn[: count or None], key=lambda pair: (pair[0].path, pair[0].line))


def table(results: Sequence[Result]) -> str:
    """Killed, survived and timed out by module, and every survivor."""
    lines = [f"{'module':<12} {'mutants':>7} {'killed':>7} {'timeout':>7} {'survived':>8} {'score':>6}"]
    modules = list(dict.fromkeys(result.mutant.module for result in results))
    for name in [*modules, "all"]:
        mine = [result for result in results if name in ("all", result.mutant.module)]
        by = Counter(result.outcome for result in mine)
        score = 1 - by["survived"] / len(mine) if mine else 0.0
        lines.append(
            f"{name:<12} {len(mine):>7} {by['killed']:>7} {by['timeout']:>7} {by['survived']:>8} {score:>6.1%}"
        )
    lines += ["", "survivors"]
    for result in results:
        if result.outcome == "survived":
            m = result.mutant
            lines.append(f"  {m.path}:{m.line} {m.function} [{m.kind}] {m.before} -> {m.after}")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> None:
    """Reads the words, runs the mutants, writes what came out."""
    if {"--help", "-h"} & set(words):
        return print(HELP.format(modules=", ".join(MODULES)))
    given = dict(word.split("=", 1) for word in words)
    if unknown := given.keys() - {"count", "seed", "modules", "out", "only"}:
        sys.exit(f"mutate: unknown key {', '.join(unknown)}; --help lists the keys")
    count, seed, out = int(given.get("count", 15)), int(given.get("seed", 0)), Path(given.get("out", "mutation"))
    names = given["modules"].split(",") if "modules" in given else list(MODULES)
    again: set[str] | None = None
    if "only" in given:
        earlier = json.loads(out.with_suffix(".json").read_text())
        again = {Mutant(**row["mutant"]).identity for row in earlier if row["outcome"] == given["only"]}
        out = out.with_name(f"{out.name}_{given['only']}")
    os.chdir(ROOT)
    warm()
    results: list[Result] = []
    for name in names:
        patterns, stems = MODULES[name]
        paths = sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))
        tests = [f"tests/test_{stem}.py" for stem in stems if (ROOT / f"tests/test_{stem}.py").is_file()]
        pairs = chosen(name, paths, count, seed)
        pairs = [pair for pair in pairs if again is None or pair[0].identity in again]
        if not pairs:
            continue
        outcome, seconds, said = run(None, None, tests, 1e9)
        print(f"{name}: {len(pairs)} mutants of {', '.join(paths)}; the tests take {seconds:.0f} s", flush=True)
        if outcome != "survived":
            sys.exit(f"mutate: the tests of {name} fail as they are: {said}")
        for mutant, tree in pairs:
            outcome, taken, said = run(mutant.path, tree, tests, max(SHORTEST, FACTOR * seconds))
            results.append(Result(mutant, outcome, round(taken, 2), said))
            if outcome == "survived":
                print(f"  survived: line {mutant.line} [{mutant.kind}] {mutant.before} -> {mutant.after}", flush=True)
            out.with_suffix(".json").write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
            out.with_suffix(".txt").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
