"""The results of a scored run as Markdown, with what the paper published beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evcap.datasets.benchmarks import PAPER, UNVERIFIED

METRICS = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE"]
PAPER_NOTE = (
    "EVCap: scores of the paper (arXiv 2311.15879). Those marked unverified are quoted from memory and were not checked "
    "against it, the others are those of a public listing of results."
)
DOMAIN_NOTE = "Each domain is scored as a set of its own: CIDEr takes document frequencies from its own references."


def score_table(scores: Mapping[str, Mapping[str, float]], benchmark: str | None = None) -> str:
    """Scores {part of the set: {metric: percent}} as a Markdown table, under each part the paper's row for `benchmark`."""
    published = PAPER[benchmark] if benchmark else {}
    known = [*scores.values(), *(published[part] for part in scores if part in published)]
    metrics = [metric for metric in METRICS if any(metric in row for row in known)]
    lines = [f"| captions | {' | '.join(metrics)} |", "|---" + "|---:" * len(metrics) + "|"]
    for part, row in scores.items():
        where = f", {part}" if len(scores) > 1 else ""
        lines.append(_row(f"this run{where}", metrics, {metric: f"{value:.1f}" for metric, value in row.items()}))
        if part in published:
            cells = {m: f"{v:.1f}" + (" (unverified)" if s == UNVERIFIED else "") for m, (v, s) in published[part].items()}
            lines.append(_row(f"EVCap paper{where}", metrics, cells))
    return "\n".join(lines) + "\n"


def naming_table(naming: Mapping) -> str:
    """The outcome of `evcap.memory.names.naming_statistics` as a Markdown table."""
    rows = [
        ("captions that name a retrieved object", f"{naming['captions_naming_a_retrieved_object']:.1f} %"),
        ("retrieved names that the caption says", f"{naming['retrieved_names_said']:.1f} %"),
        ("different names of the memory said", f"{naming['different_names_said']:,}"),
        ("F1 of the objects named, mean of the names that references say", _f1(naming["object_f1"])),
        ("names that most references say which were retrieved", f"{naming['agreed_names_found']:.1f} %"),
        ("retrieved names that a reference says", f"{naming['found_names_said_by_a_reference']:.1f} %"),
    ]
    unfounded = {"a name": naming["unfounded"]["captions"]}
    unfounded |= {f'"{name}"': share for name, share in naming["unfounded"]["names"].items()}
    rows += [(f"captions that say {what} which no reference says", f"{share:.1f} %") for what, share in unfounded.items()]
    if "held_out" in naming:
        rows.append(("the same, of names that no training caption says", _f1(naming["held_out"])))
    return "\n".join(["| names of the memory | |", "|---|---:|", *(f"| {what} | {value} |" for what, value in rows)]) + "\n"


def results_markdown(
    title: str,
    setting: str,
    scores: Mapping[str, Mapping[str, float]],
    naming: Mapping,
    benchmark: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The whole page: both tables and the notes that a reader of the scores needs."""
    notes = [*([DOMAIN_NOTE] if len(scores) > 1 else []), *([PAPER_NOTE] if benchmark else []), *notes]
    parts = [f"# {title}", setting, score_table(scores, benchmark).rstrip(), *notes, naming_table(naming).rstrip()]
    return "\n\n".join(parts) + "\n"


def _row(name: str, metrics: Sequence[str], cells: Mapping[str, str]) -> str:
    return f"| {name} | {' | '.join(cells.get(metric, '') for metric in metrics)} |"


def _f1(mean: Mapping) -> str:
    return "no such names" if mean["f1"] is None else f"{mean['f1']:.1f} ({mean['names']:,} names)"
