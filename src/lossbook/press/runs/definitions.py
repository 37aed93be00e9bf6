"""What code reaches of the library, by definition: which functions, classes and constants can decide its result.

Everything is read, nothing is imported. A *definition* is what a name of a module is bound to by the statements at its
top level: a function, a class with all of its methods, a constant. What a definition reaches are the definitions that
its free names mean, followed through imports and packages, and what these reach. Importing a module also runs the
statements at its top level; those that may do more than bind names (`torch.set_num_threads(1)`) count wherever the
module is imported, the others only where their name is reached.

In doubt more is reached, never less:

- a name is followed wherever it could mean a definition, so all bindings of it count, and conditions with them;
- attributes of objects are not followed: a class counts as a whole, and is reached by whoever names it;
- a module that is used as a value (`getattr(module, name)`, `vars(module)`), whose names are asked for (`globals()`),
  that is imported with a star or is named by a string counts as a whole;
- where even the module is unknown (`import_module(name)`, `eval`, frames, `__subclasses__`), the whole library counts.

Taken for granted: importing another library does nothing but bind names, if they are used; and operators, subscripts
and base classes from elsewhere do nothing but give a value.
"""

import ast
import builtins
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeGuard

# A name with its attributes: ("nn", "Linear"). What imports mean begins with a module: ("torch.nn", "Linear").
Chain = tuple[str, ...]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
COMPOUND = (ast.If, ast.For, ast.While, ast.Try, ast.TryStar, ast.With, ast.Match)

# Conditions that never hold where a module is imported, and that always do.
NEVER = {"__name__ == '__main__'", "'__main__' == __name__", "TYPE_CHECKING", "typing.TYPE_CHECKING"}
ALWAYS = {"not TYPE_CHECKING", "not typing.TYPE_CHECKING"}
# What gives modules by a name: fine with a constant, which is looked for among the modules.
BY_NAME = {
    "builtins.__import__",
    "importlib.__import__",
    "importlib.import_module",
    "pkgutil.resolve_name",
    "sys.modules",
    "sys.modules.get",
}
# What can lead anywhere.
ANYWHERE = {
    "builtins.compile",
    "builtins.eval",
    "builtins.exec",
    "builtins.get_ipython",
    "gc.get_objects",
    "gc.get_referrers",
    "inspect.currentframe",
    "inspect.getmodule",
    "inspect.stack",
    "runpy.run_module",
    "runpy.run_path",
    "sys._getframe",
}
ANYWHERE_FROM_OBJECTS = {"__globals__", "__subclasses__"}
# What gives the names of the module itself.
NAMESPACE = {"builtins.globals", "builtins.locals", "builtins.vars"}
# What reads docstrings and comments, which otherwise decide nothing.
TEXT = {
    "builtins.help",
    "inspect.getcomments",
    "inspect.getdoc",
    "inspect.getsource",
    "inspect.getsourcelines",
}
# What does nothing but return a value, called or as a decorator.
PURE = {
    *(
        f"builtins.{name}"
        for name in (
            *("abs", "all", "any", "bool", "bytes", "classmethod", "complex", "dict", "divmod", "enumerate", "float"),
            *("frozenset", "int", "len", "list", "max", "min", "object", "pow", "property", "range", "reversed"),
            *("round", "set", "slice", "sorted", "staticmethod", "str", "sum", "tuple", "type", "zip"),
        )
    ),
    *("abc.abstractmethod", "collections.namedtuple", "contextlib.contextmanager"),
    *("dataclasses.dataclass", "dataclasses.field", "enum.auto", "enum.unique"),
    *("functools.cache", "functools.cached_property", "functools.lru_cache", "functools.partial"),
    *("functools.singledispatch", "functools.total_ordering", "functools.wraps"),
    *("pathlib.Path", "re.compile", "torch.enable_grad", "torch.inference_mode", "torch.no_grad"),
    *("typing.NamedTuple", "typing.NewType", "typing.ParamSpec", "typing.TypeVar", "typing.cast", "typing.final"),
    *("typing.TypedDict", "typing.overload", "typing.runtime_checkable"),
}


@dataclass(frozen=True)
class Node:
    """Something that can be reached."""

    # "definition", "import" (what runs when a module is imported), "module" (all of it).
    kind: str
    module: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.kind == "definition" else f"{self.kind} {self.module}"


@dataclass(frozen=True)
class Reached:
    """What some code reaches.

    Attributes:
        digests: of each definition, of what runs on import, and of modules that count as a whole, by their names.
        modules: that are imported.
        libraries: top-level names of what else is imported and used.
        words: texts in the code and in the definitions.
    """

    digests: dict[str, str]
    modules: frozenset[str]
    libraries: frozenset[str]
    words: frozenset[str]


def read_cells(cells: Iterable[str]) -> tuple[list[ast.stmt], list[str]]:
    """The statements of a notebook's cells, and what is no Python."""
    statements, unclear = [], []
    for source in cells:
        # Lines for IPython (magics) are not Python; the cell that holds one is in the key as text all the same.
        magic = [line for line in source.splitlines() if line.lstrip().startswith(("%", "!"))]
        plain = "\n".join("" if line in magic else line for line in source.splitlines())
        for text, rest in ((source, []), (plain, magic)):
            try:
                statements += ast.parse(text).body
            except (SyntaxError, ValueError):
                continue
            unclear += rest
            break
        else:
            unclear.append(source)
    return statements, unclear


# What one piece of code uses --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Use:
    """A name with its attributes, as it is used."""

    # Of the module around; or absolute, where an import within a function says so.
    chain: Chain
    absolute: bool = False
    # Called, subscripted or looked into with a constant text.
    by_constant: bool = False


@dataclass
class _Uses:
    """What a piece of code uses."""

    uses: set[_Use] = field(default_factory=set)
    # Modules that importing within it runs, and those imported with a star.
    imports: set[str] = field(default_factory=set)
    stars: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    anywhere: bool = False
    text: bool = False


@dataclass
class _Scope:
    """The names of a function, a lambda or a comprehension."""

    names: set[str] = field(default_factory=set)
    imports: dict[str, set[Chain]] = field(default_factory=dict)


def _uses(statements: Iterable[ast.AST], package: str) -> _Uses:
    """What statements use.

    Args:
        statements: at the top level of a module or of cells.
        package: around the module, for relative imports.
    """
    reader = _Reader(package)
    for statement in statements:
        reader.visit(statement)
    return reader.found


class _Reader(ast.NodeVisitor):
    """Finds names that are used, with the scopes of Python."""

    def __init__(self, package: str):
        self.found = _Uses()
        self._package = package
        self._scopes: list[_Scope] = []
        self._in_class = False

    def visit_Name(self, node: ast.Name) -> None:
        self._use((node.id,))

    def visit_Attribute(self, node: ast.Attribute, by_constant: bool = False) -> None:
        chain, base = _chain(node)
        for name in chain:
            self.found.anywhere |= name in ANYWHERE_FROM_OBJECTS
            self.found.text |= name == "__doc__"
        if base is None:
            self._use(chain, by_constant)
        else:
            self.visit(base)

    def _use(self, chain: Chain, by_constant: bool = False) -> None:
        for scope in reversed(self._scopes):
            if chain[0] in scope.names:
                for target in scope.imports.get(chain[0], ()):
                    self.found.uses.add(_Use((*target, *chain[1:]), absolute=True, by_constant=by_constant))
                return
        self.found.uses.add(_Use(chain, by_constant=by_constant))

    def _visit_by_constant(self, node: ast.expr, by_constant: bool) -> None:
        chain, base = _chain(node)
        if base is None and chain:
            self.visit_Attribute(node, by_constant)  # type: ignore[arg-type]
        else:
            self.visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        chain, _ = _chain(node.func)
        first = node.args[0] if node.args else None
        constant = isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith(".")
        # `vars` of something asks for no names of ours.
        self._visit_by_constant(node.func, constant or (chain == ("vars",) and first is not None))
        for each in (*node.args, *node.keywords):
            self.visit(each)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self._visit_by_constant(node.value, isinstance(node.slice, ast.Constant))
        self.visit(node.slice)

    def visit_Compare(self, node: ast.Compare) -> None:
        self.visit(node.left)
        for operator, each in zip(node.ops, node.comparators, strict=True):
            self._visit_by_constant(each, isinstance(operator, ast.In | ast.NotIn))

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.found.words.add(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not _is_text(node.value):
            self.visit(node.value)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        modules, bound, star = _imported(node, self._package)
        self.found.imports |= modules
        if star:
            self.found.stars.add(star)
        if self._in_class:
            # An attribute of the class, used through objects.
            for target in bound.values():
                self.found.uses.add(_Use(target, absolute=True))

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = node.args
        for each in (*node.decorator_list, *arguments.defaults, *(d for d in arguments.kw_defaults if d)):
            self.visit(each)
        for each in _arguments(arguments):
            self._annotation(each.annotation)
        self._annotation(node.returns)
        self._within(_scope_of(node, self._package), node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for each in (*node.args.defaults, *(d for d in node.args.kw_defaults if d)):
            self.visit(each)
        self._within(_Scope({each.arg for each in _arguments(node.args)}), [node.body])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for each in (*node.decorator_list, *node.bases, *node.keywords):
            self.visit(each)
        # What a class binds hides nothing: a name is looked for outside as well.
        before, self._in_class = self._in_class, True
        for each in node.body:
            self.visit(each)
        self._in_class = before

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._annotation(node.annotation)
        self.visit(node.target)
        if node.value:
            self.visit(node.value)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        # The first of what is iterated belongs to the scope around.
        self.visit(node.generators[0].iter)
        scope = _Scope({name for each in node.generators for name in _stored(each.target)})
        rest = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        for index, each in enumerate(node.generators):
            rest += [each.target, *each.ifs, *([each.iter] if index else [])]
        self._within(scope, rest)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp

    def _within(self, scope: _Scope, nodes: Sequence[ast.AST]) -> None:
        before, self._in_class = self._in_class, False
        self._scopes.append(scope)
        for each in nodes:
            self.visit(each)
        self._scopes.pop()
        self._in_class = before

    def _annotation(self, node: ast.expr | None) -> None:
        """An annotation, in which texts may be code."""
        if node is None:
            return
        self.visit(node)
        for each in ast.walk(node):
            if isinstance(each, ast.Constant) and isinstance(each.value, str):
                try:
                    self.visit(ast.parse(each.value.strip(), mode="eval").body)
                except (SyntaxError, ValueError):
                    continue


def _chain(node: ast.expr) -> tuple[Chain, ast.expr | None]:
    """A name with its attributes; else the attributes and what they are of."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        return (node.id, *reversed(names)), None
    return tuple(reversed(names)), node


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    found = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return found + [each for each in (arguments.vararg, arguments.kwarg) if each]


def _scope_of(function: ast.FunctionDef | ast.AsyncFunctionDef, package: str) -> _Scope:
    scope = _Scope({each.arg for each in _arguments(function.args)})
    elsewhere: set[str] = set()
    for node in _own(function.body):
        if isinstance(node, ast.Global | ast.Nonlocal):
            elsewhere |= set(node.names)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name, target in _imported(node, package)[1].items():
                scope.names.add(name)
                scope.imports.setdefault(name, set()).add(target)
        else:
            scope.names |= _bound_by(node)
    scope.names -= elsewhere
    return scope


def _own(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """The nodes in statements that belong to the same scope."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, (*FUNCTIONS, *COMPREHENSIONS, ast.ClassDef, ast.Lambda)):
            stack.extend(ast.iter_child_nodes(node))


def _bound_by(node: ast.AST) -> set[str]:
    """The names that a node itself binds or unbinds, but for imports."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return {node.id}
    if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return {node.name} if node.name else set()
    if isinstance(node, ast.MatchMapping):
        return {node.rest} if node.rest else set()
    return set()


def _stored(target: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> tuple[set[str], dict[str, Chain], str | None]:
    """Modules that an import statement names, or may name; what its names mean; what it imports with a star."""
    if isinstance(node, ast.Import):
        bound: dict[str, Chain] = {}
        for alias in node.names:
            # (`import a.b as c` takes the attribute of the package, whatever that is by then.)
            around, _, last = alias.name.rpartition(".")
            first = alias.name.partition(".")[0]
            bound[alias.asname or first] = ((around, last) if around else (last,)) if alias.asname else (first,)
        return {alias.name for alias in node.names}, bound, None
    module = node.module or ""
    if node.level:
        around = package.split(".")[: len(package.split(".")) - node.level + 1]
        module = ".".join([*around, *([module] if module else [])])
    names = [alias for alias in node.names if alias.name != "*"]
    bound = {alias.asname or alias.name: (module, alias.name) for alias in names}
    star = module if len(names) < len(node.names) else None
    return {module, *(f"{module}.{alias.name}" for alias in names)}, bound, star


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


# Modules ----------------------------------------------------------------------------------------------


class _Module:
    """A module as it is written: its statements and what they bind."""

    def __init__(self, name: str, package: str, source: bytes):
        self.name, self.package = name, package
        self.text = _hash(source)
        try:
            whole, self.broken = ast.parse(source), False
        except (SyntaxError, ValueError):
            # Importing it fails.
            whole, self.broken = ast.parse(""), True
        self.body = list(_running(whole.body))
        # Statements by the names that they bind, and what imports bind.
        self.statements: dict[str, list[int]] = {}
        self.targets: dict[str, list[Chain]] = {}
        self.imports: set[str] = set()
        self.stars: list[str] = []
        self._dumps: dict[tuple[int, ...], str] = {}
        self._uses: dict[tuple[int, ...], _Uses] = {}
        for index, statement in enumerate(self.body):
            for node in _own([statement]):
                names = _bound_by(node)
                if isinstance(node, COMPREHENSIONS):
                    names = {each.target.id for each in ast.walk(node) if isinstance(each, ast.NamedExpr)}
                if isinstance(node, ast.Import | ast.ImportFrom):
                    modules, bound, star = _imported(node, package)
                    self.imports |= modules
                    self.stars += [star] if star else []
                    for each, target in bound.items():
                        self.targets.setdefault(each, []).append(target)
                    # An import under a condition: the condition counts as well.
                    names = set(bound) if isinstance(statement, COMPOUND) else set()
                for each in names:
                    if index not in self.statements.setdefault(each, []):
                        self.statements[each].append(index)

    def binds(self, name: str) -> bool:
        """Whether a statement at its top level binds a name."""
        return name in self.statements or name in self.targets

    @functools.cached_property
    def used(self) -> set[str]:
        """All names that stand anywhere in it."""
        return {node.id for each in self.body for node in ast.walk(each) if isinstance(node, ast.Name)}

    def dump(self, *indices: int) -> str:
        """Statements without docstrings, comments and places."""
        if indices not in self._dumps:
            self._dumps[indices] = "\n".join(ast.dump(_Bare().visit(self.body[index])) for index in indices)
        return self._dumps[indices]

    def uses(self, *indices: int) -> _Uses:
        """What statements use."""
        if indices not in self._uses:
            self._uses[indices] = _uses([self.body[index] for index in indices], self.package)
        return self._uses[indices]


class _Bare(ast.NodeTransformer):
    """Removes texts that stand alone, such as docstrings."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if _is_text(node.value) else self.generic_visit(node)


def _running(statements: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements but texts and what runs only if the module is a program, or is for type checkers."""
    for statement in statements:
        if isinstance(statement, ast.If) and (test := ast.unparse(statement.test)) in NEVER | ALWAYS:
            yield from _running(statement.body if test in ALWAYS else statement.orelse)
        elif not (isinstance(statement, ast.Expr) and _is_text(statement.value)):
            yield statement


@functools.lru_cache(maxsize=1024)
def _module(name: str, package: str, source: bytes) -> _Module:
    return _Module(name, package, source)


def _hash(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


# The library ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Facts:
    """What is known of a node: its digest, if there is anything to it, and what follows from reaching it."""

    digest: str | None
    nodes: frozenset[Node]
    libraries: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()


class Library:
    """A package as it stands on disk, looked at once."""

    def __init__(self, folder: Path):
        self.name = folder.name
        self._folder = folder
        self._paths: dict[str, Path] = {}
        for path in sorted(folder.rglob("*.py")):
            parts = (self.name, *path.relative_to(folder).with_suffix("").parts)
            self._paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self._known: dict[Node, _Facts] = {}
        self._modules: dict[str, _Module] = {}

    def reach(self, cells: Iterable[str]) -> Reached:
        """What a notebook's code reaches."""
        statements, unclear = read_cells(cells)
        found = _uses(statements, "")
        for text in unclear:
            # Of what cannot be read, the worst is assumed.
            found.anywhere |= self.name in text
            found.uses |= {_Use(tuple(chain)) for chain in _names_in(text)}
        targets: dict[str, list[Chain]] = {}
        for statement in statements:
            for node in ast.walk(statement):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    for name, target in _imported(node, "")[1].items():
                        targets.setdefault(name, []).append(target)
        cells_module = _Cells(targets)
        facts, labels, text = self._resolved(cells_module, found)
        # All that cells import runs, and its version counts, used or not.
        libraries = set(facts.libraries)
        libraries |= {name.partition(".")[0] for name in found.imports if not self._is_ours(name)}
        nodes, words, digests = set(facts.nodes), set(facts.words), {}
        pending = list(nodes)
        while pending:
            about = self._facts(pending.pop())
            libraries |= about.libraries
            words |= about.words
            fresh = about.nodes - nodes
            nodes |= fresh
            pending += fresh
        whole = {node.module for node in nodes if node.kind == "module"}
        for node in nodes:
            digest = self._facts(node).digest
            if digest and (node.kind == "module" or node.module not in whole):
                digests[str(node)] = digest
        modules = frozenset(node.module for node in nodes)
        if labels:
            digests["names"] = _hash("\n".join(labels))
        if text:
            digests |= {f"text of {name}": self._read(name).text for name in modules}
        return Reached(digests, modules, frozenset(libraries), frozenset(words))

    def source(self, name: str) -> str | None:
        """The source of a function or class by its module and qualified name; None if there is none such."""
        module = max((each for each in self._paths if name.startswith(f"{each}.")), key=len, default=None)
        if module is None:
            return None
        content = self._paths[module].read_text(encoding="utf-8")
        body, node = ast.parse(content).body, None
        for part in name.removeprefix(f"{module}.").split("."):
            node = next((each for each in reversed(body) if _is_called(each, part)), None)
            if node is None:
                return None
            body = node.body
        assert node is not None
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        return "\n".join(content.splitlines()[first - 1 : node.end_lineno])

    def _is_ours(self, name: str) -> bool:
        return name == self.name or name.startswith(f"{self.name}.")

    def _read(self, name: str) -> _Module:
        if name not in self._modules:
            path = self._paths[name]
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            self._modules[name] = _module(name, package, path.read_bytes())
        return self._modules[name]

    def _inside(self, package: str) -> list[str]:
        """The modules directly in a package."""
        return [name for name in self._paths if name.rpartition(".")[0] == package]

    def _facts(self, node: Node) -> _Facts:
        if node not in self._known:
            find = {"definition": self._definition, "import": self._import, "module": self._whole}[node.kind]
            self._known[node] = find(node)
        return self._known[node]

    def _definition(self, node: Node) -> _Facts:
        module = self._read(node.module)
        indices = module.statements[node.name]
        found = module.uses(*indices)
        if _loads_what_is_asked_for(module, node.name):
            # What it imports is known otherwise: the module that is asked for. Others may be listed beside it.
            found = _without_imports_by_name(_without(found, {"__all__"}))
        facts, labels, _ = self._resolved(module, found)
        # Where it stands among what else may have changed a value that it takes up.
        effects = self._effects(node.module)
        place = [sum(effect < index for effect in effects) for index in indices]
        before = [
            [name, sum(index < indices[0] for index in module.statements[name])]
            for name in sorted({use.chain[0] for use in found.uses if not use.absolute})
            if len(module.statements.get(name, ())) > 1
        ]
        digest = _hash("\n".join([module.dump(*indices), repr(place), repr(before), *labels]))
        nodes = facts.nodes | {Node("import", node.module)}
        return _Facts(digest, nodes, facts.libraries, facts.words)

    def _import(self, node: Node) -> _Facts:
        module = self._read(node.module)
        effects = self._effects(node.module)
        found = module.uses(*effects)
        facts, labels, _ = self._resolved(module, found)
        nodes = set(facts.nodes) | self._run_by_importing(module.imports)
        if package := node.module.rpartition(".")[0]:
            nodes.add(Node("import", package))
        nodes |= {Node("module", star) for star in module.stars if star in self._paths}
        digest = _hash("\n".join([module.dump(*effects), *labels])) if effects else None
        if module.broken:
            digest = module.text
        # What is imported and not used was imported for what its import does.
        libraries = {
            target[0].partition(".")[0]
            for name, targets in module.targets.items()
            if name not in module.used
            for target in targets
            if not self._is_ours(target[0])
        }
        return _Facts(digest, frozenset(nodes), facts.libraries | libraries, facts.words)

    def _whole(self, node: Node) -> _Facts:
        module = self._read(node.module)
        nodes = {Node("definition", node.module, name) for name in module.statements}
        nodes |= {Node("import", node.module), *(Node("module", each) for each in self._inside(node.module))}
        libraries: set[str] = set()
        for targets in module.targets.values():
            for target in targets:
                reached, others = self._follow(target)
                nodes |= reached
                libraries |= {other.partition(".")[0] for other in others}
        digest = module.text if module.broken else _hash(module.dump(*range(len(module.body))))
        return _Facts(digest, frozenset(nodes), frozenset(libraries))

    # Names --------------------------------------------------------------------------------------------

    def _resolved(self, module: "_Module | _Cells", found: _Uses) -> tuple[_Facts, list[str], bool]:
        """What uses mean: facts without a digest, the meanings of imported names in words, whether text is read."""
        nodes, libraries, text = self._run_by_importing(found.imports), set(), found.text
        labels: set[str] = set()
        anywhere = found.anywhere
        for use in found.uses:
            reached, others = self._meaning(module, use)
            nodes |= reached
            for other in others:
                anywhere |= other in ANYWHERE or (other in BY_NAME and not use.by_constant)
                text |= other in TEXT
                if other in NAMESPACE and not use.by_constant:
                    nodes |= self._names_of(module)
                libraries.add(other.partition(".")[0])
            # (What cells import from elsewhere, they say themselves.)
            if (use.absolute or use.chain[0] in module.targets) and (reached or isinstance(module, _Module)):
                means = sorted({*map(str, reached), *others})
                labels.add(f"{'.'.join(use.chain)}: {', '.join(means)}")
        nodes |= {Node("module", star) for star in found.stars if star in self._paths}
        # Modules that are named as importlib takes them.
        nodes |= {Node("module", word) for word in found.words if "." in word and word in self._paths}
        if anywhere:
            nodes.add(Node("module", self.name))
        return _Facts(None, frozenset(nodes), frozenset(libraries), frozenset(found.words)), sorted(labels), text

    def _names_of(self, module: "_Module | _Cells") -> set[Node]:
        """All that a module's own names mean."""
        if isinstance(module, _Module):
            return {Node("module", module.name)}
        return {node for targets in module.targets.values() for each in targets for node in self._follow(each)[0]}

    def _meaning(self, module: "_Module | _Cells", use: _Use) -> tuple[set[Node], set[str]]:
        """The definitions that a use can mean, and names of other libraries."""
        if use.absolute:
            return self._follow(use.chain)
        name = use.chain[0]
        if isinstance(module, _Module):
            if module.binds(name) or module.stars:
                return self._attribute(module.name, use.chain, set())
        elif name in module.targets:
            found = [self._follow((*target, *use.chain[1:])) for target in module.targets[name]]
            return set().union(*(nodes for nodes, _ in found)), set().union(*(others for _, others in found))
        if hasattr(builtins, name) or name == "get_ipython":
            return set(), {".".join(("builtins", *use.chain))}
        return set(), set()

    def _follow(self, chain: Chain, seen: set[tuple[str, Chain]] | None = None) -> tuple[set[Node], set[str]]:
        """What a chain means that begins with a module."""
        module, names = chain[0], chain[1:]
        if not self._is_ours(module):
            return set(), {".".join(chain)}
        if module not in self._paths:
            # Importing it fails.
            return set(), set()
        if not names:
            return {Node("module", module)}, set()
        return self._attribute(module, names, set() if seen is None else seen)

    def _asked(self, module: str) -> set[Node]:
        """The function of a module that is asked for names that it does not have."""
        return {Node("definition", module, "__getattr__")} if "__getattr__" in self._read(module).statements else set()

    def _attribute(self, module: str, chain: Chain, seen: set[tuple[str, Chain]]) -> tuple[set[Node], set[str]]:
        """What `module.name` means, with further attributes."""
        if (module, chain) in seen:
            return set(), set()
        seen.add((module, chain))
        name, rest, content = chain[0], chain[1:], self._read(module)
        nodes: set[Node] = set()
        others: set[str] = set()

        def add(found: tuple[set[Node], set[str]]) -> None:
            nodes.update(found[0])
            others.update(found[1])

        submodule = f"{module}.{name}"
        # Importing a module makes it an attribute of its package; what the package then binds takes its place.
        replaced = False
        if name in content.statements:
            nodes.add(Node("definition", module, name))
        for target in content.targets.get(name, ()):
            replaced |= ".".join(target[:-1]) == submodule and name not in content.statements
            add(self._follow((*target, *rest), seen))
        if submodule in self._paths and not replaced:
            add(self._follow((submodule, *rest), seen))
            nodes |= self._asked(module)
        if nodes or others:
            return nodes, others
        for star in content.stars:
            if star in self._paths and self._read(star).binds(name):
                add(self._attribute(star, chain, seen))
            elif star not in self._paths:
                others.add(".".join((star, *chain)))
        if nodes or others:
            return nodes, others
        if content.stars and hasattr(builtins, name):
            return set(), {".".join(("builtins", *chain))}
        # What is not found (`__dict__`, a name set from outside) may be anything in it.
        return self._asked(module) | {Node("module", module)}, set()

    def _run_by_importing(self, names: Iterable[str]) -> set[Node]:
        """What runs when modules are imported, where these are ours."""
        found = set()
        for name in names:
            # (`from lossbook.lab import fit` names a module and perhaps another.)
            while name not in self._paths and self._is_ours(name) and "." in name:
                name = name.rpartition(".")[0]
            if name in self._paths:
                found.add(Node("import", name))
                # `from package import module` may ask the package.
                if package := name.rpartition(".")[0]:
                    found |= self._asked(package)
        return found

    # Effects ------------------------------------------------------------------------------------------

    @functools.cache  # noqa: B019 - as long-lived as the library
    def _effects(self, name: str) -> tuple[int, ...]:
        """The statements of a module that may do more than bind names when it is imported."""
        module = self._read(name)
        return tuple(index for index, each in enumerate(module.body) if not self._only_binds(module, each))

    def _only_binds(self, module: _Module, node: ast.stmt) -> bool:
        def pure(*nodes: ast.AST | None) -> bool:
            return all(self._is_pure(module, each) for each in nodes if each is not None)

        def names(*targets: ast.expr) -> bool:
            return all(
                isinstance(each, ast.Name | ast.Tuple | ast.List | ast.Starred | ast.expr_context)
                for target in targets
                for each in ast.walk(target)
            )

        def all_bind(*blocks: Iterable[ast.stmt]) -> bool:
            return all(self._only_binds(module, each) for block in blocks for each in block)

        match node:
            case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Global() | ast.Break() | ast.Continue():
                return True
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                annotations = [each.annotation for each in _arguments(node.args)]
                return self._decorated_purely(module, node) and pure(
                    *node.args.defaults, *node.args.kw_defaults, *annotations, node.returns
                )
            case ast.ClassDef():
                inherits = not node.keywords and not any(self._notices_subclasses(module, base) for base in node.bases)
                return inherits and self._decorated_purely(module, node) and pure(*node.bases) and all_bind(node.body)
            case ast.Assign():
                return names(*node.targets) and pure(node.value)
            case ast.AnnAssign():
                return names(node.target) and pure(node.annotation, node.value)
            case ast.AugAssign():
                # Of another name it may change an object that others have.
                return isinstance(node.target, ast.Name) and node.target.id == "__all__" and pure(node.value)
            case ast.Delete():
                return names(*node.targets)
            case ast.Expr():
                return pure(node.value)
            case ast.If() | ast.While():
                return pure(node.test) and all_bind(node.body, node.orelse)
            case ast.For():
                return names(node.target) and pure(node.iter) and all_bind(node.body, node.orelse)
            case ast.Try():
                handlers = [each.body for each in node.handlers]
                return all_bind(node.body, node.orelse, node.finalbody, *handlers)
        return type(node).__name__ == "TypeAlias"

    def _decorated_purely(self, module: _Module, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
        for decorator in node.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            # (What sets a property is an attribute of what the class has just bound.)
            if not self._calls_purely(module, called) and getattr(called, "attr", "") not in ("setter", "deleter"):
                return False
            if isinstance(decorator, ast.Call) and not self._is_pure(module, decorator):
                return False
        return True

    def _is_pure(self, module: _Module, node: ast.AST) -> bool:
        """Whether evaluating an expression only gives a value."""
        stack = [node]
        while stack:
            each = stack.pop()
            if isinstance(each, ast.Lambda):
                stack += [*each.args.defaults, *(default for default in each.args.kw_defaults if default)]
                continue
            if isinstance(each, ast.Await | ast.Yield | ast.YieldFrom):
                return False
            # (Sorting by a function calls it.)
            if isinstance(each, ast.Call) and (
                not self._calls_purely(module, each.func) or any(keyword.arg == "key" for keyword in each.keywords)
            ):
                return False
            stack.extend(ast.iter_child_nodes(each))
        return True

    def _calls_purely(self, module: _Module, called: ast.expr) -> bool:
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Constant):
            return True
        chain, base = _chain(called)
        if base is not None:
            return False
        nodes, others = self._meaning(module, _Use(chain))
        return not nodes and bool(others) and all(each in PURE or each.startswith("math.") for each in others)

    def _notices_subclasses(self, module: _Module, base: ast.expr) -> bool:
        """Whether a base class, as far as it is ours, may do something when it is inherited from."""
        chain, other = _chain(base.value if isinstance(base, ast.Subscript) else base)
        if other is not None:
            return True
        nodes, _ = self._meaning(module, _Use(chain))
        return any(self._class_notices(node) for node in nodes)

    @functools.cache  # noqa: B019
    def _class_notices(self, node: Node) -> bool:
        if node.kind != "definition":
            return True
        module = self._read(node.module)
        for index in module.statements[node.name]:
            statement = module.body[index]
            if not isinstance(statement, ast.ClassDef):
                return True
            hooks = any(_is_called(each, "__init_subclass__") for each in statement.body)
            if hooks or statement.keywords or any(self._notices_subclasses(module, base) for base in statement.bases):
                return True
        return False


@dataclass
class _Cells:
    """What the names of a notebook's cells mean that they import."""

    targets: dict[str, list[Chain]]


def _names_in(text: str) -> Iterator[list[str]]:
    """Chains of names in a text that is no Python."""
    for match in re.finditer(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*", text):
        yield match[0].split(".")


def _is_called(node: ast.AST, name: str) -> TypeGuard[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    return isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name == name


def _without(found: _Uses, names: set[str]) -> _Uses:
    kept = {use for use in found.uses if use.chain[0] not in names}
    return _Uses(kept, found.imports, found.stars, found.words, found.anywhere, found.text)


def _without_imports_by_name(found: _Uses) -> _Uses:
    uses = {_Use(use.chain, use.absolute, True) if use.chain[-1] == "import_module" else use for use in found.uses}
    return _Uses(uses, found.imports, found.stars, found.words, found.anywhere, found.text)


def _loads_what_is_asked_for(module: _Module, name: str) -> bool:
    """Whether it is a module's `__getattr__(name)` that imports, if anything, the module in it called `name`."""
    if name != "__getattr__" or len(module.statements[name]) != 1:
        return False
    function = module.body[module.statements[name][0]]
    if not isinstance(function, ast.FunctionDef) or len(function.args.args) != 1:
        return False
    asked = f"{{{function.args.args[0].arg}}}"
    within = {f"f'{module.package}.{asked}'", f"f'{{__name__}}.{asked}'"}
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    imports = [call for call in calls if _chain(call.func)[0][-1:] == ("import_module",)]
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "import_module"]
    return len(names) == len(imports) and all(
        len(call.args) == 1 and not call.keywords and ast.unparse(call.args[0]) in within for call in imports
    )
