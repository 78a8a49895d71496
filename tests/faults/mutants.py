"""Alter the core of the program in one place after the other, and see a test fail each time.

python -m tests.faults.mutants build/mutants --each 12

Every mutant is one small change of a copy of the program: `<` for `<=`, `+` for `-`, a number one
larger, a condition turned round, a statement left out. Only the tests that execute the changed line
are run on it, the fastest first, up to the first that fails. The folder keeps what was found: the
same command goes on where it was stopped, and `--survivors` tries again what no test noticed.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from .broken import ROOT, copy_of_the_program

CORE = (
    "config/load.py",
    "config/types.py",
    "config/validate.py",
    "config/yaml_file.py",
    "dataset/augmentation.py",
    "dataset/lists.py",
    "dataset/loader.py",
    "model/weights.py",
    "util/checkpoint.py",
    "util/files.py",
    "util/inference/evaluator.py",
    "util/inference/score_map.py",
    "util/inference/sliding_window.py",
    "util/metrics.py",
    "util/training/ema.py",
    "util/training/losses.py",
    "util/training/mixup.py",
    "util/training/optimizer.py",
    "util/training/step.py",
    "util/training/trainer.py",
)
# files whose tests may notice, cheap ones first; what runs in processes of its own is not seen
TESTS = """
config_types lists metrics mixup optimizer evaluator checkpoint losses augmentation inference
training_step config_mistakes loader weights config config_older config_files config_origins limits
label_geometry weights_misfits precision security_paths run_log security resumed_test classification
accumulation training reliability channels resume cases timm
""".split()  # noqa: SIM905 - shorter than a list
MEMORY = 12 << 30  # bytes that the tests of a mutant may address
SECONDS = 60  # of the processor: the slower tests of a mutant are left out
PATIENCE = 600  # more seconds by the clock, on a busy machine
TOO_SLOW = (-signal.SIGXCPU, -signal.SIGKILL)

COMPARISONS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "in": "not in", "not in": "in", "is": "is not", "is not": "is",
}  # fmt: skip
SYMBOLS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.In: "in", ast.NotIn: "not in", ast.Is: "is", ast.IsNot: "is not",
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Pow: "**",
    ast.Mod: "%", ast.BitAnd: "&", ast.BitOr: "|", ast.And: "and", ast.Or: "or",
}  # fmt: skip
ARITHMETIC = {
    "+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "**": "*", "%": "*", "&": "|", "|": "&",
    "and": "or", "or": "and",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """The bytes `start` to `end` of `file` become `new`.

    Args:
        lines: that a test must execute to be able to notice it; empty where the module does when
            it is imported.
    """

    file: str
    line: int
    start: int
    end: int
    old: str
    new: str
    lines: tuple[int, ...]


class Finder(ast.NodeVisitor):
    """Collects the mutants of one file."""

    def __init__(self, file: str, text: bytes) -> None:
        self.file, self.text, self.found = file, text, []
        self.offsets = [0]
        for line in text.splitlines(keepends=True):
            self.offsets.append(self.offsets[-1] + len(line))
        self.statement: ast.stmt | None = None
        self.in_function = False

    def place(self, line: int, column: int) -> int:
        return self.offsets[line - 1] + column

    def span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.place(node.lineno, node.col_offset),
            self.place(node.end_lineno, node.end_col_offset),
        )

    def add(self, node: ast.AST, start: int, end: int, new: str) -> None:
        old = self.text[start:end].decode()
        lines = ()
        if self.in_function:  # a call over several lines may be recorded under any of them
            last = node.end_lineno
            lines = tuple(range(min(node.lineno, self.statement.lineno), last + 1))
        self.found.append(Mutant(self.file, node.lineno, start, end, old, new, lines))

    def between(self, node: ast.AST, left: ast.AST, right: ast.AST, symbol: str, new: str) -> None:
        start, end = self.span(left)[1], self.span(right)[0]
        match = re.search(symbol.replace(" ", r"\s+").replace("*", r"\*").replace("|", r"\|")
                          .replace("+", r"\+"), self.text[start:end].decode())  # fmt: skip
        if match:
            self.add(node, start + match.start(), start + match.end(), new)

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            before, self.statement = self.statement, node
            super().visit(node)
            self.statement = before
        else:
            super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        before, self.in_function = self.in_function, True
        for statement in node.body:
            self.visit(statement)
        self.in_function = before

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Texts are for people."""

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add(node, *self.span(node), "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self.add(node, *self.span(node), "pass")
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add(node, *self.span(node), "pass")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        values = [node.left, *node.comparators]
        for left, right, kind in zip(values, values[1:], node.ops, strict=False):
            symbol = SYMBOLS[type(kind)]
            self.between(node, left, right, symbol, COMPARISONS[symbol])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        symbol = SYMBOLS.get(type(node.op))
        if symbol and not any(isinstance(n, ast.Constant) and isinstance(n.value, str)
                              for n in (node.left, node.right)):  # fmt: skip
            self.between(node, node.left, node.right, symbol, ARITHMETIC[symbol])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        symbol = SYMBOLS[type(node.op)]
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(node, left, right, rf"\b{symbol}\b", ARITHMETIC[symbol])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            start = self.span(node)[0]
            self.add(node, start, start + (3 if isinstance(node.op, ast.Not) else 1), "")
        self.generic_visit(node)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        if not isinstance(node.test, (ast.Compare, ast.BoolOp, ast.UnaryOp)):
            start, end = self.span(node.test)
            self.add(node.test, start, end, f"(not ({self.text[start:end].decode()}))")
        self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self.add(node, *self.span(node), str(not value))
        elif isinstance(value, (int, float)):
            self.add(node, *self.span(node), repr(value + 1))


def mutants_of(root: Path, file: str) -> list[Mutant]:
    text = (root / file).read_bytes()
    finder = Finder(file, text)
    finder.visit(ast.parse(text))
    return finder.found


def chosen(root: Path, each: int, seed: int) -> list[Mutant]:
    """`each` mutants of every file by chance, in an order of which any beginning is fair."""
    picks = []
    for file in CORE:
        found = mutants_of(root, file)
        random.Random(f"{seed} {file}").shuffle(found)
        picks += [(index, file, mutant) for index, mutant in enumerate(found[:each])]
    return [mutant for *_, mutant in sorted(picks, key=lambda pick: pick[:2])]


class Recorder:
    """A pytest plugin: which lines of the core each test executes, and how long it takes."""

    def __init__(self, tree: Path) -> None:
        self.names = {str(tree / file): file for file in CORE}
        self.lines: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}
        self.users: dict[str, list[str]] = {}
        self.current: set[tuple[str, int]] = set()

    def global_trace(self, frame: FrameType, event: str, _):
        return self.local_trace if frame.f_code.co_filename in self.names else None

    def local_trace(self, frame: FrameType, event: str, _):
        self.current.add((self.names[frame.f_code.co_filename], frame.f_lineno))
        return self.local_trace

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        began, self.current = time.process_time(), self.lines.setdefault(item.nodeid, set())
        sys.settrace(self.global_trace)
        threading.settrace(self.global_trace)
        yield
        sys.settrace(None)
        threading.settrace(None)
        self.seconds[item.nodeid] = round(time.process_time() - began, 2)
        for name in item.fixturenames:
            self.users.setdefault(name, []).append(item.nodeid)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef) -> Iterator[None]:
        """What a fixture executes counts for each test that uses it."""
        before = self.current
        self.current = self.lines.setdefault(f"fixture {fixturedef.argname}", set())
        yield
        self.current = before

    def result(self) -> dict:
        for name, users in self.users.items():
            for user in users:
                self.lines[user] |= self.lines.get(f"fixture {name}", set())
        return {
            test: {"seconds": seconds, "lines": sorted(self.lines[test])}
            for test, seconds in self.seconds.items()
        }


class Chosen:
    """A pytest plugin: the named tests only, in their order; the first that fails."""

    def __init__(self, tests: list[str]) -> None:
        self.rank = {test: rank for rank, test in enumerate(tests)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.rank),
            key=lambda item: self.rank[item.nodeid],
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = report.nodeid


def in_a_fork(tree: Path, files: list[str], plugin, answer: Path, seconds: float) -> int:
    """pytest's exit code on the copy; `plugin` writes to `answer`.

    The fork has imported PyTorch, and none of the program. One of `TOO_SLOW` after `seconds` of the
    processor, or where it has waited for longer than that and `PATIENCE` together.
    """
    child = os.fork()
    if not child:
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
            out = os.open(tree.parent / f"{tree.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.chdir(tree)
            for name in [n for n in sys.modules if n.split(".")[0] in ("tests", "stripseg")]:
                del sys.modules[name]
            sys.path[:] = [str(tree), *(p for p in sys.path if p not in ("", str(ROOT)))]
            os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
            sys.dont_write_bytecode = True
            temporary = tree.parent / f"{tree.name}.tmp"
            words = ["-n", "0", "-p", "no:cacheprovider", f"--basetemp={temporary}", "--tb=short"]
            stop = [] if isinstance(plugin, Recorder) else ["-x"]
            code = pytest.main([*words, *stop, *files], plugins=[plugin])
            value = plugin.result() if isinstance(plugin, Recorder) else plugin.failed
            answer.write_text(json.dumps(value))
            sys.stdout.flush()
            os._exit(int(code))
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(99)
    limit = time.monotonic() + seconds + PATIENCE
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < limit:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode((ended if ended[0] else os.waitpid(child, 0))[1])


def record(tree: Path, folder: Path, names: list[str]) -> None:
    """The lines of each test, once as long as neither its file nor the core changes."""
    core = b"".join((tree / file).read_bytes() for file in CORE)
    for name in names:
        test, seen = f"tests/test_{name}.py", folder / f"{name}.json"
        digest = hashlib.sha256(core + (tree / test).read_bytes()).hexdigest()
        if seen.exists() and json.loads(seen.read_text())["digest"] == digest:
            continue
        began, answer = time.monotonic(), folder / "recorded.json"
        code = in_a_fork(tree, [test], Recorder(tree), answer, 7200)
        if code:
            print(f"{test}: pytest ends with {code} on the unaltered program; it is left out:")
            print((tree.parent / f"{tree.name}.log").read_text()[-1500:], flush=True)
            tests = {}
        else:
            tests = json.loads(answer.read_text())
        seen.write_text(json.dumps({"digest": digest, "tests": tests}))
        print(f"{test}: {len(tests)} tests in {time.monotonic() - began:.0f} s", flush=True)


def who_runs(folder: Path) -> dict[tuple[str, int], list[tuple[float, str]]]:
    """{(file, line): [(seconds, test)]}, and line 0 for the whole file."""
    runs: dict[tuple[str, int], set[tuple[float, str]]] = {}
    for name in TESTS:
        if (folder / f"{name}.json").exists():
            for test, seen in json.loads((folder / f"{name}.json").read_text())["tests"].items():
                for file, line in seen["lines"]:
                    for key in ((file, line), (file, 0)):
                        runs.setdefault(key, set()).add((seen["seconds"], test))
    return {key: sorted(tests) for key, tests in runs.items()}


def tests_for(mutant: Mutant, runs: dict) -> list[dict[str, float]]:
    """The tests that may notice it, with their seconds, the fastest first, in two goes.

    The first ones are those of the file that has most of them: often they are enough, and each file
    costs the time to import it.
    """
    keys = [(mutant.file, line) for line in mutant.lines or (0,)]
    total, tests = 0.0, {}
    for seconds, test in sorted({pair for key in keys for pair in runs.get(key, [])}):
        if tests and total + seconds > SECONDS:
            break
        total += seconds
        tests[test] = seconds
    files = Counter(test.partition("::")[0] for test in tests)
    most = max(files, key=files.__getitem__, default="")
    goes: tuple[dict[str, float], dict[str, float]] = {}, {}
    for test, seconds in tests.items():
        goes[not test.startswith(f"{most}::")][test] = seconds
    return [go for go in goes if go]


def tried(mutant: Mutant, tree: Path, runs: dict) -> dict:
    """Alters the copy, runs the tests that may notice it, and puts it back."""
    began, by, goes = time.monotonic(), "", tests_for(mutant, runs)
    path, answer = tree / mutant.file, tree.parent / f"{tree.name}.json"
    whole = path.read_bytes()
    path.write_bytes(whole[: mutant.start] + mutant.new.encode() + whole[mutant.end :])
    try:
        for go in goes:
            answer.unlink(missing_ok=True)
            files = sorted({test.partition("::")[0] for test in go})
            code = in_a_fork(tree, files, Chosen([*go]), answer, 60 + 5 * sum(go.values()))
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                failed = json.loads(answer.read_text()) if answer.exists() else ""
                by = failed or ("too slow" if code in TOO_SLOW else f"pytest ends with {code}")
                break
    finally:
        path.write_bytes(whole)
    end, tests = "noticed" if by else "survived", sum(map(len, goes))
    seconds = round(time.monotonic() - began, 1)
    return {**asdict(mutant), "tests": tests, "end": end, "by": by, "seconds": seconds}


def identity(values: dict) -> tuple:
    return values["file"], values["start"], values["old"], values["new"]


def results_of(folder: Path) -> dict[tuple, dict]:
    """The last result of each mutant."""
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {identity(result): result for result in map(json.loads, lines)}


def summary(results: list[dict], possible: int) -> str:
    noticed = sum(result["end"] == "noticed" for result in results)
    share = f"{noticed / len(results):.1%}" if results else "-"
    lines = [f"{noticed} of {len(results)} mutants were noticed ({share}), of {possible} possible"]
    for file in CORE:
        ours = [result for result in results if result["file"] == file]
        lines.append(f"  {file}: {sum(r['end'] == 'noticed' for r in ours)} of {len(ours)}")
    for result in sorted(results, key=lambda r: (r["file"], r["line"])):
        if result["end"] == "survived":
            new = result["new"] or "nothing"
            seen = f"{result['tests']} tests" if result["tests"] else "no test runs it"
            place = f"{result['file']}:{result['line']}"
            lines.append(f"survived: {place}: {result['old']!r} -> {new!r} ({seen})")
    return "\n".join(lines)


def synchronised(folder: Path, jobs: int) -> list[Path]:
    """One copy of the program for each job; unchanged files stay."""
    trees = [folder / f"copy{job}" for job in range(jobs)]
    for tree in trees:
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(parents=True)
        copy_of_the_program(tree)
    return trees


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutants", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the copies and results are")
    parser.add_argument("--each", type=int, default=12, help="mutants of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=int, help="how many of the files of tests, by default all")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--survivors", action="store_true", help="try the survivors again")
    parser.add_argument("--show", action="store_true", help="print what was found, and end")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    possible = sum(len(mutants_of(ROOT, file)) for file in CORE)
    mutants = chosen(ROOT, given.each, given.seed)
    if not given.show:
        import torch

        torch.set_num_threads(1)
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0).step()  # imports a lot
        trees = synchronised(folder, given.jobs)
        record(trees[0], folder, TESTS[: given.tests])
        runs, done = who_runs(folder), results_of(folder)
        left = [
            mutant for mutant in mutants
            if (before := done.get(identity(asdict(mutant)))) is None
            or (given.survivors and before["end"] == "survived")
        ]  # fmt: skip
        if given.tests:  # the others wait for the tests that are left out
            left = [mutant for mutant in left if tests_for(mutant, runs)]
        workers = []
        for job, tree in enumerate(trees):
            worker = os.fork()
            if not worker:
                for mutant in left[job :: given.jobs]:
                    result = tried(mutant, tree, runs)
                    with (folder / "results.jsonl").open("a") as file:
                        file.write(json.dumps(result) + "\n")
                os._exit(0)
            workers.append(worker)
        for worker in workers:
            os.waitpid(worker, 0)
    done = results_of(folder)
    keys = [identity(asdict(mutant)) for mutant in mutants]
    print(summary([done[key] for key in keys if key in done], possible))
    return 0


if __name__ == "__main__":
    sys.exit(main())
