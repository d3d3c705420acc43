"""A tiny random model of every supported family, and dummy inputs for it; nothing is downloaded.

    from coremat.testing.families import FAMILIES

    family = FAMILIES["qwen2_vl"]
    model, inputs = family.model(), family.batch("left-padded")
    model.generate(**inputs, max_new_tokens=5)

`FAMILIES` is keyed by `model_type`. What a family of your own takes is said in `coremat.testing.families.family`.
"""

from coremat.testing.families import gemma3, llava, mllama, qwen, text, tiles
from coremat.testing.families.family import PROMPTS, Family, Inputs, Prompt

FAMILIES: dict[str, Family] = {
    **gemma3.FAMILIES,
    **llava.FAMILIES,
    **mllama.FAMILIES,
    **qwen.FAMILIES,
    **text.FAMILIES,
    **tiles.FAMILIES,
}

__all__ = ["FAMILIES", "PROMPTS", "Family", "Inputs", "Prompt"]
