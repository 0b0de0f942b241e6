"""Towers and an encoder-decoder of transformers in the recipes: a Q-Former learns, a memory is built, and it captions."""

import pytest
import yaml
from cli_tools import run_recipe
from tiny_run import COLOURS, config_for, here, world
from tiny_seq2seq import save_seq2seq
from tiny_towers import tower_folder

from evcap.captioner import Captioner
from memory import build


@pytest.mark.parametrize(("family", "language"), [("clip", None), ("swinv2", "flan-t5")])
def test_pretrain_build_and_caption(tmp_path, family, language):
    preset = yaml.safe_load((world() / "preset.yaml").read_text())
    preset["patch_positions"] = family == "swinv2"
    if language:
        save_seq2seq(tmp_path / "llm", language)
        preset["language"]["kind"] = str(tmp_path / "llm")
    preset["vision"] = {"kind": "transformers", "source": str(tower_folder(tmp_path / "tower", family))}
    (tmp_path / "preset.yaml").write_text(yaml.safe_dump(preset))
    run = config_for("pretrain", f"towers-{family}", max_steps=2, validate=2)
    settings = yaml.safe_load(run.read_text())
    settings |= {"preset": str(tmp_path / "preset.yaml"), "start_from": None, "output": str(tmp_path / "run")}
    run.write_text(yaml.safe_dump(settings))
    here("pretrain", run)
    trained = tmp_path / "run" / "last.safetensors"

    pictures = sorted((world() / "data" / "squares" / "images").glob("1*.png"))[:4]
    for picture, name in zip(pictures, COLOURS, strict=True):
        folder = tmp_path / "data" / "named" / name
        folder.mkdir(parents=True)
        (folder / picture.name).write_bytes(picture.read_bytes())
    config = tmp_path / "memory.yaml"
    config.write_text(yaml.safe_dump({"folders": ["named"], "preset": str(tmp_path / "preset.yaml")}))
    files = ["--output", tmp_path / "memory", "--trained", trained]
    assert "4 entries, 4 names" in run_recipe(build.main, config, "--data", tmp_path / "data", *files, "--quiet").output

    captioner = Captioner.load(tmp_path / "preset.yaml", tmp_path / "memory", trained, device="cpu")
    assert type(captioner.model.language).__name__ == ("EncoderDecoderModel" if language else "LanguageModel")
    answers = captioner.caption(pictures, max_length=4)
    assert all({name.name for name in answer.names} <= set(COLOURS) and answer.names for answer in answers)
