"""The results page: what it says, that it needs nothing else, and how it behaves in a browser."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from kdbench.ledger.ledger import Ledger, open_ledger
from kdbench.ledger.page import render
from kdbench.ledger.published import COLUMNS
from support.ledgers import published
from support.records import fail, make_record, write

PAIR = "cifar100-resnet32x4_resnet8x4-240ep-b64-last"
# Gains over KD by seed, and the scores of CE.
GAINS = {"dkd": (1.5, 1.55, 1.45), "at": (-1.0, -1.1, -0.9), "dist": (0.5, -0.4, 0.2)}
KD = (73.2, 73.5, 73.35)
CLAIMS = {"KD": ("kd", 73.33), "DKD": ("dkd", 74.8), "AT": ("at", 74.0), "DIST": ("dist", 76.0)}


class Rows(HTMLParser):
    """The leaderboards of a page, by section: rows as text by column, in order; and hidden ones."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[dict[str, str]]] = {}
        self.hidden: set[str] = set()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.keys: list[str] = []
        self.row: dict[str, str] | None = None
        self.section = ""
        self.column = -1
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag == "section" and given.get("class") == "table":
            self.section, self.keys = given["id"] or "", []
            self.tables[self.section] = []
            self.hidden |= {self.section} if "hidden" in given else set()
        elif tag == "thead":
            self.keys = []
        elif tag == "th" and "data-key" in given:
            self.keys.append(given["data-key"] or "")
        elif tag == "tr":
            self.row, self.column = None, -1
            if "data-method" in given:
                self.row = {}
                if "hidden" not in given:
                    self.tables[self.section].append(self.row)
        elif tag in ("td", "th") and self.row is not None:
            self.column += 1
            self.row[self.keys[self.column]] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.row = None

    def handle_data(self, data: str) -> None:
        if self.row is not None and self.column >= 0:
            self.row[self.keys[self.column]] += data.strip("\n")

    def methods(self, table: str = PAIR) -> list[str]:
        return [row["method"] for row in self.tables[table]]

    def row_of(self, method: str, table: str = PAIR) -> dict[str, str]:
        (row,) = (row for row in self.tables[table] if row["method"] == method)
        return row


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    folder = tmp_path_factory.mktemp("page")
    curve = [20 + 1.2 * epoch for epoch in range(45)]
    records = [make_record("simkd", 0, 76.5, cpu_seconds=9000.0), fail(make_record("vid", 1))]
    for seed, kd in enumerate(KD):
        curves = {"curve": {"test/top1": [*curve, kd]}}
        records.append(make_record("ce", seed, kd - 1, teacher="none", **curves))
        records.append(make_record("kd", seed, kd, **curves))
        for method, gains in GAINS.items():
            records.append(make_record(method, seed, round(kd + gains[seed], 2), **curves))
    small = {"student": "resnet8", "epochs": 12}
    records.append(make_record("kd", 0, 50.0, teacher="resnet32", **small))
    records.append(make_record("ce", 0, 46.0, teacher="none", **small))
    write(folder / "runs", *records)
    (folder / "runs" / "torn-s0-1.json").write_text("{")
    lines = [",".join(COLUMNS)]
    for label, (method, top1) in {**CLAIMS, "CRD": ("crd", 75.51)}.items():
        row = dict.fromkeys(COLUMNS, "") | {"source": "Tables", "dataset": "cifar100"}
        row |= {"teacher": "resnet32x4", "student": "resnet8x4", "method": label}
        row |= {
            "kdbench": method,
            "metric": "top1",
            "score": str(top1),
            "epochs": "240",
            "protocol": "last",
        }
        lines.append(",".join((row | {"url": "https://example.org/tables"}).values()))
    row = {"source": "Tables", "dataset": "cifar100", "teacher": "none", "student": "resnet32x4"}
    row |= {"method": "CE", "kdbench": "ce", "metric": "top1", "score": "79.5"}
    row |= {"epochs": "240", "protocol": "last"}
    row = dict.fromkeys(COLUMNS, "") | row | {"url": "https://example.org/tables"}
    lines.append(",".join(row.values()))
    (folder / "published.csv").write_text("\n".join(lines) + "\n")
    control = make_record("dkd", 0, 74.0)
    control["config"]["method"]["name"] = "dkd_half"
    control["config"]["method"]["alpha"] = 0.5
    control |= {"hash": "c" * 8, "cell": control["cell"] + "_half"}
    write(folder / "controls", control | {"run_id": f"{control['cell']}-s0-{'c' * 8}"})
    given = [folder / "runs"], folder / "published.csv"
    return open_ledger(*given, controls=folder / "controls")


@pytest.fixture(scope="module")
def page(ledger: Ledger) -> str:
    return render(ledger)


def test_rows_say_rank_score_gain_claim_and_verdict(page):
    rows = Rows(page)
    ran = ["simkd", "dkd", "dist", "kd", "at", "ce"]
    names = [m.rstrip("†*") for m in rows.methods()[:8]]
    assert names == [*ran[:2], "dkd_half", *ran[2:], "vid"], "a control stands behind its method"
    ranks = [row["rank"] for row in rows.tables[PAIR][:8]]
    expected = ["", "1", "", "2", "3", "4", "4", ""]
    assert ranks == expected, "equal scores share one, one seed and a control have none"
    dkd = rows.row_of("dkd")
    assert dkd["rank"] == "1"
    assert dkd["score"] == "74.85 ± 0.18"
    assert dkd["n"] == "3"
    assert dkd["gain"] == "+1.50 [+1.38, +1.62]"
    assert dkd["claim"] == "+1.47"
    assert dkd["verdict"] == "✓ reproduced"
    assert dkd["published"] == "74.80 Tables"
    assert dkd["gap"] == "+0.05"
    assert dkd["best"] == "+0.30"
    assert dkd["cost"] == "1.50 CPU-h"
    assert rows.row_of("dist")["gain"].endswith("≈ tie")
    assert rows.row_of("dist")["verdict"] == "≈ tie"
    assert rows.row_of("at")["gain"].startswith("−1.00 [−1.25, −0.75]")
    assert rows.row_of("at")["verdict"] == "✗ not reproduced"
    simkd = rows.row_of("simkd")
    assert (simkd["rank"], simkd["interval"]) == ("", ""), "one seed has no interval"
    assert simkd["verdict"] == "1 seed: no verdict"
    half = next(row for row in rows.tables[PAIR] if row["method"].startswith("dkd_half"))
    assert (half["gain"], half["verdict"]) == ("+0.80", "control of dkd")


def test_what_failed_and_what_nobody_ran_is_shown(page):
    rows = Rows(page)
    vid = next(row for row in rows.tables[PAIR] if row["method"].startswith("vid"))
    assert (vid["rank"], vid["score"], vid["n"]) == ("", "failed", "failed: 1")
    assert "a loss is not finite: lower the learning rate" in page
    crd = rows.row_of("crd")
    assert (crd["score"], crd["verdict"]) == ("not run", "○ not run")
    assert crd["published"] == "75.51 Tables"


def test_a_table_is_one_pair_and_one_protocol_and_has_only_the_columns_that_it_needs(page):
    rows = Rows(page)
    assert rows.methods("cifar100-resnet32_resnet8-12ep-b64-last") == ["kd", "ce"]
    assert "published" not in rows.tables["cifar100-resnet32_resnet8-12ep-b64-last"][0]
    assert "cifar100, 12 epochs, batches of 64, fp32; scored on the test set after the" in page


def test_every_number_leads_to_its_records_its_source_and_its_command(page):
    tags = Rows(page).tags
    links = {given["href"] for tag, given in tags if tag == "a"}
    assert "https://example.org/tables" in links
    assert len([link for link in links if str(link).startswith("runs/cifar100-")]) == 18
    assert "pair=resnet32x4_resnet8x4" in page
    assert "method=at,ce,dist,dkd,kd,simkd seed=0,1,2" in page


def test_charts_name_their_marks(page):
    for title in (
        "dkd, seed 1: 75.05",
        "dkd, published: 74.80 (Tables)",
        "dkd, ours: 74.85 (n = 3)",
        "dkd, claimed: +1.47 (Tables)",
        "dkd, our gain: +1.50 (n = 3)",
    ):
        assert f"<title>{title}</title>" in page
    figures = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert figures.count("Learning curves") == 2
    assert figures.count("Every seed") == 1, "one seed a method has nothing to spread"
    assert figures.count("Gains over KD") == 1
    assert {"Published and ours", "Scores and intervals", "Accuracy against cost (CPU-h)"} <= {
        *figures
    }


def test_the_headline_comes_first_and_what_was_not_run_is_one_line(page):
    sections = re.findall(r'<section class="table" id="([^"]*)"', page)
    assert sections[0] == PAIR
    first = page.partition(f'id="{PAIR}"')[2].partition("</section>")[0]
    assert "Teacher, measured here: resnet32x4 (11111111): 79.42%." in first
    assert "Teacher, published: resnet32x4: 79.50% (Tables)." in first
    folded = first.partition('<details class="waiting">')[2].partition("</details>")[0]
    assert (
        "<summary>○ 1 cell not run: one seed each is about 1.6 CPU-h (fp32, AMD EPYC, 2" in folded
    )
    assert "by 16 runs of 240 epochs)</summary>" in folded
    assert "method=crd seed=0,1,2" in folded
    assert "hydra.launcher.order=value" in folded


def test_one_seed_is_drawn_hollow(page):
    filled = r"<title>%s</title>.*?fill: var\(--(\w+)\)"
    assert re.search(filled % r"simkd†?, ours: 76\.50 \(n = 1\)", page)[1] == "paper"
    assert re.search(filled % r"dkd, ours: 74\.85 \(n = 3\)", page)[1] == "hue0"


def test_the_most_wanted_cells_have_a_command_and_a_cost(page):
    wanted = page.partition('<section id="wanted"')[2].partition("</section>")[0]
    rows = re.findall(r'<tr><th scope="row">(\w+)<td>([^<]*)<td>([^<]*)<td>([^<]*)', wanted)
    assert rows[0] == ("crd", "0", "its first number", "1.6 CPU-h")
    names = [name for name, *_ in rows]
    assert not {"dkd", "at"} & {*names[: names.index("ce")]}, "they have a number"
    assert rows[names.index("ce")][1:3] == ("3, 4", "every gain is measured against it")
    assert "kdbench-train +experiments=campaign_cifar100 method=crd seed=0" in wanted


def test_a_verdict_on_a_published_score_names_its_precision(tmp_path):
    bf16 = []
    for method, scores in {"kd": KD, "dkd": (74.8, 75.1, 74.9)}.items():
        for seed, score in enumerate(scores):
            record = make_record(method, seed, score, protocol="cifar100-240ep-b64-bf16-last")
            record["config"]["schedule"]["precision"] = "bf16"
            bf16.append(record)
    path = published(tmp_path / "published.csv", ("A", "kd", "KD", 73.3, "last"))
    page = render(open_ledger([write(tmp_path / "runs", *bf16)], path))
    assert "✓ reproduced (bf16)" in page


def test_problems_are_listed(page):
    assert re.search(r'<h2 id="problems">Left out</h2>\n<ul><li>[^<]*torn-s0-1.json', page)


def test_the_same_bytes_whatever_matplotlib_is_told(ledger, page):
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9}):
        assert render(ledger) == page
    assert render(Ledger(ledger.cells, ())) != page


def test_nothing_is_loaded(page):
    tags = Rows(page).tags
    assert [given for tag, given in tags if tag == "script"] == [{}]
    for tag, given in tags:
        assert "src" not in given
        if tag not in ("a", "use"):
            assert given.get("href") in (None, "data:,"), tag
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)", page))
    assert "@import" not in page
    assert page.count("http://") == 0
    assert len(page) < 300_000


def test_ids_are_unique_and_all_that_is_referred_to_exists(page):
    tags = Rows(page).tags
    ids = [given["id"] for _, given in tags if "id" in given]
    assert len(ids) == len(set(ids))
    used = {str(given["href"])[1:] for _, given in tags if str(given.get("href")).startswith("#")}
    assert used <= {*ids}
    assert set(re.findall(r"url\(#([^)]*)", page)) <= {*ids}


def test_names_are_text(ledger):
    name = '<script>alert("x")</script> $\\alpha$ <img src=x onerror=alert(1)>'
    cell = next(cell for cell in ledger.cells if cell.method == "dkd")
    published = replace(cell.published, source=name, url="javascript:alert(1)", note=name)
    evil = replace(cell, method=name, student=name, published=published, claim_source=name)
    page = render(Ledger((evil,), (name,)))
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "javascript:" not in page
    assert not any(word.startswith("on") for _, given in Rows(page).tags for word in given)
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") > 5


def test_an_empty_ledger_says_how_to_fill_it():
    assert "There are no results yet" in render(Ledger((), ()))


Browse = Callable[..., str]


@pytest.fixture
def browse(page: str, tmp_path: Path) -> Browse:
    """Open the page in a browser without a window; returns the document after its script ran."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip(f"no browser: install one of {', '.join(names)}")
    file = tmp_path / "index.html"
    file.write_text(page)
    command = [browser, "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--host-resolver-rules=MAP * 0.0.0.0"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses root

    def run(fragment: str, *arguments: str) -> str:
        line = [*command, *arguments, f"{file.as_uri()}{fragment}"]
        return subprocess.run(line, capture_output=True, text=True, check=True, timeout=120).stdout

    return run


def test_a_link_filters(browse):
    link = "#pair=cifar100-resnet32x4_resnet8x4&method=dist"
    rows = Rows(browse(link, "--dump-dom"))
    assert rows.methods() == ["dist"]
    assert rows.row_of("dist")["rank"] == "2", "a rank is a rank in the whole table"
    assert PAIR not in rows.hidden
    assert rows.hidden == {*rows.tables} - {PAIR}


def test_a_link_sorts_and_cells_without_a_number_come_last(browse):
    document = browse("#sort=gain&order=asc&run=1", "--dump-dom")
    rows = Rows(document)
    methods = [method.removesuffix("†") for method in rows.methods()]
    assert methods[:5] == ["at", "dist", "dkd_half*", "dkd", "simkd"]
    assert {*methods[5:]} == {"kd", "ce"}
    assert "○ not run" not in {row["verdict"] for row in rows.tables[PAIR]}
    sorted_by = [given for tag, given in rows.tags if given.get("aria-sort") == "ascending"]
    assert {given["data-key"] for given in sorted_by} == {"gain"}
    assert re.search(r'<th[^>]*data-key="gain"[^>]*><button type="button">Gain over KD', document)


def test_words_filter_too(browse):
    rows = Rows(browse("#q=not+reproduced&protocol=cifar100-240ep-b64-last", "--dump-dom"))
    assert rows.methods() == ["at"]
    assert Rows(browse("#q=nothing+of+this", "--dump-dom")).hidden == {*rows.tables}


@pytest.mark.parametrize("width", [400, 1400])
def test_it_is_painted(browse, tmp_path, width):
    file = tmp_path / "page.png"
    browse("", f"--window-size={width},1600", f"--screenshot={file}")
    with Image.open(file) as image:
        assert image.size == (width, 1600)
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100
    assert max(count for count, _ in colours) < 0.97 * width * 1600, "a blank page"
