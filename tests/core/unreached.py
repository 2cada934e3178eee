"""Lines of C and Python that no test reaches, each with its reason: unreached.py FILE.json...

Takes what gcovr and coverage.py have written. Fails where a line has no reason, or less than 95 % are
reached.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAST = 0.95

#: Unreached lines that follow one another are named by the first: file, its text, why.
REASONS = [
    (
        "csrc/activations.c",
        "return y;",
        "Newton's method within a bracket converges in fewer than 200 steps",
    ),
    (
        "csrc/threads.c",
        "static void after_fork_in_child(void) { orphaned = used; }",
        "runs in forked children alone, which the tests end without gcov's handlers",
    ),
    ("inplace_abn/_gradcheck/subjects.py", "yield", "of the base class: subjects have their own"),
    (
        "inplace_abn/_gradcheck/subjects.py",
        "raise NotImplementedError",
        "of the base class: subjects have their own",
    ),
    (
        "inplace_abn/_gradcheck/subjects.py",
        "except (TypeError, ValueError):",
        "a function that does not tell its arguments, as some of C; the functions here do",
    ),
    ("inplace_abn/demo/peaks.py", "try:", "for systems without /proc"),
    (
        "inplace_abn/demo/report.py",
        'raise PermissionError(f"output: no permission to write into {path.parent.resolve()}")',
        "root may write everywhere",
    ),
]


def reached(reports):
    """Return for each file, of gcovr's reports and of coverage.py's, which lines were reached.

    Without labels: gcov counts there who falls through, not who jumps.
    """
    files = defaultdict(dict)
    for report in reports:
        if isinstance(report["files"], dict):
            for name, lines in report["files"].items():
                files[name] |= dict.fromkeys(lines["executed_lines"], True)
                files[name] |= dict.fromkeys(lines["missing_lines"], False)
            continue
        for file in report["files"]:
            lines = files[file["file"]]
            for line in file["lines"]:  # one of a macro or of a kernel is there several times
                number = line["line_number"]
                lines[number] = lines.get(number, False) or line["count"] > 0
    for name, lines in files.items():
        text = source(name)
        for number in [number for number in lines if re.fullmatch(r"\w+:", text[number - 1])]:
            del lines[number]
    return dict(sorted(files.items()))


def source(name):
    """Return the lines of a file."""
    return (ROOT / name).read_text(encoding="utf-8").splitlines()


def blocks(lines):
    """Yield the numbers of unreached lines that follow one another, where no reached line is between."""
    block = []
    for number, was_reached in sorted(lines.items()):
        if not was_reached:
            block.append(number)
        elif block:
            yield block
            block = []
    if block:
        yield block


def main(paths):
    """Print the figures and each unreached line; return what the process exits with."""
    files = reached(json.loads(Path(path).read_text(encoding="utf-8")) for path in paths)
    reasons = {(file, text): why for file, text, why in REASONS}
    wrong = []
    for name, lines in files.items():
        text = source(name)
        for block in blocks(lines):
            key = name, text[block[0] - 1].strip()
            print(f"\n{name}: {reasons.get(key, 'NO REASON GIVEN')}")
            print(*(f"{number:>6}  {text[number - 1]}" for number in block), sep="\n")
            if key not in reasons:
                wrong.append(f"{name}:{block[0]} is not reached, and has no reason")
    print(f"\n{'lines':<20} {'all':>8} {'reached':>8}")
    for language, suffixes in {"C": (".c", ".h"), "Python": (".py",)}.items():
        counted = [was for name, lines in files.items() if name.endswith(suffixes) for was in lines.values()]
        share = sum(counted) / len(counted)
        print(f"{language:<20} {len(counted):>8} {sum(counted):>8} {share:>8.2%}")
        if share < LEAST:
            wrong.append(f"less than {LEAST:.0%} of {language} are reached")
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
