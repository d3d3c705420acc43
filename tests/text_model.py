"""A tiny Llama with a tokenizer of whole words, saved as a model of text alone is."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from coremat.testing.families.family import BOS, VOCABULARY
from coremat.testing.families.text import text_model

TEMPLATE = (
    "<s>{% for message in messages %} {{ message.role }} {{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
WORDS = ["user", "assistant", "system", "be", "brief", "one", "two", "three"]


def save_text_model(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Without a padding token, as many are released."""
    tokens = ["<unk>", "<s>", "</s>", *WORDS]
    tokens += [f"w{number}" for number in range(VOCABULARY - len(tokens))]
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    model = text_model("llama", pad_token_id=None)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
