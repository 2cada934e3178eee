"""List the lines of C and Python that no test reaches, with reasons: unreached.py FILE.json...

Reads the JSON reports of gcovr and coverage.py. Fails if an unreached line has no reason, or if less than
95 % of the lines are reached.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAST = 0.95

#: (file, text of the line, reason). A block of consecutive unreached lines is listed by its first line.
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
    ("inplace_abn/_gradcheck/subjects.py", "yield", "in the base class; every subclass overrides it"),
    (
        "inplace_abn/_gradcheck/subjects.py",
        "raise NotImplementedError",
        "in the base class; every subclass overrides it",
    ),
    (
        "inplace_abn/_gradcheck/subjects.py",
        "except (TypeError, ValueError):",
        "functions without a signature, such as some in C; those of this package have one",
    ),
    ("inplace_abn/demo/peaks.py", "try:", "for systems without /proc"),
    (
        "inplace_abn/demo/report.py",
        'raise PermissionError(f"output: no permission to write into {path.parent.resolve()}")',
        "root may write everywhere",
    ),
]


def reached(reports):
    """Return {file: {line number: True if reached}} from reports of gcovr and coverage.py.

    Labels are left out: gcov does not count jumps to them.
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
            for line in file["lines"]:  # lines of macros and kernels occur several times
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
    """Yield lists of the numbers of unreached lines without a reached line between them."""
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
    """Print the unreached lines and a summary; return the process's exit code."""
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
