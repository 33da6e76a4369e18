"""The shape of the package: names that stand for one thing each, and bounds on what may grow."""

import ast
from collections import Counter
from functools import cache

from tests.test_imports import FILES, PACKAGE, breaches, imports

LONG_LINES, LONG_FILES = 400, 2  # the client, one file to copy away, and the job table
LONGEST_CHAIN = 14  # modules that import one another in a row


def test_no_two_files_have_one_name() -> None:
    names = Counter(path.name for path in FILES if path.name not in ("__init__.py", "__main__.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_classes_have_one_name() -> None:
    """But for the client, which can be copied away as one file and so has its own errors, of the server's names."""
    files = [path for path in FILES if path != PACKAGE / "client.py"]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    names = Counter(node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_package_needs_none_of_the_tools() -> None:
    assert breaches(FILES, ("tools", "tests", "bench", "scripts")) == []


def test_few_files_are_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    long = sorted(str(path.relative_to(PACKAGE)) for path, lines in lengths.items() if lines > LONG_LINES)
    assert len(long) <= LONG_FILES, long


def test_no_chain_of_imports_is_longer_than_it_was() -> None:
    """Through the imports at the head of a file and within its functions alike; a ring counts once."""
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    needs = {name: {found for found, _ in imports(path)} & modules.keys() - {name} for name, path in modules.items()}
    under_way: set[str] = set()

    @cache
    def chain(name: str) -> tuple[str, ...]:
        under_way.add(name)
        below = [chain(other) for other in sorted(needs[name] - under_way)]
        under_way.discard(name)
        return (name, *max(below, key=len, default=()))

    longest = max((chain(name) for name in sorted(modules)), key=len)
    assert len(longest) <= LONGEST_CHAIN, longest
