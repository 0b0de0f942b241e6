"""Score captions that are already written, by whatever wrote them, against references.

    python eval/score.py predictions.json captions_val2014.json
    python eval/score.py out.jsonl captions.json --clip openai/clip-vit-base-patch32 --images photos/

PREDICTIONS: COCO's result format (a list of {"image_id", "caption"}), an object {id: caption}, or the lines of
`evcap caption --format jsonl`. REFERENCES: COCO's captions format, or an object {id: [captions]}. Ids may be numbers or texts;
a prediction that names a file is matched by the `file_name` of the references, without its folder. Every prediction needs a
reference; references without a prediction are left out, and counted.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from evcap.cli.console import command
from evcap.cli.outputs import check_outputs
from evcap.errors import EvcapError
from evcap.evaluation.caption_metrics import missing_spice, score
from evcap.evaluation.clip_score import ClipScorer
from evcap.files import write_text
from evcap.text_files import LARGEST_JSON, read_text

Key = int | str


@dataclass
class References:
    """Captions of each image, and the file it lies in where the references say so."""

    captions: dict[Key, list[str]] = field(default_factory=lambda: defaultdict(list))
    files: dict[Key, str] = field(default_factory=dict)

    def key_of(self, named: Key) -> Key | None:
        """The id that a prediction means: an id, a number written as text, or a file name. None if there is none."""
        number = int(named) if isinstance(named, str) and named.isdecimal() and len(named) < 20 else named
        for key in (named, str(named), number):
            if key in self.captions:
                return key
        name = Path(str(named)).name
        return next((key for key, file in self.files.items() if Path(file).name == name), None)


def read(path: Path):
    """The content of a JSON file, or of JSON lines as a list. Raises EvcapError with one line."""
    text = read_text(path, LARGEST_JSON, "JSON or JSON lines in UTF-8")
    try:
        try:
            return json.loads(text)
        except ValueError:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError):
        raise EvcapError(f"{path} is neither JSON nor JSON lines in UTF-8") from None


def read_references(path: Path) -> References:
    content, found = read(path), References()
    try:
        if "annotations" in content:
            for image in content.get("images", []):
                if "file_name" in image:
                    found.files[image["id"]] = str(image["file_name"])
            for item in content["annotations"]:
                found.captions[item["image_id"]].append(str(item["caption"]))
        else:
            for key, captions in content.items():
                found.captions[key] = [captions] if isinstance(captions, str) else list(map(str, captions))
    except (KeyError, TypeError, AttributeError) as error:
        raise EvcapError(f"{path}: neither COCO captions nor an object {{id: [captions]}} ({error})") from None
    return found


def read_predictions(path: Path) -> dict[Key, str]:
    rows = read(path)
    if isinstance(rows, dict):  # one line of JSON lines, or {id: caption}
        rows = [rows] if "caption" in rows else [{"image_id": k, "caption": v} for k, v in rows.items()]
    if not isinstance(rows, list):
        raise EvcapError(f"{path}: neither a list of captions nor an object {{id: caption}}")
    predictions: dict[Key, str] = {}
    for number, row in enumerate(rows, 1):
        key = row.get("image_id", row.get("file")) if isinstance(row, dict) else None
        caption = row.get("caption") if isinstance(row, dict) else None
        if not isinstance(key, (int, str)) or not isinstance(caption, str):
            reason = f": {row['error']}" if isinstance(row, dict) and row.get("error") else ""
            raise EvcapError(f'{path}, entry {number}: no "image_id" (or "file") and "caption"{reason}')
        if key in predictions:
            raise EvcapError(f"{path}, entry {number}: '{key}' stands a second time")
        predictions[key] = caption
    return predictions


def main(
    predictions: Annotated[Path, typer.Argument(help="File of captions: JSON or JSON lines.")],
    references: Annotated[Path, typer.Argument(help="File of reference captions: JSON.")],
    clip: Annotated[str | None, typer.Option(help="CLIP of transformers, folder or hub name: adds CLIPScore.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for --clip.")] = None,
    spice: Annotated[Path | None, typer.Option(help="Folder with the Stanford CoreNLP 3.6.0 jars that SPICE needs.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the scores to this JSON file, too.")] = None,
) -> None:
    """BLEU, METEOR, ROUGE-L, CIDEr, SPICE and CLIPScore of a file of captions, in percent."""
    if (clip is None) != (images is None):
        raise EvcapError("--clip and --images go together: CLIPScore looks at the images")
    check_outputs({"--output": output}, [predictions, references])
    if spice and (absent := missing_spice(spice)):
        raise EvcapError(absent)
    truth, given = read_references(references), read_predictions(predictions)
    keys = {named: truth.key_of(named) for named in given}
    unknown = [named for named, key in keys.items() if key is None]
    if unknown:
        raise EvcapError(f"{len(unknown)} of {len(given)} predictions have no reference, the first is '{unknown[0]}'")
    said = {keys[named]: caption for named, caption in given.items()}
    if len(said) < len(given):
        raise EvcapError(f"{predictions}: {len(given) - len(said)} images have two predictions, under an id and a file name")
    scorer = ClipScorer(clip) if clip else None
    scores = score(said, truth.captions, spice)
    if scorer:
        files = {key: images / truth.files.get(key, str(key)) for key in said}
        scores |= scorer.score(said, truth.captions, files)
    about = {"scores": scores, "images": len(said), "references_left_out": len(truth.captions) - len(said)}
    print(json.dumps(about))
    if output:
        write_text(output, json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(command(main))
