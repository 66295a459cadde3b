"""The laws of the house (docs: CONTRIBUTING.md) that can be read off the source.

Each failure names the file and the line.
"""

import ast
import functools
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points, packages_distributions, requires
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent.parent / "harness"
LONGEST_FILE, LONGEST_FUNCTION = 450, 60
LONGEST = {("harness.training.loop", "fit"): 45, ("harness.training.loop", "train_step"): 30}

# From the bottom up. A module imports from its own package and from the layers below, never from
# another package of its own layer; a module in no layer fails.
LAYERS = (
    ("harness", "harness.errors", "harness.bounded", "harness.hidden"),
    (
        "harness.wording",
        "harness.durable",
        "harness.imports",
        "harness.interrupt",
        "harness.randomness",
    ),
    ("harness.components", "harness.objects", "harness.rundir", "harness.ranks"),
    ("harness.settings",),
    ("harness.stopping",),
    ("harness.evaluation_table",),
    (
        "harness.console",
        "harness.data",
        "harness.metrics",
        "harness.checkpoint",
        "harness.schedules",
    ),
    (
        "harness.sources",
        "harness.treatments",
        "harness.networks",
        "harness.tasks",
        "harness.tracking",
    ),
    ("harness.checks", "harness.config"),
    ("harness.training",),
    ("harness.search",),
    ("harness.commands",),
    ("harness.api",),
    ("harness.cli",),
    ("harness.train",),
)
KNOW_CONFIG = (
    "harness.config",
    "harness.training",
    "harness.search",
    "harness.commands",
    "harness.api",
    "harness.cli",
)
PURE = (
    "harness.errors",
    "harness.settings",
    "harness.stopping",
    "harness.config",
    "harness.rundir",
    "harness.data.sampling",
    "harness.data.mixing",
    "harness.data.settings",
    "harness.training.agenda",
)
CLOCKLESS = ("harness.stopping", "harness.data.sampling", "harness.training.agenda")
# What each training loads; a source is loaded by the config that names it.
ALWAYS_LOADED = (
    "harness.cli",
    "harness.training.launch",
    "harness.tasks",
    "harness.networks",
    "harness.treatments",
)
# Slow to import, or only here if an extra is installed: loaded where they are used.
LATE = (
    "wandb",
    "torchmetrics",
    "pandas",
    "pyarrow",
    "torchvision",
    "transformers",
    "scipy",
    "sklearn",
    "datasets",
    "matplotlib",
    "optuna",
    "PIL",
    "timm",
    "av",
    "torchcodec",
    "soundfile",
)
# What a training may have loaded besides the standard library and what torch and accelerate load.
LOADED = {
    "harness",
    "tests",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_inspection",
    "omegaconf",
    "typer",
    "annotated_doc",
    "shellingham",
    "rich",
}
COLLECTIVES = re.compile(
    r"(all_|reduce|broadcast|gather|scatter|barrier|send$|recv$|new_\w*group|\w+_process_group|wait_for_everyone|pad_across)"
)
REASON = re.compile(r"(noqa: [\w, ]+|\]) +(- |# )\w")  # after "noqa: BLE001" or "type: ignore[...]"


@dataclass(frozen=True)
class Module:
    """One file of harness/."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    def at(self, node: ast.AST) -> str:
        return f"{self.path.relative_to(HARNESS.parent)}:{getattr(node, 'lineno', 1)}"

    def imports(self) -> Iterator[tuple[ast.stmt, str, bool]]:
        """(statement, module or module.name, whether it runs when this module is imported)."""
        lazy = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
            for inner in ast.walk(node)
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node, alias.name, id(node) not in lazy
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.at(node)}: a relative import"
                for alias in node.names:
                    yield node, f"{node.module}.{alias.name}", id(node) not in lazy

    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        return (
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )


@functools.cache
def modules() -> dict[str, Module]:
    found = {}
    for path in sorted(HARNESS.rglob("*.py")):
        name = ".".join(path.relative_to(HARNESS.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        )
        text = path.read_text()
        found[name] = Module(name, path, text, ast.parse(text, str(path)))
    return found


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def module_of(dotted: str) -> str | None:
    """The module of harness/ that `from a.b import c` or `import a.b` reads, None if it is another
    distribution's.
    """
    if not within(dotted, ("harness",)):
        return None
    return dotted if dotted in modules() else dotted.rpartition(".")[0]


def layer(name: str) -> tuple[int, str]:
    """(height, package) of a module; the longest prefix that a layer names counts."""
    found = [
        (len(package), level, package)
        for level, packages in enumerate(LAYERS)
        for package in packages
        if name == package or (package != "harness" and name.startswith(f"{package}."))
    ]
    assert found, f"{name} is in no layer: name it in LAYERS"
    _, level, package = max(found)
    return level, package


@functools.cache
def graph(*, lazy_too: bool) -> dict[str, dict[str, str]]:
    """Which module imports which of the others, and where."""
    edges: dict[str, dict[str, str]] = {name: {} for name in modules()}
    for module in modules().values():
        for node, dotted, at_import in module.imports():
            target = module_of(dotted)
            if target is not None and target != module.name and (at_import or lazy_too):
                assert target in modules(), f"{module.at(node)}: {dotted} is no module of harness/"
                edges[module.name].setdefault(target, module.at(node))
    return edges


def broken(problems: list[str]) -> str:
    return "\n".join(["", *problems])


# -- imports


def test_imports_have_no_cycles() -> None:
    edges = graph(lazy_too=False)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for target in edges[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_imports_run_one_way() -> None:
    problems = []
    for name, targets in graph(lazy_too=True).items():
        level, package = layer(name)
        for target, where in targets.items():
            below, other = layer(target)
            if below > level or (below == level and package != other):
                problems.append(f"{where}: {name} (layer {level}) imports {target} (layer {below})")
    assert not problems, broken(problems)


def reached_from(*starts: str, lazy_too: bool = True) -> Iterator[Module]:
    """Modules and all of harness/ that they come to import."""
    edges = graph(lazy_too=lazy_too)
    reached, frontier = set(starts), [*starts]
    while frontier:
        new = set(edges[frontier.pop()]) - reached
        reached |= new
        frontier += new
    return map(modules().__getitem__, sorted(reached))


@pytest.mark.parametrize(
    ("pure", "without"), [(PURE, ("torch", "accelerate")), (CLOCKLESS, ("time", "datetime"))]
)
def test_what_is_pure_needs_no_torch_and_what_decides_no_clock(
    pure: tuple[str, ...], without: tuple[str, ...]
) -> None:
    problems = {
        f"{module.at(node)}: {start} comes to import {dotted}"
        for start in modules()
        if within(start, pure)
        for module in reached_from(start)
        for node, dotted, _ in module.imports()
        if within(dotted, (*without, "torchmetrics"))
    }
    assert not problems, broken(sorted(problems))


def test_the_whole_config_is_known_to_training_and_commands_alone() -> None:
    problems = [
        f"{where}: {name} imports {target}"
        for name, targets in graph(lazy_too=True).items()
        if not within(name, KNOW_CONFIG)
        for target, where in targets.items()
        if within(target, ("harness.config",))
    ]
    assert not problems, broken(problems)


def test_what_is_slow_to_import_is_imported_when_it_is_used() -> None:
    problems = [
        f"{module.at(node)}: {dotted}"
        for module in reached_from(*ALWAYS_LOADED, lazy_too=False)
        for node, dotted, at_import in module.imports()
        if at_import and within(dotted, LATE)
    ]
    assert not problems, broken(problems)


@functools.cache
def loaded_by_torch() -> set[str]:
    """The packages that torch and accelerate load, among them what torch's optimizers load when
    they are made.
    """
    imports = "import sys, accelerate, torch._dynamo; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", imports], check=True, capture_output=True, text=True, timeout=120
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [
            "data={train: {source: {_target_: tests.start_parts.Words}}}",
            "network={_target_: tests.start_parts.Next}",
            "task={_target_: harness.tasks.LanguageModelling, input: tokens}",
        ],
    ],
    ids=["classes and numbers", "tokens"],
)
def test_a_training_loads_what_it_uses_and_nothing_else(
    overrides: list[str], tmp_path: Path
) -> None:
    told = tmp_path / "loaded.json"
    here = {
        "ACCELERATE_USE_CPU": "true",
        "LOADED": str(told),
        "PYTHONPATH": str(HARNESS.parent),
    }
    command = [str(HARNESS / "train.py"), "tests/start.yaml", f"run.dir={tmp_path / 'run'}"]
    subprocess.run(
        [sys.executable, *command, *overrides],
        cwd=HARNESS.parent,
        env={**os.environ, **here},
        check=True,
        timeout=120,
    )
    allowed = LOADED | loaded_by_torch() | sys.stdlib_module_names
    at_first_step, at_end = json.loads(told.read_text())
    assert not set(at_first_step) - allowed
    assert not set(at_end) - allowed


def test_commands_that_read_records_do_not_wait_for_torch() -> None:
    commands = [
        "show",
        "compare",
        "curve",
        "doctor",
        "forecast",
        "page",
        "replay",
        "report",
        "suggest",
        "trace",
        "track",
    ]
    imports = ", ".join(
        ["sys, harness.rundir.status", *map("harness.commands.{}".format, commands)]
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {imports}; print(*sys.modules)",
        ],
        cwd=HARNESS.parent,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not {"torch", *LATE} & set(done.stdout.split())


def test_fermarsi_offers_names_and_loads_nothing_before_they_are_used() -> None:
    import fermarsi

    code = (
        "import sys; own = set(sys.modules); import fermarsi; print(*set(sys.modules) - own); "
        "fermarsi.read_run; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HARNESS.parent,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    at_import, with_records = (set(line.split()) for line in done.stdout.splitlines())
    packages = {name.partition(".")[0] for name in at_import}
    assert packages - sys.stdlib_module_names == {"fermarsi"}
    assert not {"torch", *LATE} & with_records
    tree = ast.parse(Path(fermarsi.__file__).read_text())
    typed = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("harness")
        for alias in node.names
    }
    assert {"EXAMPLES", *typed} == set(fermarsi.__all__) <= set(dir(fermarsi))
    assert all(getattr(fermarsi, name).__doc__ for name in typed)
    assert (Path(fermarsi.__file__).parent / "py.typed").exists()


def test_wandb_is_imported_in_tracking_alone() -> None:
    problems = [
        f"{module.at(node)}: {dotted}"
        for module in modules().values()
        for node, dotted, _ in module.imports()
        if within(dotted, ("wandb",)) and not within(module.name, ("harness.tracking",))
    ]
    assert not problems, broken(problems)


def test_collectives_are_called_in_ranks_alone() -> None:
    problems = []
    for module in modules().values():
        if within(module.name, ("harness.ranks",)):
            continue
        problems += [
            f"{module.at(node)}: {dotted}"
            for node, dotted, _ in module.imports()
            if within(dotted, ("torch.distributed",))
        ]
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            if owner in ("dist", "torch.distributed") or (
                COLLECTIVES.match(node.attr) and re.search(r"accelerator|state|torch", owner)
            ):
                problems.append(f"{module.at(node)}: {owner}.{node.attr}")
    assert not problems, broken(problems)


def test_no_attribute_hides_a_collective() -> None:
    names = "decide|together|gather\\w*|any_rank|wait_for_all|start_sum|broadcast_in_place|channel"
    calls = rf"\branks\.({names})\("
    problems = [
        f"{module.at(function)}: {function.name}"
        for module in modules().values()
        for function in module.functions()
        if any("property" in ast.unparse(decorator) for decorator in function.decorator_list)
        and re.search(calls, ast.unparse(function))
    ]
    assert not problems, broken(problems)


def test_nothing_goes_through_pickle() -> None:
    problems = []
    for module in modules().values():
        problems += [
            f"{module.at(node)}: {dotted}"
            for node, dotted, _ in module.imports()
            if within(dotted, ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"))
        ]
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "torch.load",
                "torch.save",
                "torch.serialization",
            ):
                problems.append(f"{module.at(node)}: {ast.unparse(node)}")
            if (
                isinstance(node, ast.keyword)
                and node.arg == "allow_pickle"
                and ast.unparse(node.value) != "False"
            ):
                problems.append(f"{module.at(node.value)}: allow_pickle")
            if isinstance(node, ast.Attribute) and node.attr.endswith(("_object", "_object_list")):
                problems.append(f"{module.at(node)}: {node.attr} pickles")
    assert not problems, broken(problems)


# -- names and packaging


def test_no_module_bears_the_name_of_another_package() -> None:
    # Run by path, Python puts harness/ itself on sys.path: a module named like a dependency's would
    # be found in its place.
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) - {"harness"}
    own = {path.stem for path in HARNESS.glob("*.py")} | {
        path.name for path in HARNESS.iterdir() if path.is_dir()
    }
    clashes = own & taken
    assert not clashes


def test_no_name_says_nothing() -> None:
    vague = re.compile(
        r"(^|_)(utils?|helpers?|managers?|handlers?|misc|common)($|_)", re.IGNORECASE
    )
    problems = [name for name in modules() if vague.search(name.rpartition(".")[2])]
    problems += [
        f"{module.at(node)}: {node.name}"
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        and re.search(r"(Util|Helper|Manager|Handler)s?$", node.name)
    ]
    assert not problems, broken(problems)


def test_the_entry_script_defines_nothing() -> None:
    script = modules()["harness.train"].tree
    defined = [
        ast.unparse(node)
        for node in ast.walk(script)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    assert not defined
    # Docstring, imports, if __name__ == "__main__"
    assert [type(node) for node in script.body] == [ast.Expr, ast.Import, ast.ImportFrom, ast.If]


def test_the_distribution_is_described_as_pip_needs_it() -> None:
    (command,) = entry_points(group="console_scripts", name="fermarsi")
    assert command.value == "harness.cli:main"
    needs = requires("fermarsi") or []
    assert {match[1] for need in needs if (match := re.search(r"extra == ['\"](\w+)", need))} >= {
        "images",
        "audio",
        "video",
        "tables",
        "dev",
    }
    assert any(need.startswith("wandb") and "extra" not in need for need in needs)


# -- size


def test_files_and_functions_fit_on_a_screen() -> None:
    problems = []
    for module in modules().values():
        lines = len(module.text.splitlines())
        if lines > LONGEST_FILE:
            problems.append(f"{module.at(module.tree)}: {lines} lines, at most {LONGEST_FILE}")
        for function in module.functions():
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > (longest := LONGEST.get((module.name, function.name), LONGEST_FUNCTION)):
                problems.append(
                    f"{module.at(function)}: {function.name} has {length} lines, at most {longest}"
                )
    assert not problems, broken(problems)


def test_the_loop_is_where_the_laws_look_for_it() -> None:
    names = {function.name for function in modules()["harness.training.loop"].functions()}
    assert {"fit", "train_step"} <= names


# -- manner


def test_the_hot_path_does_not_wait_for_the_device() -> None:
    waits = {"item", "tolist", "cpu", "numpy", "synchronize"}
    hot = {
        "harness.training.loop": {"train_step"},
        "harness.training.engine": {"forward_backward", "update", "accumulate"},
        "harness.training.parallel": {"accumulate", "clip", "agree_on_buffers"},
        "harness.training.shards": {"accumulate", "clip", "agree_on_buffers"},
        "harness.training.norms": {"of"},
        "harness.training.items": {"weight", "number", "of"},
        "harness.training.fused": {"step"},
        "harness.metrics.confusion": {"update", "fold"},
        "harness.ranks.ranks": {"start_sum", "broadcast_in_place"},
        "harness.training.losses": {"add"},
    }
    problems = []
    for name, functions in hot.items():
        module = modules()[name]
        found = [function for function in module.functions() if function.name in functions]
        assert {function.name for function in found} == functions, f"{name}: not all are there"
        for function in found:
            for node in ast.walk(function):
                if not isinstance(node, ast.Call):
                    continue
                called = (
                    node.func.attr
                    if isinstance(node.func, ast.Attribute)
                    else ast.unparse(node.func)
                )
                if called in waits or ast.unparse(node.func) in ("print", "float", "int", "bool"):
                    problems.append(f"{module.at(node)}: {ast.unparse(node)}")
    assert not problems, broken(problems)


def test_every_broad_except_says_why() -> None:
    problems = []
    for module in modules().values():
        lines = module.text.splitlines()
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type))
            raised_from = any(
                isinstance(inner, ast.Raise) and inner.cause is not None for inner in ast.walk(node)
            )
            said = re.search(
                r"#\s*(noqa: BLE001 - )?\w+", lines[node.lineno - 1].replace("# noqa: BLE001\n", "")
            )
            if broad and not raised_from and not said:
                problems.append(f"{module.at(node)}: {lines[node.lineno - 1].strip()}")
    assert not problems, broken(problems)


@pytest.mark.parametrize("folder", ["harness", "tests", "launch"])
def test_every_exception_from_a_lint_rule_gives_its_reason(folder: str) -> None:
    problems = []
    for path in sorted((HARNESS.parent / folder).rglob("*.py")):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type != tokenize.COMMENT:
                continue
            if re.search(r"#\s*(TODO|FIXME|XXX|HACK)\b", token.string):
                problems.append(f"{path}:{token.start[0]}: {token.string}")
            if (
                folder == "harness"
                and re.search(r"noqa|type: ignore", token.string)
                and not REASON.search(token.string)
            ):
                problems.append(f"{path}:{token.start[0]}: no reason in {token.string}")
    assert not problems, broken(problems)


def test_everything_public_has_a_docstring() -> None:
    problems = []
    for module in modules().values():
        documented = [
            node
            for node in module.tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        ]
        problems += [
            f"{module.at(node)}: {node.name}" for node in documented if not ast.get_docstring(node)
        ]
        if module.tree.body and not ast.get_docstring(module.tree):
            problems.append(f"{module.at(module.tree)}: the module")
    assert not problems, broken(problems)


def test_no_file_names_the_address_of_a_package_registry() -> None:
    """Packages come from the index that pip and uv are set up for."""
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("files", "pythonhosted", "org"))]
    hosts += [".".join(parts) for parts in (("registry", "npmjs", "org"), ("deb", "debian", "org"))]
    rooms = ["harness", "fermarsi", "tests", "docs", "launch", "configs", "requirements", "docker"]
    files = [one for room in rooms for one in (HARNESS.parent / room).rglob("*") if one.is_file()]
    files += [one for one in HARNESS.parent.iterdir() if one.is_file()]
    assert [
        one.relative_to(HARNESS.parent).as_posix()
        for one in files
        if "__pycache__" not in one.parts
        and any(host.encode() in one.read_bytes() for host in hosts)
    ] == []
