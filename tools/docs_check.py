"""Keep the pages true: the generated ones are fresh, every verb and error has its place, every link leads somewhere.

`--write` writes the generated pages; without it a difference is a failure.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ |= {"NO_COLOR": "1", "COLUMNS": "100"}

from edge_sdk import cli, errors  # noqa: E402  (the checkout's, whatever is installed)

_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PAGES = re.compile(r"(<!-- pages:(\S+) -->\n).*?(<!-- /pages -->)", re.DOTALL)
_BENCH = re.compile(r"(<!-- bench:(\S+) -->\n).*?(<!-- /bench -->)", re.DOTALL)


def command_line_page() -> str:
    """Return docs/reference/cli.md: the help of every verb and sub-verb."""
    lines = [
        "# The command line",
        "",
        "Written by `make docs` from `edge VERB --help`; `make check` fails when it is out of date.",
        "",
        "Data goes to stdout (with `--json` exactly one object), all else to stderr. A failure prints a message and a",
        "hint, or with `--json` the object of [the errors page](errors.md).",
        "",
    ]
    for name in cli.VERBS:
        parser, _ = cli.verb_parser(name)
        lines += [f"## edge {name}", "", "```text", parser.format_help().rstrip(), "```", ""]
        for sub in sub_parsers(parser):
            lines += [f"### {sub.prog}", "", "```text", sub.format_help().rstrip(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def sub_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of the sub-verbs, depth first, each once."""
    seen: set[int] = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                if id(sub) not in seen:
                    seen.add(id(sub))
                    yield sub
                    yield from sub_parsers(sub)


def errors_page() -> str:
    """Return docs/reference/errors.md: exit codes and the error object."""
    rows = [
        "| exit | kind | class | when |",
        "|---|---|---|---|",
        "| 0 | | | it worked |",
        "| 1 | | | a bug in edge-sdk |",
    ]
    for cls in error_classes():
        when = re.search(rf"{cls.__name__}\s+\d\s+(.+)", inspect.getdoc(errors) or "")
        if when is None:
            raise SystemExit(f"edge_sdk/errors.py: {cls.__name__} is not in the tree at the top of the file")
        rows.append(f"| {cls.exit_code} | `{cls.kind}` | `{cls.__name__}` | {when.group(1).strip()} |")
    rows.append("| 130 | | | interrupted |")
    head = [
        "# Exit codes and errors",
        "",
        "Written by `make docs` from `edge_sdk/errors.py`; `make check` fails when it is out of date.",
        "",
        "With `--json` a failure prints one object on stdout, `hint` may be null:",
        "",
        "```json",
        json.dumps({"error": errors.SourceError("cannot open `a.mp4`", hint="check the path").to_json()}),
        "```",
        "",
    ]
    return "\n".join([*head, *rows]) + "\n"


def error_classes() -> list[type[errors.EdgeError]]:
    """Return every error a user can meet, in the order of the file."""
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.EdgeError)]
    return sorted((c for c in found if c is not errors.EdgeError), key=lambda c: inspect.getsourcelines(c)[1])


def with_bench_tables(text: str) -> str:
    """Return a page whose `<!-- bench:NAME -->` blocks hold the tables of bench/results/NAME.json."""

    def fill(match: re.Match[str]) -> str:
        from bench.run import table

        path = ROOT / "bench" / "results" / f"{match.group(2)}.json"
        return match.group(1) + table(json.loads(path.read_text())) + match.group(3)

    return _BENCH.sub(fill, text)


def with_lists_of_pages(text: str) -> str:
    """Return the index with its `<!-- pages:FOLDER -->` blocks listing the pages of docs/FOLDER by their titles."""

    def fill(match: re.Match[str]) -> str:
        folder = ROOT / "docs" / match.group(2)
        titles = {path: path.read_text().splitlines()[0].lstrip("# ") for path in sorted(folder.glob("*.md"))}
        lines = [f"- [{title}]({folder.name}/{path.name})\n" for path, title in titles.items()]
        return match.group(1) + "".join(lines) + match.group(3)

    return _PAGES.sub(fill, text)


def dead_links(page: Path, text: str) -> Iterator[str]:
    """Yield one line for each relative link of `page` that leads to no file or to no heading in it."""
    for target, heading in _LINK.findall(text):
        if "://" in target or target.startswith("mailto:"):
            continue
        aim = page.parent / target if target else page
        if not aim.exists():
            yield f"{page.relative_to(ROOT)}: link to {target} leads nowhere"
        elif heading and aim.suffix == ".md" and heading not in anchors(aim.read_text()):
            yield f"{page.relative_to(ROOT)}: {target or 'this page'} has no heading #{heading}"


def anchors(text: str) -> set[str]:
    """Return the names under which the headings of a page can be linked to, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text)}


def main() -> int:
    write = "--write" in sys.argv[1:]
    reference = ROOT / "docs" / "reference"
    problems = freshen({reference / "cli.md": command_line_page(), reference / "errors.md": errors_page()}, write)
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    problems += freshen({page: with_lists_of_pages(with_bench_tables(page.read_text())) for page in pages}, write)
    index = (ROOT / "docs" / "index.md").read_text()
    for page in pages:
        problems += dead_links(page, page.read_text())
        inside = page.relative_to(ROOT).as_posix()
        if inside.startswith("docs/") and inside != "docs/index.md" and f"({inside[5:]})" not in index:
            problems.append(f"{inside} is not in docs/index.md")
    for problem in sorted(problems):
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def freshen(wanted: dict[Path, str], write: bool) -> list[str]:
    """Write the pages that differ from what is wanted, or return one line for each."""
    problems = []
    for page, text in wanted.items():
        if page.is_file() and page.read_text() == text:
            continue
        if write:
            page.write_text(text)
            print(f"wrote {page.relative_to(ROOT)}")
        else:
            problems.append(f"{page.relative_to(ROOT)} is out of date: run `make docs`")
    return problems


if __name__ == "__main__":
    sys.exit(main())
