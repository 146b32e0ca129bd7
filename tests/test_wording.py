#!/usr/bin/env python3
"""Names and prose use standard technical American English.

The rules are word lists with their replacements. They are applied to names, comments, docstrings and other strings of
Python files, and to the text of Markdown, shell and make files. To list the findings in some paths, run

  python tests/test_wording.py PATH ...
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = (".py", ".md", ".sh", ".toml", ".yml", ".cfg")
NOT_READ = ("tests/test_wording.py",)  # contains the phrases to avoid

Kind = Literal["name", "function", "docstring", "prose"]


class Rule(NamedTuple):
    pattern: re.Pattern[str]
    replacement: str
    kinds: tuple[Kind, ...] = ("function", "docstring", "prose")


class Finding(NamedTuple):
    path: str
    line: int
    phrase: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.phrase!r}: write {self.replacement}"


def words(pattern: str, replacement: str) -> Rule:
    """Return a rule for phrases in prose, with any whitespace between their words."""
    return Rule(re.compile(rf"\b(?:{pattern})\b".replace(" ", r"\s+"), re.IGNORECASE), replacement)


# Verbs and nouns with the ending -ise or -isation in British, -ize or -ization in American spelling.
_ISE = (
    "author|binar|canonical|capital|categor|central|character|custom|deserial|discret|emphas|equal|factor|final|formal|"
    "general|harmon|ideal|initial|item|linear|local|material|maxim|memor|minim|modular|normal|optim|organ|parallel|"
    "parameter|penal|polar|prior|random|real|recogn|regular|reinitial|renormal|reorgan|sanit|serial|special|stabil|"
    "standard|summar|symbol|symmetr|synchron|token|util|vector|visual|vocal"
)
_BRITISH = (
    rf"(?:{_ISE})is(?:e|es|ed|er|ers|ing|able|ation|ations)|(?:ana|cata)lys(?:e|es|ed|er|ing)|"
    r"(?:behavi|col|fav|flav|harb|hon|lab|neighb|rum)our\w*|(?:cent|fib|lit|met)res?|"
    r"(?:cancel|channel|label|level|model|signal|total|travel|tunnel)l(?:ed|er|ing)|"
    r"artefacts?|defence|grey|judgement|learnt|licence|programmes?|spelt|whilst|amongst"
)

PROSE_RULES = (
    words("told|tells?|telling", "report, log, print, say, tell apart -> distinguish"),
    words("anew", "again, from scratch, reinitialize"),
    words("go on|goes on|going on|went on|gone on", "continue, resume"),
    words("begins?|began|begun", "start"),
    words("mend|mends|mended|mending", "fix, repair"),
    words("hears?|heard", "decode, recognize, the audio"),
    words("believ(?:e|es|ed|ing)", "trust, validate, confidence"),
    words("surest", "most confident"),
    words("so many|so much|so long as", "N, this many, as long as"),
    words("(?:put|puts|putting) up with", "tolerate"),
    words("for want of", "out of, without"),
    words("ended from outside", "killed"),
    words("without (?:its|a|the) trace", "without a traceback"),
    words("behind|beyond", "after, past, outside, above, more than"),
    words("side by side", "in parallel, adjacent, next to each other"),
    words("of a kind", "per"),
    words("whoever|nobody|somebody", "name the actor: the user, the caller, no language, ..."),
    words("seldom|likewise|thrice|as ever", "rarely, also, three times, as before"),
    words("find out|finds out|found out", "identify, detect, determine"),
    words("little by little", "gradually"),
    words("renew|renews|renewed|renewing", "update, regenerate"),
    words("strangers?|a stranger's", "untrusted"),
    Rule(
        re.compile(
            r"(?<!there )(?<!There )\b(?:is|are|was|were)\s+no\s+"
            r"(?!(?:longer|more|less|larger|smaller|greater|better|worse|slower|faster|shorter|higher|lower)\b)\w+"
        ),
        '"is not a ..."',
    ),
    words(_BRITISH, "the American spelling"),
    Rule(
        re.compile(r"\A\s*(?:What|Whether|Who|Whose|How|Why|Which|Where)\b[^.]{0,30}"),
        'an imperative or a noun: "Return whether ...", "Configuration of ..."',
        ("function", "docstring"),
    ),
    Rule(
        re.compile(r"\A\s*(?:The|An?|All|Each|Every|Of|As|In|Its|These|Those)\b[^.]{0,30}"),
        'an imperative: "Return the ..."',
        ("function",),
    ),
)

# Words that must not be part of a name, and their replacements.
WORDS_OF_NAMES = {
    "anew": "again",
    "began": "started",
    "begin": "start",
    "begins": "starts",
    "hear": "decode",
    "heard": "decoded",
    "hears": "decodes",
    "mend": "fix",
    "mends": "fixes",
    "nobody": "none",
    "poisoned": "nan_if_not_finite",
    "seldom": "rarely",
    "somebody": "a noun",
    "tell": "report",
    "tells": "reports",
    "told": "reported",
    "whoever": "a noun",
}

# Function words and previous names, without underscores, and their replacements.
_FUNCTION_WORDS = (
    *("found", "place", "places", "number", "one", "theirs", "ours", "wanted", "sought"),
    *("all", "most", "free", "step", "much", "many", "few", "such", "so", "it", "thing", "things"),
    *("what", "which", "who", "whose", "where", "why", "how", "whether"),
    *("this", "that", "those", "these", "here", "there", "everyone", "anyone"),
)
NAMES = dict.fromkeys(_FUNCTION_WORDS, "a noun that says what it holds (index, count, result, ...)") | {
    "passes": "should_step",
    "read_flags": "sync_flags",
    "keeps_evidence": "save_on_exception",
    "is_death": "is_worker_death",
    "outliving": "ignore_signals",
    "as_it_is": "identity",
    "LanguageModelOfEvidence": "LanguageIdModel",
    "Evidence": "LanguageIdFeatures",
    "EvidenceSearch": "ScoringSearch",
    "EvidenceChooser": "LanguageIdentifier",
    "with_evidence": "with_scoring",
    "load_chooser": "load_language_identifier",
    "keep_masks": "pin_initial_masks",
    "PRUNING_ROOTS": "PRUNE_SCOPES",
    "communicates": "grad_sync",
    "leave": "save_and_stop",
    "loud_from": "first_loud",
    "Listener": "AudioSink",
    "Reach": "WindowIndex",
    "FrontEnd": "ZipformerSubsampling",
    "by_hand": "use_cpu_kernels",
    "always_uses_all": "uses_all_parameters",
    "watches": "needs_gradients",
    "reason_to_drop": "rejection_reason",
    "keep_largest_of_all": "top_k_joint",
    "pools": "budget_groups",
    "on_the_way": "interpolated_sparsity",
    "tied": "share_mask",
    "without": "excluding",
    "first_equal": "canonical_language",
    "joined_mask": "flat_mask",
    "staying": "kept_sparsity",
    "stay": "keep_scores",
    "come": "regrow_scores",
    "acted": "was_active",
    "found_by_whiteners": "pending_whiteners",
    "at_position": "value_at",
    "happens": "sample",
}
# `step` is a method of optimizers and schedules; only a constant `STEP` is vague. `__all__` is Python's,
# and so is `tell` as a method of file objects.
ALLOWED_NAMES = ("step", "_step", "__all__", "tell")
ALLOWED_STRINGS = ("begin",)  # a key of JSON transcripts, kept for readers of those of version 0.1


def check_prose(text: str, kind: Kind, path: str, line: int) -> Iterator[Finding]:
    """Yield the findings in a text that starts at `line` of a file."""
    for string in ALLOWED_STRINGS:
        text = text.replace(f"`{string}`", f"`{'_' * len(string)}`")
    for rule in PROSE_RULES:
        if kind in rule.kinds:
            for match in rule.pattern.finditer(text):
                phrase = " ".join(match[0].split())
                yield Finding(path, line + text.count("\n", 0, match.start()), phrase, rule.replacement)


def check_name(name: str, path: str, line: int) -> Iterator[Finding]:
    bare = name.strip("_")
    if name in ALLOWED_NAMES:
        return
    replacement = NAMES.get(bare) or NAMES.get(bare.lower() if bare.isupper() else bare)
    if replacement:
        yield Finding(path, line, name, replacement)
        return
    for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", bare):
        if word.lower() in WORDS_OF_NAMES:
            yield Finding(path, line, name, WORDS_OF_NAMES[word.lower()])
        elif re.fullmatch(_BRITISH, word, re.IGNORECASE):
            yield Finding(path, line, name, "the American spelling")


def names_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the names that a module defines: functions, classes, arguments, variables, attributes, aliases."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg():
                yield node.arg, node.lineno
            case ast.Name(ctx=ast.Store()):
                yield node.id, node.lineno
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr, node.lineno
            case ast.alias(asname=str(name)):
                yield name, node.lineno


def comments_of(source: str) -> Iterator[tuple[str, int]]:
    """Yield comments with their first line numbers; consecutive comment lines are one text."""
    block: list[str] = []
    first = previous = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != previous + 1:
                yield "\n".join(block), first
                block = []
            first = first if block else token.start[0]
            previous = token.start[0]
            block.append(token.string.lstrip("#:! "))
    if block:
        yield "\n".join(block), first


def check_python(source: str, path: str) -> Iterator[Finding]:
    tree = ast.parse(source)
    yield from check_name(Path(path).stem, path, 1)
    for name, line in names_of(tree):
        yield from check_name(name, path, line)
    for text, line in comments_of(source):
        yield from check_prose(text, "prose", path, line)
    kinds = kinds_of_docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in ALLOWED_STRINGS:
            yield from check_prose(node.value, kinds.get(id(node), "prose"), path, node.lineno)


def kinds_of_docstrings(tree: ast.AST) -> dict[int, Kind]:
    """Return the kind of each docstring, including those of fields and variables, by the id of its node."""
    kinds: dict[int, Kind] = {}
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() if ast.get_docstring(node) is not None:
                is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
                is_noun = is_property or node.name.startswith("test_")
                kinds[id(node.body[0].value)] = "docstring" if is_noun else "function"
            case ast.Expr(value=ast.Constant(value=str())):
                kinds.setdefault(id(node.value), "docstring")
    return kinds


def check_file(path: Path) -> list[Finding]:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    findings = check_python(text, name) if path.suffix == ".py" else check_prose(text, "prose", name, 1)
    return sorted(set(findings))


def files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    paths = [ROOT / name for name in listed if name not in NOT_READ]
    return [path for path in paths if path.is_file() and (path.suffix in SUFFIXES or path.name == "Makefile")]


FILES = files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_wording_is_standard(path):
    findings = check_file(path)
    assert not findings, "\n".join(map(str, findings))


@pytest.mark.parametrize(
    ("source", "line", "phrase"),
    [
        ('"""Whether it works."""', 1, "Whether it works"),
        ('"""Module."""\n\n\ndef f():\n    """Return it.\n\n    It is told.\n    """', 7, "told"),
        ("x = 1\n# One line that goes\n# on in another.", 2, "goes on"),
        ('raise ValueError("the file is no "\n  "checkpoint")', 1, "is no checkpoint"),
        ('print(f"{1} begins {2}")', 1, "begins"),
        ("found = 1", 1, "found"),
        ("def f(_number): pass", 1, "_number"),
        ("class LastHeard: pass", 1, "LastHeard"),
        ("self._watches = 1", 1, "_watches"),
        ("def normalise_colours(): pass", 1, "normalise_colours"),
        ("import x as place", 1, "place"),
        ("_STEP = 1", 1, "_STEP"),
        ('"""Organise it."""', 1, "Organise"),
        ('class C:\n    field: int = 1\n    """What it is."""', 3, "What it is"),
        ('def f():\n    """The value of it."""', 2, "The value of it"),
    ],
)
def test_nonstandard_wording_is_reported(source, line, phrase):
    assert (line, phrase) in [(finding.line, finding.phrase) for finding in check_python(source, "module.py")]


@pytest.mark.parametrize(
    "source",
    [
        '"""Return whether there is no mask, or it is no longer used."""',
        '"""Return the key `begin`."""',
        "# otherwise, a precise exercise; the beginning of a promise",
        "def step(num_found, first_place): pass",
        'raise ValueError("expected one of the numbers")',
        "value = optimizer.found",
        '@property\ndef f(self):\n    """The value."""',
    ],
)
def test_standard_wording_passes(source):
    assert not list(check_python(source, "module.py"))


def test_shell_and_markdown_are_read_by_line():
    assert list(check_prose("# Title\n\nIt goes\non.\n", "prose", "a.md", 1)) == [
        Finding("a.md", 3, "goes on", "continue, resume")
    ]


def main() -> None:
    """Print the findings below the paths given."""
    roots = [Path(argument).resolve() for argument in sys.argv[1:]] or [ROOT]
    paths = [path for path in FILES if any(path.is_relative_to(root) for root in roots)]
    print(*(finding for path in paths for finding in check_file(path)), sep="\n")


if __name__ == "__main__":
    main()
