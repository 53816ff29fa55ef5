"""Text of others, shown and not obeyed, in each medium."""

import csv
import io
import os
import subprocess

import pytest

from kdbench.ledger.commands import commands
from kdbench.ledger.formats import latex, markdown, render
from kdbench.ledger.ledger import open_ledger, tables
from kdbench.system.escapes import as_csv, as_html, as_latex, as_markdown, for_terminal
from support.records import fail, make_record, write

LIVE = [
    "[x](javascript:1)",
    "![x](y)",
    "<img src=x>",
    "`a`",
    "*a*",
    "__a__",
    "~~a~~",
    "a|b",
    "&lt;",
]
LIVE += ["https://evil.example", "www.evil.example", "@somebody", "# head", "$x$"]


@pytest.mark.parametrize("text", LIVE)
def test_markdown_is_text(text):
    made = as_markdown(text)
    assert made != text
    assert made.replace("\\", "") == text


@pytest.mark.parametrize("text", ["dr_kd", "wrn_40_2", "p < 0.001", "-0.5", "a & b > c"])
def test_honest_words_stay_as_they_are(text):
    assert as_markdown(text) == text


def test_each_medium():
    assert for_terminal("a\x1b[31m\x9b\u202e\ud800\nb") == "a?[31m???\nb"
    assert as_html('<b>\x1b&"') == "&lt;b&gt;?&amp;&quot;"
    assert as_latex("[1] *x\\input{y}") == r"{[}1{]} {*}x\textbackslash{}input\{y\}"


@pytest.mark.parametrize(
    "text", ["=1", "+1", "-1", "@a", "＝1", "＋1", "－1", "＠a", " =1", "−1", "\t=1"]
)
def test_no_cell_is_a_formula(text):
    assert as_csv(f"{text}1").startswith("'")
    assert as_csv("a=1") == "a=1"


def test_a_table_s_names_and_errors_are_shown_in_every_form(command, tmp_path):
    odd = "[a](b)*<i>"
    failed = fail(make_record(odd, 1), "a \x1b[31mred\x1b[0m [error](http://evil.example) \x07")
    write(tmp_path / "runs", make_record(odd), failed, make_record("＝1+1"))
    made = tables(open_ledger([tmp_path / "runs"], None))
    text = markdown(made[0])
    assert r"| \[a\](b)\*\<i> " in text
    assert r"a ?\[31mred?\[0m \[error\](http:\//evil.example)" in text
    assert "\n{[}a{]}(b){*}$<$i$>$ &" in latex(made[0])
    rows = csv.DictReader(io.StringIO(render(made, "csv")))
    assert {row["method"] for row in rows} == {odd, "'＝1+1"}
    for result in (command("table"), command("table", "a\x1b[31mb")):
        assert "\x1b" not in result.out + result.err


NAMES = ["kd; touch x", "$(touch x)", "`touch x`", "a'b", 'a "b"', "a,b", "null"]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_that_is_pasted_runs_nothing_else(tmp_path, name):
    """A shell reads one command, and Hydra the name as it is."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    write(tmp_path / "runs", make_record(name, settings={"temperature": 2.0}, student=name))
    (table,) = tables(open_ledger([tmp_path / "runs"], None))
    script = "kdbench-train() { printf '%s\\0' \"$@\"; }\n" + commands(table)
    bash = ["bash", "-c", script.replace("kdbench-train", "kdbench_train")]
    done = subprocess.run(bash, capture_output=True, cwd=tmp_path, env=os.environ, check=True)
    words = done.stdout.decode().split("\0")[:-1]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    parsed = OverridesParser.create().parse_overrides([w for w in words if not w.startswith("-")])
    values = {one.get_key_element(): one.value() for one in parsed}
    for key in ("student", "method"):
        assert getattr(values[key], "text", values[key]) == name
