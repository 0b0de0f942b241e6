"""Results as Markdown: whose row stands where, and what is marked as unverified."""

import re

from evcap.datasets.benchmarks import LISTED, PAPER, UNVERIFIED
from evcap.evaluation.report import METRICS, results_markdown, score_table

NAMING = {
    "captions_naming_a_retrieved_object": 61.25,
    "retrieved_names_said": 14.0,
    "different_names_said": 1203,
    "object_f1": {"f1": 12.345, "names": 310},
    "agreed_names_found": 62.0,
    "found_names_said_by_a_reference": 31.04,
    "unfounded": {"captions": 24.0, "names": {"dog": 7.25}},
}


def cells(table: str) -> dict[str, dict[str, str]]:
    """{row: {column: cell}} of a Markdown table, all of whose rows must have as many cells as its head."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert len({len(row) for row in rows}) == 1 and set("".join(rows[1])) <= set("-: ")
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def test_paper_stands_beside_each_part():
    parts = ["in-domain", "near-domain", "out-domain", "overall"]
    scores = {part: {"BLEU-4": 30 + n, "CIDEr": 100.04 + n} for n, part in enumerate(parts)}
    table = cells(score_table(scores, "nocaps-val"))
    assert list(table) == [f"{who}, {part}" for part in parts for who in ("this run", "EVCap paper")]
    assert table["this run, out-domain"] == {"BLEU-4": "32.0", "CIDEr": "102.0", "SPICE": ""}
    assert table["EVCap paper, near-domain"] == {"BLEU-4": "", "CIDEr": "119.5 (unverified)", "SPICE": "15.6 (unverified)"}


def test_figures_of_a_listing_are_not_marked():
    table = cells(score_table({"overall": {"CIDEr": 99.96}}, "coco-karpathy-test"))
    assert table["this run"]["CIDEr"] == "100.0" and table["EVCap paper"]["CIDEr"] == "140.1"
    assert table["EVCap paper"]["METEOR"] == "31.2 (unverified)" and table["this run"]["METEOR"] == ""


def test_table_without_a_benchmark():
    assert cells(score_table({"overall": {"METEOR": 1.25, "BLEU-1": 2}})) == {"this run": {"BLEU-1": "2.0", "METEOR": "1.2"}}


def test_page():
    scores = {"overall": {"CIDEr": 50.0}}
    page = results_markdown("a set", "Preset x.", scores, NAMING, notes=["No SPICE."])
    assert page.startswith("# a set\n\nPreset x.\n\n|") and "\n\nNo SPICE.\n\n" in page
    assert "unverified" not in page and "domain" not in page
    naming = cells(page.split("No SPICE.")[1])
    assert naming["captions that name a retrieved object"][""] == "61.2 %"
    assert naming["retrieved names that a reference says"][""] == "31.0 %"
    assert naming['captions that say "dog" which no reference says'][""] == "7.2 %"
    assert naming["F1 of the objects named, mean of the names that references say"][""] == "12.3 (310 names)"
    domains = {"in-domain": {"CIDEr": 1.0}} | scores
    held_out = NAMING | {"held_out": {"f1": None, "names": 0}}
    page = results_markdown("a set", "Preset x.", domains, held_out, "nocaps-val")
    assert "document frequencies from its own references" in page and "quoted from memory" in page
    assert re.search(r"no training caption says \| no such names \|", page)


def test_figures_of_the_paper():
    figures = [(metric, *cell) for sets in PAPER.values() for row in sets.values() for metric, cell in row.items()]
    assert all(metric in METRICS and 0 < value < 200 and source in (LISTED, UNVERIFIED) for metric, value, source in figures)
    assert {figure[1] for figure in figures if figure[2] == LISTED} == {140.1, 84.4, 24.4}
