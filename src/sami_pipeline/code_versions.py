"""What a result depends on in this project's code, and the packages that compute it.

The version of a function is a hash of every definition that it can reach within the project:
functions, classes and module-level values, followed from name to name, through imports (lazy ones
too), annotations and modules that other processes run. It is found in the source text by ``ast``;
nothing is imported. Comments, docstrings and layout change nothing, a changed statement does, and
only for what can reach it: a change in a judge is no change of the training.

Stated once, as it decides what is followed:

* A class counts whole, with all its methods, since objects are passed around.
* A name is followed where it can mean a definition of a module. A module that is passed around as
  such counts whole.
* What a module does when it is imported (``os.environ[...] = ...``) counts for everything that
  reaches the module or one below it.
* ``"sami_pipeline.training.worker"`` as a string stands for that module, and a definition with
  ``__file__`` reads the files and folders next to it that its strings name.
* ``import_module(f"{__name__}.…")`` stands for all modules of the package, and a function that a
  node's function holds (as one that was found by its name) counts. Names that are put together at
  run time in other ways are not seen.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import importlib.metadata
import inspect
import re
import sysconfig
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

PACKAGE_FOLDER = Path(__file__).parent

# Packages whose version can change what is computed, by the name that is imported. Those that read,
# write, tabulate and draw (pandas, pyarrow, plotly, …) are left out.
COMPUTING = {
    "accelerate": ("accelerate", "torch"),
    "peft": ("peft", "torch"),
    "reasoning_gym": ("reasoning-gym",),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
    "transformers": ("transformers", "tokenizers"),
}

_HASH_LENGTH = 16
# A reference: a project's module, and names to look up from there; none is the whole module.
_Reference = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class CodeVersion:
    """The code and the packages that something is computed with.

    Attributes:
        modules: by module, without the project's name in front, a hash of what is reached there.
        packages: versions by name, without a build's label such as ``+cpu``.
    """

    modules: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """One hash of both."""
        return _hash(f"{sorted(self.modules.items())}{sorted(self.packages.items())}")

    def parts(self) -> dict[str, str]:
        """Return both in one mapping, whose keys can be told to a user."""
        return {f"code of {name}": value for name, value in self.modules.items()} | dict(
            self.packages
        )

    def changed_since(self, earlier: CodeVersion) -> list[str]:
        """Return what differs from an earlier version: modules, and packages with versions."""
        modules = [
            name
            for name in sorted({*self.modules, *earlier.modules})
            if self.modules.get(name) != earlier.modules.get(name)
        ]
        packages = [
            f"{name} {earlier.packages.get(name, 'none')} to {self.packages.get(name, 'none')}"
            for name in sorted({*self.packages, *earlier.packages})
            if self.packages.get(name) != earlier.packages.get(name)
        ]
        return modules + packages

    def __or__(self, other: CodeVersion) -> CodeVersion:
        """Return the version of both together."""
        shared = self.modules.keys() & other.modules.keys()
        together = {name: _hash(self.modules[name] + other.modules[name]) for name in shared}
        return CodeVersion(
            {**self.modules, **other.modules, **together}, {**self.packages, **other.packages}
        )

    def with_packages(self, packages: Mapping[str, str]) -> CodeVersion:
        """Return the same code with further packages."""
        return CodeVersion(self.modules, {**self.packages, **packages})


def of(*things: Any, without: Collection[str] = ()) -> CodeVersion:
    """Return the version of the code of functions, classes, or the classes of other objects.

    Args:
        things: also functions made by functions, partial functions and methods; a string is the
            full name of a definition. What this project does not define has no version.
        without: definitions that are not reached here, as ``engines.openai_engine`` or
            ``engines.parameters:VllmParameters``.
    """
    roots = {place for thing in things for place in _places(thing)}
    return _version(frozenset(roots), frozenset(without))


@cache
def _version(roots: frozenset[tuple[str, str, str]], without: frozenset[str]) -> CodeVersion:
    for file, module, _ in roots:
        project().add(Path(file), module)
    return project().version([(module, (name,) if name else ()) for _, module, name in roots],
                             without)  # fmt: skip


@cache
def project() -> Sources:
    """Return this project's source files as they are when first asked for."""
    return Sources(PACKAGE_FOLDER)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def package_versions(names: Collection[str]) -> dict[str, str]:
    """Return the versions of installed packages, as their metadata say; none is imported."""
    return {name: found for name in sorted(names) if (found := _installed(name)) is not None}


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


class Sources:
    """The source files of a package, read once.

    Args:
        folder: the package's, whose name is that of the package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.package = folder, folder.name
        self._texts = {path: path.read_bytes() for path in sorted(folder.rglob("*.py"))}
        self._modules: dict[str, _Module] = {}
        self._paths = {self._name(path): path for path in self._texts}

    def add(self, path: Path, name: str) -> None:
        """Take in a module from elsewhere, whose own definitions are followed too."""
        if name not in self._paths:
            self._texts[path] = path.read_bytes()
            self._paths[name] = path

    def version(self, roots: Collection[_Reference], without: Collection[str] = ()) -> CodeVersion:
        """Return the version of what references reach; see ``of``."""
        reached = _Reached(self, without)
        for module, names in roots:
            reached.follow(module, names)
        return reached.version()

    def has(self, module: str) -> bool:
        """Return whether there is a module of that full name."""
        return module in self._paths

    def below(self, package: str) -> list[str]:
        """Return the full names of the modules within a package."""
        return [name for name in self._paths if name.startswith(f"{package}.")]

    def module(self, name: str) -> _Module:
        """Return a module by its full name."""
        if name not in self._modules:
            path = self._paths[name]
            self._modules[name] = _Module(self, name, path, self._texts[path])
        return self._modules[name]

    def short(self, module: str) -> str:
        """Return a module's name without that of the package."""
        return module.removeprefix(f"{self.package}.")

    def module_at(self, path: Path) -> str | None:
        """Return the name of the module in a file, if it is one of these."""
        return self._name(path) if path in self._texts else None

    def changed(self, modules: Collection[str]) -> list[str]:
        """Return those modules, by short name, whose file is no longer as it was read."""
        found = []
        for name in modules:
            path = self._paths.get(name) or self._paths.get(f"{self.package}.{name}")
            if path is None:
                continue
            try:
                same = path.read_bytes() == self._texts[path]
            except OSError:
                same = False
            if not same and not self._says_the_same(path):
                found.append(name)
        return found

    def _says_the_same(self, path: Path) -> bool:
        """Return whether a file differs from what was read in comments and docstrings alone."""
        try:
            now, before = (
                statement(ast.parse(text)) for text in (path.read_bytes(), self._texts[path])
            )
        except (OSError, SyntaxError):
            return False
        return now == before

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.folder.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class _Reached:
    """Collects what references reach, module by module."""

    def __init__(self, sources: Sources, without: Collection[str]) -> None:
        self._sources = sources
        self._without = frozenset(without)
        self._pieces: dict[str, dict[str, str]] = defaultdict(dict)
        self._seen: set[_Reference] = set()
        self._imported: set[str] = set()
        self._packages: set[str] = set()
        self._open: list[_Reference] = []

    def follow(self, module: str, names: tuple[str, ...]) -> None:
        self._open.append((module, names))
        while self._open:
            reference = self._open.pop()
            if reference not in self._seen:
                self._seen.add(reference)
                self._look_up(*reference)

    def version(self) -> CodeVersion:
        modules = {
            self._sources.short(name): _hash("\n".join(f"{k} {pieces[k]}" for k in sorted(pieces)))
            for name, pieces in sorted(self._pieces.items())
            if pieces
        }
        return CodeVersion(modules, package_versions(self._packages))

    def _look_up(self, name: str, names: tuple[str, ...]) -> None:
        short = self._sources.short(name)
        if short in self._without or (names and f"{short}:{names[0]}" in self._without):
            return
        module = self._sources.module(name)
        self._import(name)
        if not names:
            for each in (*module.definitions, *module.imports):
                self._open.append((name, (each,)))
            self._take(module, module.when_run, "run")
            return
        first, rest = names[0], names[1:]
        if first in module.definitions:
            self._take(module, module.definitions[first], first)
        if first in module.imports:
            target = module.imports[first]
            if isinstance(target, str):
                self._external(module, first, target)
            else:
                self._open.append((target[0], (*target[1], *rest)))
        elif first not in module.definitions:
            inner = f"{name}.{first}"
            if self._sources.has(inner):
                self._open.append((inner, rest))
            elif not first.startswith("__"):
                self._open.append((name, ()))  # such as one that __getattr__ finds

    def _import(self, name: str) -> None:
        """Take what a module and the packages around it do when they are imported."""
        while name and name not in self._imported:
            self._imported.add(name)
            if self._sources.has(name) and self._sources.short(name) not in self._without:
                module = self._sources.module(name)
                self._take(module, module.when_imported, "import")
            name = name.rpartition(".")[0]

    def _take(self, module: _Module, pieces: list[_Piece], label: str) -> None:
        for number, piece in enumerate(pieces):
            self._pieces[module.name][f"{label}/{number}"] = piece.hash
            self._open.extend(piece.references)
            for package in piece.packages:
                self._packages |= {*COMPUTING.get(package, ())}

    def _external(self, module: _Module, name: str, target: str) -> None:
        self._pieces[module.name][name] = target
        self._packages |= {*COMPUTING.get(target.partition(".")[0], ())}


class _Module:
    """A source file, taken apart into what it defines.

    Attributes:
        name: its full name.
        path: its file.
        definitions: by name, the statements at the module's level that define it.
        imports: by name, a reference within the project or the dotted name of something else.
        when_imported: statements that do more than define a name.
        when_run: statements that run only where the module is run as a program.
    """

    def __init__(self, sources: Sources, name: str, path: Path, text: bytes) -> None:
        self.sources, self.name, self.path = sources, name, path
        self.definitions: dict[str, list[_Piece]] = defaultdict(list)
        self.imports: dict[str, _Reference | str] = {}
        self.when_imported: list[_Piece] = []
        self.when_run: list[_Piece] = []
        for statement in ast.parse(text).body:
            self._add(statement)

    def _add(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.imports |= self.imported(statement)
        elif isinstance(statement, ast.If) and _is_name(statement.test, "TYPE_CHECKING"):
            for inner in statement.body:
                self._add(inner)
        elif isinstance(statement, ast.If) and "'__main__'" in ast.unparse(statement.test):
            self.when_run.append(_Piece(self, statement))
        elif not _is_text(statement):
            piece = _Piece(self, statement)
            names = _bound_by(statement)
            for each in names:
                self.definitions[each].append(piece)
            simple = isinstance(
                statement,
                ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign
                | ast.AnnAssign | ast.AugAssign,
            )  # fmt: skip
            if not (simple and names):
                self.when_imported.append(piece)

    def inner(self) -> list[str]:
        """Return the full names of the modules within, where this is a package."""
        return self.sources.below(self.name)

    def imported(self, statement: ast.Import | ast.ImportFrom) -> dict[str, _Reference | str]:
        """Return what an import binds, by name."""
        found: dict[str, _Reference | str] = {}
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                is_own = self.sources.has(whole)
                found[alias.asname or whole] = (whole, ()) if is_own else alias.name
            return found
        source = statement.module or ""
        if statement.level:
            package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
            for _ in range(statement.level - 1):
                package = package.rpartition(".")[0]
            source = f"{package}.{source}" if source else package
        for alias in statement.names:
            is_own = self.sources.has(source)
            found[alias.asname or alias.name] = (
                (source, () if alias.name == "*" else (alias.name,))
                if is_own
                else f"{source}.{alias.name}"
            )
        return found


class _Piece:
    """A statement at the level of a module."""

    def __init__(self, module: _Module, statement: ast.stmt) -> None:
        self._module, self._statement = module, statement

    @cached_property
    def hash(self) -> str:
        """A hash of what it says, and of the files that it reads next to the module."""
        files = [_content(path) for path in self._looked_at.files if path.suffix != ".py"]
        return _hash(statement(self._statement) + "".join(files))

    @cached_property
    def references(self) -> set[_Reference]:
        """What of the project it names."""
        modules = (self._module.sources.module_at(path) for path in self._looked_at.files)
        return self._looked_at.references | {(name, ()) for name in modules if name}

    @property
    def packages(self) -> set[str]:
        """Other packages that it imports itself."""
        return self._looked_at.packages

    @cached_property
    def _looked_at(self) -> _Names:
        names = _Names(self._module)
        names.visit(self._statement)
        return names


class _Names(ast.NodeVisitor):
    """Finds what a statement refers to, names of its local functions left out."""

    def __init__(self, module: _Module) -> None:
        self._module = module
        self._scopes: list[dict[str, _Reference | str | None]] = []
        self._reads_files = False
        self._texts: set[str] = set()
        self.references: set[_Reference] = set()
        self.packages: set[str] = set()

    @property
    def files(self) -> list[Path]:
        """Files and folders next to the module that the statement names together with __file__."""
        if not self._reads_files:
            return []
        named = (text for text in sorted(self._texts) if re.fullmatch(r"\w[\w./-]*", text))
        paths = (self._module.path.parent / text for text in named)
        return [path for path in paths if path.exists()]

    def visit_Name(self, node: ast.Name) -> None:
        self._name(node.id, ())

    def visit_Attribute(self, node: ast.Attribute) -> None:
        names: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            names.insert(0, base.attr)
            base = base.value
        if isinstance(base, ast.Name):
            self._name(base.id, tuple(names))
        else:
            self.visit(base)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str):
            return
        self._texts.add(node.value)
        sources = self._module.sources
        if re.fullmatch(rf"{sources.package}(\.\w+)+", node.value):
            module, names = node.value, ()
            while not sources.has(module):
                module, _, last = module.rpartition(".")
                names = (last, *names)
            if names == () or module != sources.package:
                self.references.add((module, names))

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func).endswith("import_module") and any(
            ast.unparse(each) == "__name__"
            for part in node.args
            if isinstance(part, ast.JoinedStr)
            for each in [part.values[0].value]
            if isinstance(part.values[0], ast.FormattedValue)
        ):
            self.references |= {(name, ()) for name in self._module.inner()}
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = node.args
        for outer in (*node.decorator_list, *_annotations(arguments), node.returns):
            if outer is not None:
                self.visit(outer)
        self._default_values(arguments)
        self._inside(arguments, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._default_values(node.args)
        self._inside(node.args, [node.body])

    def _comprehension(self, node: ast.ListComp) -> None:
        names = {
            each.id
            for generator in node.generators
            for each in ast.walk(generator.target)
            if isinstance(each, ast.Name)
        }
        # The first iterable is outside: "x for x in x".
        self.visit(node.generators[0].iter)
        self._scopes.append(dict.fromkeys(names))
        self.generic_visit(node)
        self._scopes.pop()

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for target in self._module.imported(node).values():
            if isinstance(target, str):
                self.packages.add(target.partition(".")[0])

    visit_ImportFrom = visit_Import

    def _default_values(self, arguments: ast.arguments) -> None:
        for default in (*arguments.defaults, *arguments.kw_defaults):
            if default is not None:
                self.visit(default)

    def _inside(self, arguments: ast.arguments, body: list[Any]) -> None:
        scope: dict[str, _Reference | str | None] = dict.fromkeys(_argument_names(arguments))
        elsewhere: set[str] = set()
        for node in _without_inner_scopes(body):
            if isinstance(node, ast.Global | ast.Nonlocal):
                elsewhere |= {*node.names}
            elif isinstance(node, ast.Import | ast.ImportFrom):
                scope |= self._module.imported(node)
            elif (name := _defined_by(node)) is not None:
                scope.setdefault(name, None)
        self._scopes.append({name: to for name, to in scope.items() if name not in elsewhere})
        for node in body:
            self.visit(node)
        self._scopes.pop()

    def _name(self, name: str, names: tuple[str, ...]) -> None:
        if name == "__file__":
            self._reads_files = True
        for scope in reversed(self._scopes):
            if name in scope:
                target = scope[name]
                if isinstance(target, tuple):
                    self.references.add((target[0], (*target[1], *names)))
                return
        module = self._module
        if name in module.definitions or name in module.imports:
            self.references.add((module.name, (name, *names)))
        elif "*" in module.imports and not hasattr(builtins, name):
            self.references.add((module.name, ("*",)))


def _defined_by(node: ast.AST) -> str | None:
    """Return the name that a part of a function's body makes a name of the function's own."""
    if isinstance(node, ast.Name):
        return None if isinstance(node.ctx, ast.Load) else node.id
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
        return node.name
    return node.name if isinstance(node, ast.MatchAs | ast.MatchStar) else None


def _without_inner_scopes(body: list[Any]) -> Iterator[ast.AST]:
    """Yield the nodes of a function's body, of functions and classes within it only the node."""
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        yield node
        inner = (
            ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda,
            ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
        )  # fmt: skip
        if not isinstance(node, inner):
            waiting.extend(ast.iter_child_nodes(node))


def _argument_names(arguments: ast.arguments) -> list[str]:
    each = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [a.arg for a in (*each, arguments.vararg, arguments.kwarg) if a is not None]


def _annotations(arguments: ast.arguments) -> list[ast.expr | None]:
    each = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [a.annotation for a in (*each, arguments.vararg, arguments.kwarg) if a is not None]


def _bound_by(statement: ast.stmt) -> set[str]:
    """Return the names of the module that a statement defines, or changes."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    found = set()
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    for target in targets:
        base = target
        while isinstance(base, ast.Attribute | ast.Subscript):
            base = base.value
        if base is not target and isinstance(base, ast.Name):
            found.add(base.id)  # registry["name"] = …
    for node in _without_inner_scopes([statement]):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return found


def _is_name(node: ast.expr, name: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == name) or (
        isinstance(node, ast.Attribute) and node.attr == name
    )


def _is_text(node: Any) -> bool:
    """Return whether a statement is a docstring, or another text that nothing reads."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def statement(node: Any) -> str:
    """Return what a part of a program says, the same for every version of Python."""
    if isinstance(node, ast.AST):
        fields = (
            f"{name}={statement(value)}"
            for name in node._fields
            if name not in ("ctx", "kind", "type_comment", "type_ignores")
            and (value := getattr(node, name, None)) not in (None, [])
        )
        # None as a value is not an absent field.
        constant = repr(node.value) if isinstance(node, ast.Constant) else ""
        return f"{type(node).__name__}({constant or ','.join(fields)})"
    if isinstance(node, list):
        return "[" + ",".join(statement(each) for each in node if not _is_text(each)) + "]"
    return repr(node)


def _content(path: Path) -> str:
    """Return the names and hashes of a file, or of all in a folder."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return "".join(
        f"{file.relative_to(path.parent)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n"
        for file in files
        if "__pycache__" not in file.parts
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]


def _places(thing: Any, seen: frozenset[int] = frozenset()) -> Iterator[tuple[str, str, str]]:
    """Yield file, module and name of the definitions behind a callable or another object."""
    if id(thing) in seen:
        return
    seen |= {id(thing)}
    if isinstance(thing, str):
        module, _, name = thing.rpartition(".")
        if project().has(module):
            yield str(project().module(module).path), module, name
        return
    if isinstance(thing, functools.partial):
        for part in (thing.func, *thing.args, *thing.keywords.values()):
            yield from _places(part, seen)
        return
    if inspect.ismethod(thing):
        yield from _places(thing.__self__, seen)
        thing = thing.__func__
    if inspect.isfunction(thing):
        wrapped = getattr(thing, "__wrapped__", None)
        if wrapped is not None:
            yield from _places(wrapped, seen)
        for cell in thing.__closure__ or ():
            try:
                yield from _places(cell.cell_contents, seen)
            except ValueError:  # not filled yet
                continue
    elif isinstance(thing, list | tuple | set | frozenset):
        for part in thing:
            yield from _places(part, seen)
        return
    elif isinstance(thing, dict):
        for part in thing.values():
            yield from _places(part, seen)
        return
    elif not inspect.isclass(thing):
        if is_dataclass(thing):  # such as a record with functions
            for each in fields(thing):
                yield from _places(getattr(thing, each.name), seen)
        thing = type(thing)
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", "").partition(".")[0]
    if module and (file := _own_file(module, thing)):
        yield str(file), module, "" if "<" in name else name


def _own_file(module: str, thing: Any) -> Path | None:
    """Return the source file of something that is neither Python's nor an installed package's."""
    if project().has(module):
        return project().module(module).path
    try:
        file = inspect.getsourcefile(thing)
    except TypeError:  # built in
        return None
    if file is None or not Path(file).is_file():
        return None
    installed = (sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib"))
    is_elsewhere = "site-packages" in file or any(file.startswith(f"{p}/") for p in installed)
    return None if is_elsewhere else Path(file)
