"""Rooms and walls: who may import whom. See docs/design.md."""

import ast
from pathlib import Path

import pytest

import sb3_npg

ROOT = Path(sb3_npg.__file__).parent
#: Every room, and the rooms it may import. Arrows point down this list.
ROOMS = {
    "zoo": {"critic", "npg", "schedules"},
    "callbacks": set(),
    "npg": {
        "acting", "actor", "arguments", "attention", "critic", "defaults", "exploration", "figures", "linalg",
        "local_problem", "numerics", "observations", "policies", "policy_parts", "rollout", "schedules", "search_line",
        "solvers", "trust_region", "user_warnings",
    },
    "policies": set(),
    "exploration": set(),
    "figures": {"local_problem", "solvers", "trust_region"},
    "arguments": {"checks", "defaults", "linalg", "schedules", "trust_region", "user_warnings"},
    "defaults": set(),
    "attention": set(),
    "critic": {
        "checks", "fisher", "linalg", "networks", "numerics", "observations", "parameters", "policy_parts", "rollout",
        "solvers",
    },
    "local_problem": {"actor", "fisher", "linalg", "numerics", "policy_parts", "trust_region"},
    "policy_parts": {"actor", "fisher", "networks", "numerics", "observations", "parameters", "user_warnings"},
    "acting": {"graphs", "networks", "numerics", "observations", "output_fisher"},
    "rollout": {"numerics"},
    "actor": {"fisher", "networks", "numerics", "observations", "output_fisher", "parameters"},
    "networks": {"fisher", "observations", "output_fisher", "parameters"},
    "output_fisher": set(),
    "trust_region": {"numerics"},
    "solvers": {"checks", "fisher", "linalg", "numerics", "search_line", "user_warnings"},
    "search_line": {"numerics", "parameters"},
    "fisher": {"linalg", "parameters", "precision"},
    "schedules": {"checks"},
    "observations": set(),
    "parameters": set(),
    "linalg": {"graphs", "precision", "user_warnings"},
    "graphs": set(),
    "precision": set(),
    "numerics": set(),
    "checks": set(),
    "user_warnings": set(),
}  # fmt: skip
#: Packages that only some rooms know.
KNOWN_ONLY_TO = {
    "stable_baselines3.common.distributions": {"output_fisher"},
    "stable_baselines3": set(ROOMS)
    - {
        "attention",
        "fisher",
        "solvers",
        "search_line",
        "linalg",
        "graphs",
        "precision",
        "parameters",
        "numerics",
        "checks",
        "user_warnings",
    },
    "cupy": {"linalg"},
    "rl_zoo3": {"zoo"},
    "optuna": {"zoo"},
    "sb3_contrib": set(),
}
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(source: str) -> list[str]:
    """Return the modules that a source imports, those behind the package's own names included."""
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = [alias.name for alias in node.names] if module == "sb3_npg" else []
            imported += [getattr(getattr(sb3_npg, name), "__module__", f"sb3_npg.{name}") for name in names] or [module]
    return imported


def test_imports_are_found_however_they_are_written():
    assert imports_of("from sb3_npg import NPG, numerics") == ["sb3_npg.npg", "sb3_npg.numerics"]
    assert imports_of("def f():\n    import sb3_npg.zoo, math") == ["sb3_npg.zoo", "math"]
    assert imports_of("from sb3_npg.linalg.cupy import x") == ["sb3_npg.linalg.cupy"]
    with pytest.raises(AssertionError, match="absolute"):
        imports_of("from . import npg")


def test_every_room_is_on_the_plan():
    assert {room_of(path) for path in FILES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_climb_no_wall(path):
    room = room_of(path)
    for module in imports_of(path.read_text(encoding="utf-8")):
        if module.startswith("sb3_npg."):
            other = module.split(".")[1]
            assert other == room or other in ROOMS[room], f"{room} may not import {other}"
        for package, rooms in KNOWN_ONLY_TO.items():
            known = module == package or module.startswith(package + ".")
            assert not known or room in rooms, f"{room} may not know {package}"


def test_arrows_point_one_way():
    order = list(ROOMS)
    climbing = [(a, b) for a, allowed in ROOMS.items() for b in allowed if order.index(b) <= order.index(a)]
    assert climbing == []


def test_the_package_has_no_other_public_names():
    assert set(sb3_npg.__all__) == {"NPG", "MlpPolicy", "CnnPolicy", "MultiInputPolicy", "__version__"}
