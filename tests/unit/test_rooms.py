"""The rooms: what may import what, and nothing by way of sys.path."""

import ast

import pytest

from documents import ROOT

FLAT = {"functions", "endpoint", "training"}  # loaded flat by Lambda and SageMaker
MAY_IMPORT = {
    "functions": set(),
    "endpoint": set(),
    "training": {"endpoint"},
    "training/launch": {"endpoint", "training/launch"},
    "monitoring": {"monitoring"},
    "tools": set(),
    "review": {"review", "endpoint", "training"},
    "local": {"local", "monitoring", "review", "training", "endpoint", "functions"},
}
MODULES = {
    room: [path for path in (ROOT / room).rglob("*.py") if room == "training/launch" or "launch" not in path.parts]
    for room in MAY_IMPORT
}


def imported(path):
    """The names of the modules that a file imports: `from a.b import c` gives a.b and a.b.c."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def siblings(path):
    """The modules of its own flat room that a file imports."""
    return {name for name in imported(path) if path.with_name(f"{name}.py").exists()}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_the_rooms_below_it(room):
    assert MODULES[room]
    names = {name for path in MODULES[room] for name in imported(path)}
    rooms = {other for other in MAY_IMPORT for name in names if f"{name}.".startswith(other.replace("/", ".") + ".")}
    if "training/launch" in rooms:
        rooms.discard("training")
    assert rooms <= MAY_IMPORT[room]


@pytest.mark.parametrize("room", sorted(set(MAY_IMPORT) - FLAT))
def test_what_is_imported_from_a_flat_room_imports_no_sibling(room):
    """Otherwise its siblings, and their exception classes, would exist under two names."""
    names = {name for path in MODULES[room] for name in imported(path)}
    files = [ROOT / f"{name.replace('.', '/')}.py" for name in names if name.split(".")[0] in FLAT]
    found = {path: siblings(path) for path in files if path.exists() and path.parent.name in FLAT}
    assert {path: names for path, names in found.items() if names} == {}


def test_sys_path_is_changed_only_where_a_host_requires_it():
    changed = [
        f"{path.relative_to(ROOT)}"
        for room in MODULES
        for path in MODULES[room]
        if "sys.path." in path.read_text() or "sys.path +" in path.read_text()
    ]
    # SageMaker stages inference.py beside data.py; a model's archive has modules beside its inference.py.
    assert changed == ["endpoint/server.py", "training/data.py"]


def test_no_two_test_modules_have_the_same_name():
    """pytest imports them by name, without their folders."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
