"""What a function reaches in the project's code, in small packages and in the project itself."""

import ast
import functools
import importlib
import textwrap
from pathlib import Path

import pytest

from sami_pipeline import code_versions
from sami_pipeline.code_versions import PACKAGE_FOLDER, Sources

MODULES = {
    "__init__.py": "import os\nos.environ.setdefault('A', '1')\n",
    "main.py": '''
        """Docstring."""
        from __future__ import annotations
        from typing import TYPE_CHECKING
        from package import shapes, lazy
        from package.lazy import late
        from package.helpers import help_it as helper, BASE
        if TYPE_CHECKING:
            from package.typed import Typed

        LIMIT = BASE + 1

        def root(value: Typed) -> int:
            """Docstring."""
            # a comment
            return helper(value.method()) + shapes.area(LIMIT)

        def inside():
            from package import helpers
            area = 3
            return helpers.help_it(area)

        def by_lazy_name():
            return late()

        def starts_another():
            return run(["-m", "package.other"])

        def run(command):
            return command

        def unrelated():
            return 1
        ''',
    "helpers.py": "BASE = 1\ndef help_it(x):\n    return _inner(x)\ndef _inner(x):\n    return x\n",
    "shapes.py": """
        import torch
        def area(x):
            return torch.tensor(x)
        def volume(x):
            return x
        """,
    "typed.py": "class Typed:\n    def method(self):\n        return 2\n",
    "late.py": "def late():\n    return 4\n",
    "lazy.py": '''
        import importlib
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from package.late import late
        def __getattr__(name):
            return getattr(importlib.import_module("package.late"), name)
        ''',
    "other.py": "def go():\n    return 5\nif __name__ == '__main__':\n    go()\n",
    "files.py": '''
        from pathlib import Path
        FOLDER = Path(__file__).parent / "data"
        SCRIPT = Path(__file__).with_name("other.py")
        def read():
            return (FOLDER / "text.txt").read_text()
        def start():
            return SCRIPT
        ''',
    "data/text.txt": "text",
}  # fmt: skip


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "package"
    for name, text in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return folder


def version(folder: Path, function: str, module: str = "main", without: tuple[str, ...] = ()):
    return Sources(folder).version([(f"package.{module}", (function,))], without)


@pytest.mark.parametrize(
    ("file", "old", "new", "function", "changes"),
    [
        ("main.py", "# a comment", "# another", "root", False),
        ("main.py", 'int:\n    """Docstring."""', 'int:\n    """Other."""', "root", False),
        ("main.py", "return 1", "return 2", "root", False),
        ("main.py", "return helper", "return -helper", "root", True),
        ("helpers.py", "BASE = 1", "BASE = 2", "root", True),
        ("helpers.py", "_inner(x):\n    return x", "_inner(x):\n    return -x", "root", True),
        ("helpers.py", "_inner(x):\n    return x", "_inner(x):\n    return -x", "inside", True),
        ("helpers.py", "BASE = 1", "BASE = 2", "inside", False),
        ("shapes.py", "torch.tensor(x)", "torch.ones(x)", "root", True),
        ("shapes.py", "torch.tensor(x)", "torch.ones(x)", "inside", False),
        ("shapes.py", "return x", "return -x", "root", False),
        ("typed.py", "return 2", "return 3", "root", True),
        ("late.py", "return 4", "return 3", "by_lazy_name", True),
        ("late.py", "return 4", "return 3", "root", False),
        ("other.py", "return 5", "return 3", "starts_another", True),
        ("__init__.py", "'1'", "'2'", "unrelated", True),
    ],
)  # fmt: skip
def test_a_changed_statement_counts_for_what_can_reach_it(
    package, file, old, new, function, changes
):
    before = version(package, function)
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))
    after = version(package, function)
    assert (after != before) == changes
    if changes:
        name = file.removesuffix(".py").replace("__init__", "package")
        assert after.changed_since(before) == [name]


def test_files_that_a_module_reads_and_scripts_that_it_starts_count(package):
    read, start = version(package, "read", "files"), version(package, "start", "files")
    (package / "data" / "text.txt").write_text("other")
    assert version(package, "read", "files").changed_since(read) == ["files"]
    assert version(package, "start", "files") == start
    (package / "other.py").write_text("def go():\n    return 6\n")
    assert version(package, "start", "files").changed_since(start) == ["other"]


def test_packages_count_where_they_compute(package):
    assert version(package, "root").packages["torch"] == _installed("torch")
    assert version(package, "inside").packages == {}


def _installed(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]


def test_what_is_left_out_is_not_followed(package):
    whole = version(package, "root")
    without = version(package, "root", without=("helpers:help_it", "shapes"))
    assert {"helpers", "shapes"} <= whole.modules.keys()
    assert "shapes" not in without.modules
    (package / "helpers.py").write_text(MODULES["helpers.py"].replace("return x", "return -x"))
    assert version(package, "root", without=("helpers:help_it", "shapes")) == without


def test_an_edit_during_the_run_is_noticed_and_a_comment_is_none(package):
    sources = Sources(package)
    path = package / "helpers.py"
    path.write_text(path.read_text() + "# a comment\n")
    assert sources.changed(["helpers", "shapes"]) == []
    path.write_text(path.read_text().replace("BASE = 1", "BASE = 2"))
    assert sources.changed(["helpers", "shapes"]) == ["helpers"]


class Thing:
    def method(self) -> int:
        return 1


def made(value):
    def inner() -> object:
        return value

    return inner


def test_functions_made_by_functions_partial_ones_and_methods_are_resolved():
    here = __name__
    assert here in code_versions.of(made(1)).modules
    assert here in code_versions.of(Thing().method).modules
    assert here in code_versions.of(functools.partial(made, 1)).modules
    from sami_pipeline.core import objective

    held = code_versions.of(made(objective.sami_loss))
    assert "core.objective" in held.modules, "what a function holds counts"
    assert code_versions.of(len, dict, functools.partial(print)).modules == {}


def test_every_lazy_name_of_core_is_found_in_its_module():
    core = importlib.import_module("sami_pipeline.core")
    for name in core.__all__:
        reached = Sources(PACKAGE_FOLDER).version([("sami_pipeline.core", (name,))])
        assert f"core.{core._MODULE_OF[name]}" in reached.modules, name
        assert "core" not in reached.modules, "not by way of all that is in core"


def test_every_use_of_file_is_one_that_is_understood():
    """A path that is put together from __file__ in another way would not be followed."""
    known = {
        "__init__.py": [], "code_versions.py": [],  # the project's and the package's own folder
        "reporting/page.py": ["template"], "engines/vllm_server.py": ["vllm_worker.py"],
        "engines/vllm_worker.py": [],  # its own folder, to be taken off the path
    }  # fmt: skip
    sources, found = Sources(PACKAGE_FOLDER), {}
    for path in sorted(PACKAGE_FOLDER.rglob("*.py")):
        if any(
            isinstance(n, ast.Name) and n.id == "__file__"
            for n in ast.walk(ast.parse(path.read_bytes()))
        ):
            module = sources.module(sources.module_at(path))
            pieces = {id(p): p for ps in module.definitions.values() for p in ps}
            pieces |= {id(p): p for p in module.when_imported}
            found[path.relative_to(PACKAGE_FOLDER).as_posix()] = [
                file.name for piece in pieces.values() for file in piece._looked_at.files
            ]  # fmt: skip
    assert found == known
