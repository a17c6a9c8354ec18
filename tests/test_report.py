"""The report: what is on the page, what cannot get onto it, and that it is the same each time."""

from __future__ import annotations

import html
import json
import random
import re
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from forged_records import forge, many, write
from forks import Forks

from sparta_bench.cli.report_command import main
from sparta_bench.errors import InputError
from sparta_bench.paper import number_of, results_of
from sparta_bench.records.read import read_records, record_of
from sparta_bench.records.record import Record
from sparta_bench.report import plots, report
from sparta_bench.report.facts import cards_of
from sparta_bench.report.pictures import _curves, thinned
from sparta_bench.report.plots import TONES, Lines, Panel, inline_svg, style
from sparta_bench.tables.paper_tables import score_of
from sparta_bench.tables.protocol import BACKBONE, GLUE
from sparta_bench.tables.select import select

SECTIONS = ("What came out", "Models and tasks", "Tables", "Failed and left out", "Environment")
TABLE4 = (
    ("full_ft", None, "full_ft"),
    ("sparta", 0.05, "sparta-5"),
    ("sparta", 0.005, "sparta-0.5"),
    ("sparta", 0.000465, "sparta-lora"),
    ("lora", None, "lora"),
    ("head", None, "head"),
)


# ---------------------------------------------------------------------------------- forging
def run(
    method: str = "lora",
    density: float | None = None,
    seed: int = 0,
    *,
    model: str = "stories",
    task: str = "sst2",
    loss: float = 0.3,
    score: float = 0.9,
    points: int = 12,
    **changes: Any,
) -> dict[str, Any]:
    """A record with a history, costs and an environment; `score` is accuracy and mcc, 0 to 1."""
    noise = random.Random(repr((model, task, method, density, seed)))
    history = []
    for index in range(points):
        left = 0.97 ** (60 * index / points)
        dev = loss + (0.7 - loss) * left + noise.gauss(0, 0.01)
        train = None if index == 0 else 0.8 * loss + (0.7 - 0.8 * loss) * left
        history.append({
            "step": 50 * index, "epoch": index / 4, "train_loss": train, "dev_loss": dev,
            "dev_accuracy": score, "dev_mcc": score, "learning_rate": 1e-3,
        })  # fmt: skip
    total = BACKBONE.get(model, 3_148_224)
    trained = {"full_ft": total + 4096, "head": 4096, "lora": total // 2000 + 4096}
    extras = {
        "trainable": trained.get(method, round(total * (density or 0.0)) + 4096),
        "started": "2026-11-23T22:05:10+00:00",
        "finished": "2026-11-24T01:05:51+00:00",
        "history": history,
        "training": {
            "steps": 50 * (points - 1), "best_step": 50 * (points - 3), "seconds": 900.0 + seed,
            "peak_memory_bytes": 25_000_000_000 + 1_000_000 * seed,
        },
        "environment": {
            "versions": {"sparta_bench": "0.1.0", "torch": "2.13.0"}, "platform": "linux x86_64",
            "device": {"type": "cuda", "name": "NVIDIA H100", "threads": 8}, "processes": 1,
            "dtypes": {"model": "bfloat16", "trained": "float32"},
            "git_revision": "18791f734d3d65ac180b6df3d98d60cd66831012", "dirty": False,
        },
    }  # fmt: skip
    scores = {"loss": loss, "accuracy": score, "mcc": score}
    return forge(
        model, task, method, density, seed=seed, dev=loss, test=scores, **{**extras, **changes}
    )


def failed(message: str = "no memory left", kind: str = "OutOfMemoryError", **what: Any) -> Any:
    """A failed record with the first part of a history."""
    record = run(**{"status": "failed", **what})
    history = record["history"][:5]
    for entry in history:
        entry["dev_loss"] *= 1 + entry["step"] / 40
    error = {"type": kind, "message": message, "traceback": ""}
    return record | {"error": error, "history": history}


def table4(model: str = "gemma-2b-it", seeds: int = 3) -> list[dict[str, Any]]:
    """Records for all cells of a table of the paper, near its values."""
    records = []
    for task in GLUE:
        for method, density, row in TABLE4:
            printed = results_of(4)[row]
            for seed in range(seeds):
                noise = random.Random(f"{task} {row} {seed}").gauss(0, 0.008)
                score = number_of(printed[f"{task}.{score_of(task)}"]) / 100 + noise
                loss = number_of(printed[f"{task}.loss"]) + noise
                records.append(
                    run(method, density, seed, model=model, task=task, loss=loss, score=score)
                )
    return records


def record_from(raw: dict[str, Any]) -> Record:
    """The record as it is read."""
    found = record_of(Path("result.json"), raw)
    assert isinstance(found, Record)
    return found


def place(folder: Path, *records: dict[str, Any]) -> Path:
    """Records in folders of plain names, whatever names of models and tasks they bear."""
    for number, record in enumerate(records):
        inside = folder / f"{number:04d}"
        inside.mkdir(parents=True)
        (inside / "result.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def page_of(folder: Path, *options: str) -> str:
    """The page that the command writes."""
    main([str(folder), "--out", str(folder.with_name("out")), *options])
    return folder.with_name("out").joinpath("report.html").read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Tags in order; fails on a tag that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def table_named(page: str, title: str) -> list[list[str]]:
    """The texts of a table's body."""
    body = re.search(rf"<span>{re.escape(title)}</span>.*?<tbody>(.*?)</tbody>", page, re.DOTALL)
    assert body is not None
    return [
        [html.unescape(re.sub("<.*?>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        for row in body[1].split("<tr")[1:]
    ]


def alts(page: str) -> list[str]:
    """What the drawings say to who cannot see them."""
    return [chart.get("aria-label", "") for chart in charts(page)]


def cards_on(page: str) -> dict[str, tuple[str, str]]:
    """Verdict and what is missing, by the title of the card."""
    found = {}
    for card in re.findall(r'<article class="card">.*?</article>', page, re.DOTALL):
        texts = [
            re.search(pattern, card, re.DOTALL)
            for pattern in ("<h3>(.*?)</h3>", 'class="verdict">(.*?)</p>', 'missing">(.*?)</p>')
        ]
        title, verdict, missing = (html.unescape(text[1]) if text else "" for text in texts)
        found[title] = (verdict, missing)
    return found


def charts(page: str) -> list[ElementTree.Element]:
    """All drawings, which are XML too, in their order."""
    return [
        ElementTree.fromstring(text)
        for text in re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)
    ]


# ------------------------------------------------------------------------------------- page
def test_a_full_table_is_there_with_its_pictures(tmp_path: Path) -> None:
    write(tmp_path / "records", *table4())
    page = page_of(tmp_path / "records", "--page-only")
    outline = Outline(page)
    assert "126 records" in page and "2026-11-23 to 2026-11-24" in page
    assert re.findall(r"<h2.*?>(.*?)</h2>", page) == list(SECTIONS)
    # one of the table; score and loss a task; time and memory
    assert len(charts(page)) == 1 + 7 * 2 + 2
    assert list(cards_on(page)) == ["Table 4: gemma-2b-it on GLUE"]
    assert "Without any run: Table 3, Table 5, Table 10, Table 11 of the paper." in page
    # pictures come before tables
    first_table = page.index("<table")
    assert page.index('<svg class="chart"') < page.index('<h2 id="models">') < first_table
    numbers = table_named(page, "The numbers of gemma-2b-it")
    assert len(numbers) == 42
    assert numbers[0][:4] == ["QNLI", "Full FT", "2,506,176,512", "100"]
    assert numbers[5][:4] == ["QNLI", "Head", "4,096", "0.000163"]
    assert numbers[0][8:] == ["15 min", "25.0 GB", "3", "1", "0"]
    assert "No run failed." in page and "No record is left out." in page
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    links = [value[1:] for value in outline.values("href") if value.startswith("#")]
    assert set(links) <= set(ids)


def test_a_card_says_how_ours_lies_to_the_papers(tmp_path: Path) -> None:
    """RTE and QNLI of LoRA, in the paper 88.1 and so on: one within our spread, one not."""
    printed = {task: number_of(results_of(4)["lora"][f"{task}.accuracy"]) for task in GLUE[:2]}
    runs = [
        run("lora", None, seed, model="gemma-2b-it", task=task, score=(value + off) / 100)
        for (task, value), offs in zip(
            printed.items(), ((-1.0, 0.0, 1.5), (4.0, 4.1, 4.2)), strict=True
        )
        for seed, off in enumerate(offs)
    ]
    write(tmp_path / "records", *runs)
    page = page_of(tmp_path / "records", "--page-only")
    ((verdict, missing),) = cards_on(page).values()
    assert verdict == (
        "1 of 2 scores agree with the paper within our spread over seeds; the largest difference "
        "is +4.1 points (LoRA, RTE)."
    )
    assert missing == (
        "40 of 42 cells without a completed run: Full FT: all; SpaRTA (5%): all; SpaRTA (0.5%): "
        "all; SpaRTA (0.0465%): all; LoRA: SST2, QQP, MNLI, MRPC, COLA; Head: all."
    )
    alt = alts(page)[0]
    mean, qnli = printed["qnli"] + 0.5 / 3, printed["qnli"]
    assert f"QNLI: LoRA {mean:.1f} ± 1.3 (paper {qnli:g});" in alt
    (card,) = cards_of(select(read_records([tmp_path / "records"])[0]))
    assert {at: (round(one.points, 1), one.within) for at, one in card.differences.items()} == {
        (4, 0): (0.2, True),
        (4, 1): (4.1, False),
    }
    drawn = [element.text for element in charts(page)[0].iter("text")]
    assert "+0.2" in drawn and "+4.1" in drawn and "Points less the paper’s" in drawn


def test_of_one_seed_no_card_says_that_it_agrees(tmp_path: Path) -> None:
    write(tmp_path / "records", run("head", model="gemma-2b", task="rte", score=0.5))
    ((verdict, _),) = cards_on(page_of(tmp_path / "records", "--page-only")).values()
    paper = number_of(results_of(10)["head"]["rte.accuracy"])
    largest = f"{50 - paper:+.1f}"
    assert verdict == (
        f"One seed each, so there is no spread; the largest difference is {largest} points "
        "(Head, RTE)."
    )


def test_other_models_compare_sparta_with_lora(tmp_path: Path) -> None:
    """At equal counts only: a SpaRTA of another size is no partner."""
    scores = {"level": (0.80, 0.801), "ahead": (0.9, 0.8), "behind": (0.7, 0.8)}
    runs = [
        run(method, density, seed, task=task, score=score + spread, trainable=50_000)
        for task, pair in scores.items()
        for (method, density), score in zip((("sparta", 0.01), ("lora", None)), pair, strict=True)
        for seed, spread in enumerate((-0.01, 0.0, 0.01))
    ]
    runs += [run("sparta", 0.05, seed, task="level", score=0.99) for seed in range(3)]
    write(tmp_path / "records", *runs)
    page = page_of(tmp_path / "records", "--page-only")
    assert cards_on(page)["stories"][0] == (
        "SpaRTA beside LoRA with as many trained scalars, test scores: level on 1, ahead on 1, "
        "behind on 1 of 3 (level: within their spread over seeds)."
    )


def test_without_such_a_pair_the_best_method_is_named(tmp_path: Path) -> None:
    scores = {"rte": (0.8, 0.6), "sst2": (0.7, 0.9), "qnli": (0.8, 0.7)}
    runs = [
        run(method, task=task, score=score)
        for task, pair in scores.items()
        for method, score in zip(("lora", "head"), pair, strict=True)
    ]
    write(tmp_path / "records", *runs)
    ((verdict, missing),) = cards_on(page_of(tmp_path / "records", "--page-only")).values()
    assert verdict == "Highest mean test score: LoRA on QNLI, RTE; Head on SST2."
    assert missing == ""


def test_embedded_models_come_last_and_are_called_so(tmp_path: Path) -> None:
    records = [run(model=name, task="sst2", seed=seed) for name in ("a", "b") for seed in (0, 1)]
    records += [run(model="tiny-gemma", task="tiny-sst2", seed=seed) for seed in (0, 1)]
    write(tmp_path / "records", *records)
    page = page_of(tmp_path / "records", "--page-only")
    titles = ["a", "b", "Like Table 10: tiny-gemma on the tiny GLUE tasks"]
    assert list(cards_on(page)) == titles
    assert page.count('<p class="soft tag">embedded tiny model</p>') == 1
    models = re.findall(r"<summary>(.*?) <small>\d+ task", page)
    assert models == ["a", "b", "tiny-gemma (embedded tiny model)"]
    for part in re.findall(r"<details>.*?</details>", page, re.DOTALL):
        assert ("tiny-gemma" in part) == ("0.2 million parameters" in part)


def test_nothing_comes_from_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "records", *table4(seeds=1))
    page = page_of(tmp_path / "records", "--page-only")
    outline = Outline(page)
    assert not {"script", "img", "iframe", "object", "image"} & outline.tags.keys()
    assert outline.values("src") == [] and outline.tags["style"] == 1
    assert {value for value in outline.values("href") if not value.startswith("#")} == {"data:,"}
    assert not re.search(r"@import|https?:|url\((?!#[cm]\d+-\d+\))", page)
    assert page.count("Content-Security-Policy") == 1
    assert "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\"" in page
    assert not (tmp_path / "out" / "figures").exists()


HOSTILE = "<script>alert(1)</script></svg></style>\"'&amp;$\\frac{"


def test_what_records_say_is_text(tmp_path: Path) -> None:
    names = {"model": HOSTILE, "task": f"task {HOSTILE}"}
    environment = {
        "versions": {HOSTILE: HOSTILE}, "platform": HOSTILE, "git_revision": HOSTILE,
        "device": {"type": HOSTILE, "name": HOSTILE}, "processes": HOSTILE, "dirty": HOSTILE,
        "dtypes": {"model": HOSTILE, "trained": HOSTILE},
    }  # fmt: skip
    records = [run(method, None, seed, **names) for method in ("lora", "head") for seed in (0, 1)]
    records += [
        run(**names) | {"run_id": "1", "method": f"{HOSTILE} method"},
        failed(HOSTILE, HOSTILE, seed=5, **names),
    ]
    records += [run(seed=6, **names) | {"started": HOSTILE, "protocol": HOSTILE}]
    records[0]["environment"] = environment
    records[1]["run_id"] = records[0]["run_id"]
    records += [{"schema": HOSTILE}, run("lora", seed=9, **names) | {"status": HOSTILE}]
    place(tmp_path / HOSTILE.replace("/", ""), *records)
    page = page_of(tmp_path / HOSTILE.replace("/", ""))
    outline = Outline(page)
    assert "script" not in outline.tags and outline.tags["style"] == 1
    assert not [name for name, _ in outline.attributes if name.startswith("on")]
    assert "<script" not in page.lower()
    assert any("<script>alert(1)</script></svg>" in text for text in outline.texts)
    assert outline.tags["svg"] == page.count("</svg>")
    charts(page)
    for path in (tmp_path / "out" / "figures").iterdir():
        assert re.fullmatch(r"[a-z0-9.-]+\.(png|svg)", path.name)
        if path.suffix == ".svg":
            ElementTree.parse(path)


def test_characters_that_neither_xml_nor_utf_8_has_are_replaced(tmp_path: Path) -> None:
    odd = "a\ud800b\x00c\u202ed"
    place(tmp_path / "records", run(model=odd), failed(odd, odd, model=odd, seed=1))
    page = page_of(tmp_path / "records")
    assert "a\ufffdb\ufffdc\ufffdd" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    assert charts(page)


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    records = [*table4()[:18], failed(model="gemma-2b-it", task="qnli", seed=4)]
    write(tmp_path / "a" / "records", *records)
    write(tmp_path / "b" / "records", *reversed(records))
    made = []
    for name in ("a", "b"):
        page_of(tmp_path / name / "records")
        files = sorted((tmp_path / name / "out").rglob("*.*"))
        made.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    # report.html; the table; score, loss, time and memory
    assert len(made[0]) == 1 + 2 * 4
    assert made[0] == made[1]


def test_every_record_found_is_counted_once(tmp_path: Path) -> None:
    records = [run("lora", seed=seed) for seed in (0, 1)]
    records += [run("lora", seed=seed, loss=0.4, rate=1e-3) for seed in (0, 1)]
    records += [run("lora", seed=0, rate=2e-3)]  # fewer seeds
    records += [failed("no memory", seed=3), failed("odd", seed=4)]
    records += [run("head") | {"status": "interrupted"}, {"schema": 7}, records[0]]
    records += [run("lora", seed=0, base_model__fingerprint="other")]
    place(tmp_path / "records", *records)
    page = page_of(tmp_path / "records", "--page-only")
    counts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    assert counts == [
        ("shown", "2"), ("compared, not chosen", "2"), ("failed", "2"), ("left out", "5"),
    ]  # fmt: skip
    excluded = table_named(page, "Left out, and why")
    assert [row[1] for row in excluded] == ["1"] * 5
    assert ["a second copy of a run", "1", "records/0009"] in excluded
    assert "11 records" in page
    failures = table_named(page, "Failed runs")
    assert [row[4:] for row in failures] == [
        ["OutOfMemoryError", "no memory", "records/0005"],
        ["OutOfMemoryError", "odd", "records/0006"],
    ]
    assert str(tmp_path) not in page


def test_records_that_say_little_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    empty = run("lora") | {"environment": None, "training": None, "history": []}
    empty["parameters"] = {"total": 10, "trainable": "7"}
    odd = [{"step": "x"}, 7, {"step": 1, "dev_loss": float("inf")}, {"step": 2, "dev_loss": 1e38}]
    odd += [{"step": True, "dev_loss": 0.5}, {"step": 3, "dev_loss": 0.5}]
    odd += [{"step": 10**400, "dev_loss": 0.5}]
    records = [empty, run("head") | {"history": odd}, run("head", seed=1) | {"history": "none"}]
    records += [run("full_ft") | {"training": {"seconds": float("nan"), "best_step": [3]}}]
    records += [failed() | {"error": None, "training": None, "history": None}]
    place(tmp_path / "records", *records)
    page = page_of(tmp_path / "records")
    assert "not recorded" in page and "no message" in page
    assert "nan" not in page and "inf" not in re.sub("information", "", page)
    for chart in charts(page):
        for element in chart.iter():
            assert "nan" not in element.get("d", "")


def test_only_failed_runs_make_a_page(tmp_path: Path) -> None:
    write(tmp_path / "records", failed(model="gemma-2b", task="rte"))
    page = page_of(tmp_path / "records")
    ((verdict, missing),) = cards_on(page).values()
    assert verdict == "No run completed."
    assert missing.startswith("42 of 42 cells without a completed run: Full FT: all;")
    assert len(charts(page)) == 2  # the table, the loss of the failed run
    assert alts(page)[1].startswith("Dev loss on RTE: failed: seed 0 ")


@pytest.mark.slow
def test_ten_thousand_records_take_seconds_and_less_than_2_mb(tmp_path: Path) -> None:
    read = [record_of(tmp_path / f"{at}", raw) for at, raw in enumerate(many(10_000))]
    records = [record for record in read if isinstance(record, Record)]
    assert len(records) == 10_000
    before = time.process_time()
    page, figures = report.report([tmp_path], records, [])
    assert time.process_time() - before < 60  # 10 s where nothing else runs
    assert 500_000 < len(page.encode()) < 2_000_000
    models = {record.cell.model for record in records}
    tasks = {(record.cell.model, record.cell.task) for record in records}
    # score, loss and settings of each task; no record has a time
    assert len(charts(page)) == len(cards_on(page)) + 3 * len(tasks)
    assert len(figures) == len(cards_on(page)) + 3 * len(models)


# ------------------------------------------------------------------------------------ figures
def test_a_failed_run_is_marked_at_the_frames_edge(tmp_path: Path) -> None:
    write(tmp_path / "records", run(), failed(seed=1))
    page = page_of(tmp_path / "records", "--page-only")
    (loss,) = [chart for chart in charts(page) if "Dev loss" in chart.get("aria-label", "")]
    crosses = [use for use in loss.iter("use") if "var(--bad)" in use.get("style", "")]
    assert [float(use.get("y", "")) for use in crosses] == [24.0]  # the top of the axes
    assert "failed: seed 1 " in loss.get("aria-label", "")


def test_settings_are_drawn_by_learning_rate_and_the_chosen_one_is_named(tmp_path: Path) -> None:
    write(tmp_path / "records", *(run(rate=rate, loss=loss) for rate, loss in
                                  ((1e-4, 0.4), (2e-4, 0.3), (4e-4, 0.5))))  # fmt: skip
    page = page_of(tmp_path / "records", "--page-only")
    (alt,) = [alt for alt in alts(page) if alt.startswith("Settings")]
    assert alt == "Settings compared on SST2: LoRA 0.300 at 0.0002, of 3"


def test_colours_are_the_pages_variables_and_ids_the_drawings_own() -> None:
    def draw(frame: plots.Frame) -> None:
        lines = [Lines([0, 1], [0, 1], tone, {"marker": "o"}) for tone in TONES]
        frame.chart(lines, "label")

    with style():
        text = inline_svg(Panel("A <b>", "", 'say "x"', draw), "p7")
    assert {f"var(--{tone})" for tone in TONES} <= set(re.findall(r"var\(--\w+\)", text))
    assert not re.findall(r"#[0-9a-f]{6}", text)
    ids = re.findall(r' id="(.*?)"', text)
    assert ids and all(re.fullmatch(r"p7-\d+", name) for name in ids)
    assert set(re.findall(r'(?:href="#|url\(#)(.*?)["\)]', text)) <= set(ids)
    assert "A &lt;b&gt;</text>" in text and 'aria-label="say &quot;x&quot;"' in text
    assert "<style" not in text and "font-family" not in text and "xmlns" not in text


def test_long_histories_are_thinned_but_keep_ends_and_best_state(tmp_path: Path) -> None:
    assert thinned(range(5), 60) == [0, 1, 2, 3, 4]
    shown = thinned(range(10_000), 60)
    assert len(shown) == 60 and shown[0] == 0 and shown[-1] == 9_999
    long = run(points=20_000)
    (curve,) = _curves([record_from(long)], "LoRA")
    assert len(curve.steps) == 61 and curve.kept[0][0] == 50 * 19_997
    assert curve.kept[0][0] in curve.steps and curve.steps[-1] == 50 * 19_999
    write(tmp_path / "records", long)
    assert len(page_of(tmp_path / "records", "--page-only")) < 60_000


def test_panels_have_a_limit_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_PANELS", 2)
    records = [run(method, task=task) for task in ("rte", "sst2") for method in ("lora", "head")]
    write(tmp_path / "records", *records)
    page = page_of(tmp_path / "records", "--page-only")
    assert "4 panels are not drawn: name fewer folders to see more." in page
    assert [alt.partition(":")[0] for alt in alts(page)] == [
        "stories", "test accuracy, % on RTE", "Dev loss on RTE",
    ]  # fmt: skip


def test_models_whose_names_differ_in_signs_alone_keep_their_figures_apart(tmp_path: Path) -> None:
    write(tmp_path / "records", run(model="a b"), run(model="a-b"), run(model="A_B"))
    page = page_of(tmp_path / "records")
    files = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert {name for name in files if name.startswith("den")} == {
        "density-a-b", "density-a-b-2", "density-a-b-3",
    }  # fmt: skip
    ids = Outline(page).values("id")
    assert len(ids) == len(set(ids))


def test_figures_as_files_have_a_limit_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "MAX_PANELS", 2)
    write(tmp_path / "records", run())
    page_of(tmp_path / "records")
    assert capsys.readouterr().out.endswith(
        "2 figures, each as PNG and SVG; 2 more on the page only\n"
    )
    assert len(list((tmp_path / "out" / "figures").iterdir())) == 4


def test_a_card_does_not_grow_without_end(tmp_path: Path) -> None:
    runs = [run("sparta", (place + 1) / 100) for place in range(13)]
    write(tmp_path / "records", *runs, *(run(task=f"task{number}") for number in range(9)))
    page = page_of(tmp_path / "records", "--page-only")
    assert cards_on(page)["stories"][1] == "Not in the picture: 2 more methods and 2 more tasks."
    (time_note,) = [alt for alt in alts(page) if alt.startswith("Training time")]
    assert time_note.count("SpaRTA") == 12


def test_head_is_charged_for_its_features(tmp_path: Path) -> None:
    with_features = {"seconds": 2.0, "features_seconds": 30.5, "peak_memory_bytes": 867831808}
    write(tmp_path / "records", run("head", training=with_features))
    page = page_of(tmp_path / "records", "--page-only")
    assert alts(page)[-2:] == [
        "Training time on NVIDIA H100 (cuda): Head 32.5 s",
        "Peak memory on NVIDIA H100 (cuda): Head 868 MB",
    ]


def test_times_of_two_devices_are_not_in_one_panel(tmp_path: Path) -> None:
    other = {"type": "cpu", "name": "EPYC", "threads": 2}
    there = run("lora", environment__device=other, training={"seconds": 1})
    write(tmp_path / "records", run("head"), there)
    page = page_of(tmp_path / "records", "--page-only")
    assert [alt for alt in alts(page) if alt.startswith("Training")] == [
        "Training time on EPYC (cpu, 2 threads): LoRA 1.0 s",
        "Training time on NVIDIA H100 (cuda): Head 15 min",
    ]


def luminance(color: str) -> float:
    """Of `#rrggbb`, as WCAG 2 defines it."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_colour_stands_out_on_both_grounds() -> None:
    rules = Path(plots.__file__).with_name("style.css").read_text(encoding="utf-8")
    grounds = re.findall(r"--bg: (#\w{6}); --card: (#\w{6})", rules)
    assert len(grounds) == 2
    assert len({tone.light for tone in TONES.values()}) == len(TONES)
    for scheme, both in enumerate(grounds):
        for ground in both:
            for name, tone in TONES.items():
                assert contrast(ground, tone[scheme]) >= (1.2 if name == "rule" else 4.5)


# ------------------------------------------------------------------------------------ command
def test_command_says_where_things_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "records", run())
    main([str(tmp_path / "records")])
    out = tmp_path / "records" / "report"
    assert capsys.readouterr().out.splitlines() == [
        f"{out / 'report.html'}",
        f"{out / 'figures'}: 4 figures, each as PNG and SVG",
    ]
    assert sorted(path.name for path in (out / "figures").iterdir()) == [
        f"{name}-stories.{kind}"
        for name in ("cost", "density", "loss", "model")
        for kind in ("png", "svg")
    ]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ["nowhere", "none"],
            ["report: nowhere: there is no such folder", "report: none: there is no such folder"],
        ),
        (["empty"], ["report: no result.json below empty"]),
        (["records", "--out", "file"], ["report: --out file: is no folder"]),
        (
            ["--oot"],
            ["report: unrecognized arguments: --oot (see sparta-bench report --help)"],
        ),
    ],
)
def test_wrong_input_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], lines: list[str]
) -> None:
    write(tmp_path / "records", run())
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        main(arguments)
    assert list(error.value.lines) == lines


@pytest.mark.parametrize("options", [[], ["--page-only"]])
def test_without_matplotlib_one_line_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write(tmp_path / "records", run())
    with pytest.raises(InputError) as error:
        main([str(tmp_path / "records"), *options])
    assert error.value.lines == (
        "report: the figures need matplotlib: pip install 'sparta-bench[plots]'",
    )


def test_no_torch_is_needed(tmp_path: Path, forks_without: Callable[..., Forks]) -> None:
    write(tmp_path / "records", run())
    light = forks_without("torch", "transformers", "datasets", "peft", "accelerate")
    done = light.call("report", str(tmp_path / "records"))
    assert (done.code, done.err) == (0, "")
