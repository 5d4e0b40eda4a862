"""Reading YAML from strangers: values, lines, and what is refused, in bounded time and memory."""

import subprocess
import sys
import time

import pytest

from finetune.recipe.yaml_lines import MAX_DEPTH, MAX_LINE, dump, read, scalar


def problems(text: str | bytes) -> list[tuple[int | None, str, str]]:
    found = read(text if isinstance(text, bytes) else text.encode())
    return [(problem.line, problem.key, problem.text) for problem in found.problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[
            (word, word)
            for word in ("no", "yes", "off", "on", "y", "n", "2020-01-02", "12:30:00", "1_000", "nan", "inf")
        ],
        *[("1e-5", 1e-5), ("3e-4", 3e-4), ("5.0e-5", 5e-5), (".5", 0.5), ("1.", 1.0), ("-2.5E+3", -2500.0)],
        *[("010", 10), ("0o17", 15), ("0x1F", 31), ("-3", -3), ("+4", 4)],
        *[("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("=", "="), ("NO", "NO")],
    ],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_values_and_the_lines_of_their_keys():
    found = read(b"a: 1\nb:\n  c: [x, 'y',\n      \"1\"]\n  d: {e: 1e-5}\n")
    assert found.value == {"a": 1, "b": {"c": ["x", "y", "1"], "d": {"e": 1e-5}}}
    assert found.lines[("b", "c")] == 3
    assert found.lines[("b", "c", 2)] == 4
    assert found.lines[("b", "d", "e")] == 5
    assert not found.problems


def test_byte_order_mark_is_skipped():
    assert read(b"\xef\xbb\xbfa: 1").value == {"a": 1}


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: &x 1", 1, "anchors (&x)"),
        ("a: 1\nb: *x", 2, "aliases (*x)"),
        ("a: &x\n  b: *x", 1, "anchors (&x)"),
        ("path: *.csv", 1, "quote a text that starts with *"),
        ("a:\n  <<: {b: 1}", 2, "merge keys"),
        ("a: !!python/object/apply:os.system [x]", 1, "tags (tag:yaml.org,2002:python/object"),
        ("a: !x y", 1, "tags (!x)"),
        ("a: 1\nb: 2\na: 3", 3, "given twice, first on line 1"),
        ("a: {b: 1,\n b: 2}", 2, "given twice, first on line 1"),
        ("a: .nan", 1, ".nan is not a finite number"),
        ("a: [1, -.inf]", 1, "-.inf is not a finite number"),
        ("a: 1e999", 1, "1e999 is too large"),
        ("a: 99999999999999999999", 1, "more than 64 bits"),
        ("a: 9" + "9" * 9000, 1, "more than 64 bits"),
        ("a: 1\nb: x\0y", 2, "U+0000"),
        ("a: 1\nb: x\x85y", 2, "U+0085"),
        ('a: "x\\0y"', 1, "control character"),
        ('a: 1\nb: "\\ud800"', 2, "surrogate"),
        (b"a: 1\nb: \xff", 2, "byte 0xff is not UTF-8"),
        (b"a: 1\nb: \xed\xa0\x80", 2, "not UTF-8"),
        (b"\xff\xfea\x00:\x00", 1, "not UTF-8"),
        ("a: 1\n---\nb: 2", 2, "second document"),
        ("%YAML 1.1\n---\na: 1", 2, "only YAML 1.2"),
        ("? [a]\n: 1", 1, "a key must be a word"),
        ("1: x", 1, "expected a name as key, found 1"),
        ("a: 1\nb: 'x\nc: 2\n", 4, "that starts on line 2"),
        ("a:\n\tb: 1", 2, "not valid YAML"),
        ("[" * (MAX_DEPTH + 1), 1, "nested more than 32"),
        ("\n" + "a" * (MAX_LINE + 1), 2, "a line of more than"),
        ("\n".join(f"k{number}: 1" for number in range(9000)), 2500, "more than 5000 values"),
        ("a" * 300_000, None, "larger than 256 KB"),
    ],
)
def test_refused_with_the_line(text, line, part):
    found = problems(text)
    assert any(problem[0] == line and part in problem[2] for problem in found), found


def test_reading_goes_on_after_a_problem_of_one_value():
    assert [problem[:2] for problem in problems("a: &x 1\nb: !y 2\nc: *x\nd: 3\nd: .inf\ne: 4\n")] == [
        (1, "a"), (2, "b"), (3, "c"), (5, "d"), (5, "d"),
    ]  # fmt: skip


BOMB = "a: &a [1, 1]\n" + "".join(f"k{n}: &k{n} [*k{n - 1}, *k{n - 1}]\n" for n in range(1, 60))
ATTACKS = {
    "alias bomb": BOMB,
    "merge bomb": "k0: &k0 {a: 1}\n" + "".join(f"k{n}: &k{n}\n  <<: [*k{n - 1}, *k{n - 1}]\n" for n in range(1, 60)),
    "recursive anchor": "a: &a\n  b: *a\n",
    "brackets": "[" * 250_000,
    "brackets in lines": ("[" * 15_000 + "\n") * 15,
    "braces": "{" * 250_000,
    "dashes": "- " * 120_000,
    "question marks": "? " * 120_000,
    "exclamation marks": ("a: " + "!" * 16_000 + "\n") * 15,
    "keys": "\n".join(f"k{number}: v" for number in range(15_000)),
    "aliases": "a: [\n" + "*a,\n" * 60_000,
    "digits": "a: " + "9" * 16_000,
    "one long text": "a: x\n" + "  y\n" * 60_000,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_over_in_a_second(name):
    start = time.process_time()
    found = read(ATTACKS[name].encode())
    assert time.process_time() - start < 1
    if name != "one long text":
        assert found.problems


def test_attacks_take_no_memory():
    code = (
        "import resource, sys\n"
        "from finetune.recipe.yaml_lines import read\n"
        "read(b'a: 1')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for text in eval(sys.stdin.read()): read(text.encode())\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=repr([*ATTACKS.values()]), capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": {"c": [1, 2.5, "x"], "d": {}}, "e": None, "f": True, "g": 1e-05, "h": []},
        *[{"a": text} for text in ("", " ", "no", "null", "1", "1e-5", "001", ".5", "~", "true", ".inf", "- a", "# b")],
        *[{"a": text} for text in ("a: b", "a #b", "'", '"', "\\", "a\nb", "\t", "é", "😀", "\u2028 x", "---", "...")],
        *[
            {"a": text}
            for text in ("*x", "&x", "!x", "{a", "[a", "a,b", "@a", "`a", "%a", "|", ">", "?", "<<", "\r\n", "=")
        ],
        {"no": 1, "1": 2, "a b": 3, "a:": 4, "": 5, "é": 6, "<<": 7, "x": ["a, b", "]"], "y": {"k": ["a"]}},
    ],
)
def test_dump_is_read_back_unchanged(value):
    found = read(dump(value).encode())
    assert found.problems == []
    assert found.value == value
