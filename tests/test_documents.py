"""What README.md and docs/ say is so: the code runs, names and links exist, what is logged is listed."""

import ast
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO

import sb3_npg
from sb3_npg import NPG

ROOT = Path(sb3_npg.__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = sorted((ROOT / "sb3_npg").rglob("*.py"))
#: README.md trains for as long as a user would; here no ``learn`` goes on for longer than this.
MOST_STEPS = 2048


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def dotted_names(text: str) -> set[str]:
    return set(re.findall(r"\bsb3_npg(?:\.\w+)+", text))


def links(text: str) -> set[str]:
    """Return what the Markdown links and pictures of a page point to."""
    return set(re.findall(r"\]\(([^)\s]+)\)", without_code(text)))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def logged_table() -> set[str]:
    """Return the keys in the table of README.md's section on what is logged."""
    section = README.read_text(encoding="utf-8").split("## What is logged")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([\w/]+)`", section, flags=re.MULTILINE))


def arguments() -> list[str]:
    return [name for name in inspect.signature(NPG.__init__).parameters if name != "self"]


@pytest.mark.filterwarnings("ignore:NPG runs on:UserWarning")
def test_readme_code_runs(tmp_path, monkeypatch):
    """Every block in order, in one namespace; solvers registered there are forgotten. ``learn`` is capped."""
    learn = NPG.learn
    monkeypatch.setattr(NPG, "learn", lambda self, steps, **kwargs: learn(self, min(steps, MOST_STEPS), **kwargs))
    monkeypatch.setattr(sb3_npg.solvers, "FISHER_SOLVERS", dict(sb3_npg.solvers.FISHER_SOLVERS))
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(README.read_text(encoding="utf-8"))
    assert blocks
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"README.md, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_dotted_names_exist(page):
    for name in dotted_names(page.read_text(encoding="utf-8")):
        assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    dead = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    assert not dead


def test_algorithm_page_names_the_code_behind_its_formulas():
    names = dotted_names((ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8"))
    modules = {module.name for module in pkgutil.walk_packages(sb3_npg.__path__, "sb3_npg.")}
    with_formulas = {
        "sb3_npg.local_problem", "sb3_npg.output_fisher", "sb3_npg.fisher.autograd", "sb3_npg.trust_region",
        "sb3_npg.fisher.rollout_fisher",
        "sb3_npg.solvers.conjugate_gradient", "sb3_npg.solvers.exact", "sb3_npg.solvers.direction",
        "sb3_npg.linalg.krylov", "sb3_npg.linalg.kronecker", "sb3_npg.critic", "sb3_npg.fisher.statistics",
        "sb3_npg.solvers.diagonal", "sb3_npg.solvers.kfac", "sb3_npg.solvers.ekfac", "sb3_npg.solvers.woodbury",
        "sb3_npg.solvers.scaling",
    }  # fmt: skip
    assert with_formulas <= modules
    assert not [module for module in with_formulas if not any(name.startswith(f"{module}.") for name in names)]


def test_every_argument_is_described():
    described = re.findall(r"^\s*:param (\w+):", inspect.getdoc(NPG) or "", flags=re.MULTILINE)
    assert described == arguments()


def test_readme_names_only_arguments_that_exist():
    """In calls of ``NPG`` and ``NPG.load`` the example code would say so; this is about the tables."""
    table = README.read_text(encoding="utf-8").split("## Coming from sb3-contrib")[1].split("Other differences")[0]
    ours = re.findall(r"^\|[^|]*\| `(\w+)", table, flags=re.MULTILINE)
    assert ours
    assert set(ours) <= set(arguments())


def test_readme_tells_the_defaults():
    table = README.read_text(encoding="utf-8").split("## Coming from sb3-contrib")[1].split("Other differences")[0]
    defaults = {name: parameter.default for name, parameter in inspect.signature(NPG.__init__).parameters.items()}
    defaults["target_kl"] = sb3_npg.defaults.DEFAULT_TARGET_KL  # what None means
    told = re.findall(r"^\|[^|]*\| `(\w+)` \(([\w.]+)\) \|", table, flags=re.MULTILINE)
    assert told
    assert told == [(name, str(defaults[name])) for name, _ in told]


def test_readme_tells_the_defaults_of_ppo():
    table = README.read_text(encoding="utf-8").split("## Coming from PPO")[1].split("## ")[0]
    parameters = inspect.signature(PPO.__init__).parameters
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    told = [pair for cell in first_cells for pair in re.findall(r"`(\w+)` \(([\d.e-]+)\)", cell)]
    assert len(told) == 6
    assert [(name, float(value)) for name, value in told] == [(name, parameters[name].default) for name, _ in told]


def public_parts(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield a module, its public classes and functions, and their public methods."""
    yield tree
    nodes: list[ast.stmt] = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield node
            nodes.extend(node.body if isinstance(node, ast.ClassDef) else [])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_code_has_docstrings(path):
    parts = public_parts(ast.parse(path.read_text(encoding="utf-8")))
    assert not [getattr(part, "name", path.name) for part in parts if not ast.get_docstring(part)]


def test_log_table_lists_what_is_recorded():
    """Gaussian actions and the default solver record every key there is."""
    agent = NPG("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, n_critic_updates=1, seed=0, device="cpu")
    agent.learn(64)
    # What SB3 records of a rollout is gone by now: it is dumped before the update.
    recorded = set(agent.logger.name_to_value)
    assert recorded == logged_table()
