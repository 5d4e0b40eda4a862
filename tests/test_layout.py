"""The plan of the house holds: who imports whom, who knows the tasks, what loads when, what is public.

Each check is a function over source text and is shown a planted violation that it must catch.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "finetune"

# A module imports only from modules that stand before it. The last name of a line is the module of the plan; those
# before it were split off from it. A new module gets its place here.
PLAN = """
errors
recipe.yaml_lines recipe.types recipe.blocks recipe.tables recipe.model recipe.keys recipe.rules
recipe.messages recipe.overrides recipe
record.parts record.analysis record
events signals heartbeat fresh logins store rows
features
bootstrap scoring scoring.names scoring.labels scoring.tags scoring.texts scoring.formulas scoring.modules metrics
analysis.calibration analysis.hard_rows analysis.slices analysis.labels analysis.tags
analysis.texts analysis.thresholds analysis.perturb analysis.directional analysis
inference inference.question_answering inference.text_to_text
tasks.encoding tasks.base
tasks.sequence
tasks.tagging tasks.words tasks.windows tasks.grouping tasks.gold tasks.tag_facts tasks.tagger tasks.token
tasks.answers tasks.span tasks.decoding tasks.text_facts tasks.seq2seq tasks
data.problems data.readers data.conll data.values data.columns data.parsing data.files data.hub data.splits data
audit.findings audit.labels audit.gold_answers
audit.near_duplicates audit.overlaps audit.distribution audit.scripts audit.survey audit.wording
audit
dropout attention masking unpadded first_position seen_vocabulary embedding_gradient
decoder pretrained adapter lora model
batching
optim
checkpoint
carbon.meter carbon.emissions carbon
tracking.trackers tracking
loop
card.public_names card.figures card.markdown card.pictures card.rules card.metadata card.weaknesses
card.wording card.training card
report.blocks report.curves report.drawing report.charts report.results report.running report.failing
report.auditing report.making report.page
report.pictures report
publish.stranger publish.verification publish.allowlist publish.courier publish
folder hardware evaluation preparation tryout behaviour session job callbacks finish services run
efficiency mislabelling assessment checking prediction
comparison.predictions comparison.measures comparison
shipped tables console cli
finetune
__main__
"""
ORDER = PLAN.split()

TASKS = {"sequence", "token", "span", "seq2seq"}
KNOW_TASKS = ("recipe", "tasks", "inference")
OTHER_MEANINGS = {("publish.allowlist", "token")}  # the file in which the Hub's login store keeps a token

HEAVY = {
    "accelerate", "codecarbon", "datasets", "evaluate", "matplotlib", "numpy", "pandas", "peft", "pyarrow", "scipy",
    "sklearn", "torch", "transformers", "wandb",
}  # fmt: skip


def module_name(path: Path) -> str:
    """`tasks.base` for finetune/tasks/base.py; `finetune` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "finetune"


SOURCES = {module_name(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


# ---------------------------------------- import order


def own_imports(node: ast.stmt | ast.AST, module: str, known: set[str]) -> set[str]:
    """Modules of ours that one import statement names."""
    if isinstance(node, ast.Import):
        return {name.name.removeprefix("finetune.") for name in node.names if name.name.split(".")[0] == "finetune"}
    if not isinstance(node, ast.ImportFrom):
        return set()
    base = node.module or ""
    if node.level:
        above = f"finetune.{module}".split(".")[: -node.level]
        base = ".".join([*above, *filter(None, [node.module])])
    if base.split(".")[0] != "finetune":
        return set()
    inside = base.removeprefix("finetune").removeprefix(".")
    named = {f"{inside}.{name.name}".removeprefix(".") for name in node.names}
    return {name if name in known else inside or "finetune" for name in named}


def order_violations(sources: dict[str, str], order: list[str]) -> list[str]:
    """Modules without a place, and imports of what stands later; imports inside functions count too."""
    known = {*sources, *order}
    found = [f"{module}: not in ORDER" for module in sources if module not in order]
    for module in order:
        for node in ast.walk(ast.parse(sources.get(module, ""))):
            named = sorted(own_imports(node, module, known) - {module})
            found += [f"{module} imports {target}" for target in named if target not in above(module, order)]
    return found


def above(module: str, order: list[str]) -> list[str]:
    """The modules that stand before one."""
    return order[: order.index(module)]


def test_modules_import_only_from_above():
    assert order_violations(SOURCES, ORDER) == []


@pytest.mark.parametrize(
    "line",
    [
        "import finetune.c",
        "from finetune import c",
        "from finetune.c import name",
        "from . import c",
        "from .c import name",
        "def late():\n    from finetune.c import name",
        "if TYPE_CHECKING:\n    from finetune.c import name",
        "from finetune import Recipe",
    ],
)
def test_import_from_below_is_caught(line: str):
    order = ["a", "b", "c", "finetune"]
    assert order_violations({"a": "", "b": "from finetune import a", "c": "import finetune.b"}, order) == []
    [found] = order_violations({"a": "", "b": line, "c": ""}, order)
    assert found in ("b imports c", "b imports finetune")


def test_packages_are_resolved():
    order = ["tasks.base", "tasks.x", "tasks"]
    fine = {"tasks.base": "", "tasks.x": "from finetune.tasks.base import Task\nfrom .base import Task", "tasks": ""}
    assert order_violations(fine | {"tasks": "from finetune.tasks import x"}, order) == []
    assert order_violations(fine | {"tasks.base": "from . import x"}, order) == ["tasks.base imports tasks.x"]


def test_module_without_a_place_is_caught():
    assert order_violations({"a": "", "helpers": ""}, ["a"]) == ["helpers: not in ORDER"]


# ---------------------------------------- task words


def task_words(source: str) -> set[str]:
    """Task words among the string constants; docstrings and other bare strings do not count."""
    tree = ast.parse(source)
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in bare and node.value in TASKS
    }


def knows_tasks(module: str) -> bool:
    """Whether a module may name tasks: the recipe, with what was split off from it, the tasks, their inference."""
    first = module.split(".")[0]
    return first in KNOW_TASKS


def test_only_recipe_tasks_and_inference_name_tasks():
    found = {
        (module, word) for module, source in SOURCES.items() if not knows_tasks(module) for word in task_words(source)
    }
    assert found - OTHER_MEANINGS == set()


@pytest.mark.parametrize(
    "source",
    [
        'kind = "token"',
        'if task == "span": pass',
        'TABLE = {"seq2seq": 1}',
        'def f(task="sequence"): ...',
        'match task:\n    case "token": pass',
        'x: Literal["span"]',
    ],
)
def test_task_word_is_caught(source: str):
    assert len(task_words(source)) == 1


def test_docstrings_and_other_words_are_not_task_words():
    assert task_words('"""token"""\ndef f():\n    """span"""\n    return "tokens", "a span", f(token=1)') == set()


def test_who_may_name_tasks():
    assert all(knows_tasks(name) for name in ("recipe", "recipe.tables", "tasks.token", "inference.span"))
    assert not any(knows_tasks(name) for name in ("loop", "card", "recipes", "overrides"))


# ---------------------------------------- code of others


def trusting(source: str) -> int:
    """How often `trust_remote_code` is given as anything but False."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found.append(node.value)
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found += [v for k, v in pairs if isinstance(k, ast.Constant) and k.value == "trust_remote_code"]
    return sum(not (isinstance(value, ast.Constant) and value.value is False) for value in found)


def test_only_the_process_that_verifies_an_export_may_trust_code():
    """And only where the export holds a module that this package put there; see test_verification."""
    found = {module: count for module, source in SOURCES.items() if (count := trusting(source))}
    assert found == {"publish.stranger": 1, "publish.verification": 1}


@pytest.mark.parametrize(
    "source", ["f(trust_remote_code=True)", 'A = {"trust_remote_code": True}', "f(trust_remote_code=asked)"]
)
def test_trust_is_caught(source: str):
    assert trusting(source) == 1
    assert trusting(source.replace("True", "False").replace("asked", "False")) == 0


# ---------------------------------------- what loads when


def loaded_heavy(statement: str, path: Path) -> set[str]:
    """Heavy packages that a fresh interpreter has loaded after `statement`."""
    program = f"{statement}\nimport sys\nprint(*({HEAVY!r} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60, env=environment
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["errors", "record", "recipe"])
def test_recipe_and_record_load_nothing_heavy(module: str):
    assert loaded_heavy(f"import finetune.{module}", PACKAGE.parent) == set()


def test_heavy_import_is_caught(tmp_path: Path):
    (tmp_path / "torch.py").write_text("", encoding="utf-8")
    (tmp_path / "innocent.py").write_text("import torch", encoding="utf-8")
    assert loaded_heavy("import innocent", tmp_path) == {"torch"}


def eager_nodes(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: not in functions, not under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from eager_nodes(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from eager_nodes(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from eager_nodes(handler.body)


def with_parents(module: str) -> set[str]:
    """A module and the packages that importing it runs."""
    parts = module.split(".")
    return {"finetune", *(".".join(parts[: end + 1]) for end in range(len(parts)))}


def eager_heavy(start: str, sources: dict[str, str]) -> list[str]:
    """`module: package` for each heavy import that importing `start` runs, in any module of ours it reaches."""
    todo, seen, found = with_parents(start), set(), []
    while todo:
        module = todo.pop()
        seen.add(module)
        for node in eager_nodes(ast.parse(sources.get(module, "")).body):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found += [f"{module}: {name}" for name in names if name.split(".")[0] in HEAVY]
            for target in own_imports(node, module, set(sources)):
                todo |= with_parents(target) - seen
    return sorted(found)


def test_help_needs_nothing_heavy():
    assert eager_heavy("cli", SOURCES) == []


@pytest.mark.parametrize(
    "low",
    [
        "import torch",
        "from transformers import AutoModel",
        "import json, pyarrow.parquet",
        "try:\n    import torch\nexcept ImportError:\n    pass",
        "class A:\n    import torch",
        "if not TYPE_CHECKING_OFF:\n    pass\nelse:\n    import torch",
    ],
)
def test_heavy_import_behind_the_command_line_is_caught(low: str):
    sources = {"finetune": "", "cli": "from finetune.sub import low", "sub": "", "sub.low": low}
    assert len(eager_heavy("cli", sources)) == 1
    assert len(eager_heavy("cli", {"finetune": low, "cli": ""})) == 1


def test_late_heavy_imports_are_fine():
    late = "def f():\n    import torch\nif TYPE_CHECKING:\n    import torch"
    assert eager_heavy("cli", {"finetune": "", "cli": late}) == []


# ---------------------------------------- public names


def isort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, each by code point (ruff RUF022)."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2), name


def defined(tree: ast.Module) -> set[str]:
    """Names bound at the top of a module."""
    names: set[str] = set()
    for node in eager_nodes(tree.body):
        for inner in ast.walk(node) if isinstance(node, ast.Assign | ast.AnnAssign | ast.For | ast.With) else []:
            names |= {inner.id} if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store) else set()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(name.asname or name.name).split(".")[0] for name in node.names}
        names |= {node.name} if isinstance(node, ast.ClassDef) else set()
    return names | {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def public_problems(source: str) -> list[str]:
    """What is wrong with `__all__`: missing, not sorted, or naming what does not exist.

    Empty modules need none, nor do programs (`if __name__ == "__main__"`) that nothing imports.
    """
    tree = ast.parse(source)
    if not [node for node in tree.body if not isinstance(node, ast.Expr) and not is_future(node)]:
        return []
    for node in tree.body:
        bound = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if "__all__" in map(ast.unparse, bound) and node.value is not None:
            names = list(ast.literal_eval(node.value))
            problems = [] if names == sorted(set(names), key=isort_key) else ["__all__ is not sorted"]
            return problems + [f"{name} does not exist" for name in names if name not in defined(tree)]
    is_program = isinstance(tree.body[-1], ast.If) and "__name__" in ast.unparse(tree.body[-1].test)
    return [] if is_program else ["no __all__"]


def is_future(node: ast.stmt) -> bool:
    """Whether a statement is `from __future__ import ...`."""
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


@pytest.mark.parametrize("module", sorted({*SOURCES} - {"__main__"}))
def test_public_names_are_listed_and_sorted(module: str):
    assert public_problems(SOURCES[module]) == []


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        ("x = 1", ["no __all__"]),
        ("def f(): ...", ["no __all__"]),
        ("__all__ = ['b', 'a']\na = b = 1", ["__all__ is not sorted"]),
        ("__all__ = ['a', 'a']\na = 1", ["__all__ is not sorted"]),
        ("__all__ = ['A', 'BB']\nclass A: ...\nBB = 1", ["__all__ is not sorted"]),
        ("__all__ = ['a']\ndef f():\n    a = 1", ["a does not exist"]),
        ('"""Only words."""\nfrom __future__ import annotations', []),
        ("__all__: list[str] = []", []),
        ("def main(): ...\nif __name__ == '__main__':\n    main()", []),
        ("if x == '__main__':\n    main()", ["no __all__"]),
        (
            "__all__ = ['BB', 'A', 'a', 'b', 'c']\nfrom x import a as b, c\nclass A: ...\nBB: int = 1\ndef a(): ...",
            [],
        ),
    ],
)
def test_wrong_public_names_are_caught(source: str, problems: list[str]):
    assert public_problems(source) == problems
