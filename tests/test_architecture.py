"""The rules of docs/architecture.md, enforced on the source: layers, doors, what the command line may import, sizes."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "visionapps"
MODULE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 8
# What modules of cli may import before a verb runs.
CLI_TOP = ("errors", "files", "structures", "cli.table")


class Import(NamedTuple):
    """One import, wherever it stands in a module."""

    line: int
    target: str  # dotted
    at_start: bool  # runs when the module is imported


class Rules(NamedTuple):
    """The two blocks of the architecture page."""

    level: dict[str, int]  # of each part, 0 at the top
    doors: dict[str, frozenset[str]]  # parts that may import a heavy package


def read_rules(page: str) -> Rules:
    def block(name: str) -> list[str]:
        found = re.search(rf"^```{name}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        assert found, f"the page has no block {name}"
        return found[1].splitlines()

    level = {part: i for i, line in enumerate(block("layers")) for part in line.split()}
    doors = {name: frozenset(parts.split()) for name, parts in (line.split(":") for line in block("doors"))}
    return Rules(level, doors)


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a module, those in functions and under TYPE_CHECKING too, and import_module of a constant."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(root).parent.parts
    at_start = set(map(id, _run_at_import(tree)))
    for node in ast.walk(tree):
        start = id(node) in at_start
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # The names too: `from visionapps import masks` imports a part.
            yield from (Import(node.lineno, f"{module}.{alias.name}", start) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                yield Import(node.lineno, str(node.args[0].value), start)


def _run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes outside functions and outside `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)


def import_violations(root: Path, rules: Rules) -> list[str]:
    """Imports in root/visionapps that break a rule, as file:line: reason."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        own = _part(".".join(path.relative_to(root).with_suffix("").parts))
        if own and own not in rules.level:
            found.append(f"{path.relative_to(root)}: part {own} stands in no layer")
            continue
        for line, target, at_start in imports(path, root):
            reason = _reason(own, target, at_start, rules)
            if reason:
                found.append(f"{path.relative_to(root)}:{line}: {reason}")
    return sorted(set(found))


def _part(dotted: str) -> str | None:
    """The part that a module of the package belongs to; None for visionapps itself."""
    names = dotted.split(".")
    return names[1] if len(names) > 1 and names[1] != "__init__" else None


def _reason(own: str | None, target: str, at_start: bool, rules: Rules) -> str | None:
    top = target.split(".")[0]
    if top in rules.doors and own not in rules.doors[top]:
        return f"{own} imports {top}, whose doors are {', '.join(sorted(rules.doors[top]))}"
    part = _part(target) if top == PACKAGE else None
    if own == "cli" and at_start and not _light(target, rules):
        return f"{target} is imported at the top of a verb; import it inside run"
    if part is None or part == own or part not in rules.level:
        # Not in a layer: a name such as __version__; modules without a layer are found by themselves.
        return None
    if own is None:
        return f"visionapps itself imports {part}"
    if rules.level[part] == rules.level[own]:
        return f"{own} imports its neighbour {part}"
    if rules.level[part] < rules.level[own]:
        return f"{own} imports {part}, which stands above it"
    return None


def _light(target: str, rules: Rules) -> bool:
    top = target.split(".")[0]
    if top != PACKAGE:
        return top in sys.stdlib_module_names
    inner = target.removeprefix(f"{PACKAGE}.")
    return _part(target) not in rules.level or any(inner == t or inner.startswith(f"{t}.") for t in CLI_TOP)


def size_violations(root: Path) -> list[str]:
    """Modules and functions of root/visionapps over the limits of the house."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(root)
        if (lines := len(text.splitlines())) > MODULE_LINES:
            found.append(f"{name}: {lines} lines; {MODULE_LINES} are the most")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                found.append(f"{name}:{node.lineno}: {node.name} has {length} lines; {FUNCTION_LINES} are the most")
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(a.arg not in ("self", "cls") for a in arguments)
            if count > PARAMETERS:
                found.append(f"{name}:{node.lineno}: {node.name} has {count} parameters; {PARAMETERS} are the most")
    return found


@pytest.fixture(scope="module")
def rules() -> Rules:
    return read_rules((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def test_every_import_goes_down_the_layers_and_through_its_door(rules):
    assert import_violations(ROOT, rules) == []


def test_modules_and_functions_stay_small():
    assert size_violations(ROOT) == []


def test_the_page_names_the_layers_and_doors_that_the_house_stands_on(rules):
    assert next(iter(rules.level)) == "cli"
    assert list(rules.level)[-1] == "errors"
    assert rules.level["segmentation"] == rules.level["data"] < rules.level["losses"]
    assert rules.doors["lightning"] == {"training", "cli"}
    assert rules.doors["timm"] == {"backbones", "networks"}


PAGE = """
```layers
cli
upper
left right
errors
```

```doors
torch: right
```
"""


@pytest.mark.parametrize(
    ("place", "source", "expected"),
    [
        ("left/a.py", "from visionapps.errors import E", None),
        ("left/a.py", "from visionapps.left import b", None),
        ("left/a.py", "import numpy", None),
        ("right.py", "import torch.nn", None),
        ("__init__.py", "__version__ = '1'", None),
        ("left/a.py", "from visionapps import __version__", None),
        ("left/a.py", "import visionapps.upper", "1: left imports upper, which stands above it"),
        ("left/a.py", "from visionapps.upper.deep import x", "1: left imports upper, which stands above it"),
        ("left/a.py", "from visionapps import upper", "1: left imports upper, which stands above it"),
        ("left/a.py", "from .. import upper", "1: left imports upper, which stands above it"),
        ("left/a.py", "from ..upper import x", "1: left imports upper, which stands above it"),
        ("left/__init__.py", "from ..upper import x", "1: left imports upper, which stands above it"),
        ("left/a.py", "from . import b\nfrom .c import d", None),
        ("left/a.py", "def f():\n    from visionapps import upper", "2: left imports upper"),
        ("left/a.py", "if TYPE_CHECKING:\n    import visionapps.upper", "2: left imports upper"),
        ("left/a.py", "import importlib\nimportlib.import_module('visionapps.upper')", "2: left imports upper"),
        ("left/a.py", "import visionapps.right", "1: left imports its neighbour right"),
        ("errors.py", "import visionapps.left", "1: errors imports left, which stands above it"),
        ("left/a.py", "import torch", "1: left imports torch, whose doors are right"),
        ("left/a.py", "from torch.nn import functional", "1: left imports torch, whose doors are right"),
        ("left/a.py", "def f():\n    import torch", "2: left imports torch, whose doors are right"),
        ("upper.py", "try:\n    import torch\nexcept ImportError:\n    pass", "2: upper imports torch"),
        ("__init__.py", "from visionapps.errors import E", "1: visionapps itself imports errors"),
        ("__init__.py", "import torch", "1: None imports torch, whose doors are right"),
        ("attic.py", "x = 1", ": part attic stands in no layer"),
        ("attic/b.py", "x = 1", ": part attic stands in no layer"),
        ("cli/verb.py", "import argparse\nfrom visionapps.errors import E", None),
        ("cli/verb.py", "from visionapps.cli.table import render", None),
        ("cli/verb.py", "from visionapps import __version__", None),
        ("cli/verb.py", "def run():\n    import numpy, visionapps.upper", None),
        ("cli/verb.py", "if TYPE_CHECKING:\n    import visionapps.upper", None),
        ("cli/verb.py", "import numpy", "1: numpy is imported at the top of a verb; import it inside run"),
        ("cli/verb.py", "from visionapps import upper", "1: visionapps.upper is imported at the top of a verb"),
        ("cli/verb.py", "from visionapps.cli.other import x", "1: visionapps.cli.other.x is imported at the top"),
        ("cli/verb.py", "class A:\n    import yaml", "2: yaml is imported at the top of a verb"),
    ],
)
def test_the_rules_catch_what_they_forbid_and_nothing_else(tmp_path, place, source, expected):
    path = tmp_path / PACKAGE / place
    path.parent.mkdir(parents=True)
    path.write_text(source)
    found = import_violations(tmp_path, read_rules(PAGE))
    if expected is None:
        assert found == []
    else:
        (line,) = found
        assert line.startswith(f"{PACKAGE}/{place}")
        assert expected in line


def test_the_size_limits_catch_what_they_forbid_and_nothing_else(tmp_path):
    path = tmp_path / PACKAGE / "a.py"
    path.parent.mkdir()
    body = "\n".join(["    x = 1"] * (FUNCTION_LINES - 1))
    fits = f"def f(self, a, b, c, d, *, e, f, g, h):\n{body}\n"
    path.write_text(fits + "\n" * (MODULE_LINES - fits.count("\n")))
    assert size_violations(tmp_path) == []
    path.write_text(f"def f():\n{body}\n    x = 1\n")
    assert size_violations(tmp_path) == ["visionapps/a.py:1: f has 61 lines; 60 are the most"]
    path.write_text("x = 1\n" * (MODULE_LINES + 1))
    assert size_violations(tmp_path) == ["visionapps/a.py: 401 lines; 400 are the most"]
    path.write_text("class A:\n    async def f(self, a, b, c, d, e, f, *, g, h, i): ...\n")
    assert size_violations(tmp_path) == ["visionapps/a.py:2: f has 9 parameters; 8 are the most"]
