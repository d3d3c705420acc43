"""The bundled model, untrained: a small LLaVA, its tokenizer and its processor, all of plain transformers classes."""

from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from coremat.tasks.bundled.shapes.generator import COLORS, DIGITS, IMAGE_SIZE, NUMBERS, SHAPES, SIGN, WORDS

PATCH = 8
PRUNE_LAYER = 4  # where CoreMatching was best on the validation split: results/reference/prune-layer
HIDDEN = 128
PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"


@dataclass(frozen=True)
class ChatFormat:
    """The text before the image, round a question that follows it, and round the answer; the end token follows."""

    before: str
    question: str
    answer: str


CHAT = ChatFormat("<s>USER: ", "\n{question} ASSISTANT:", " {answer}")  # `CHAT_TEMPLATE` says it to the processor
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<s>USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}"
    "{% endif %}{% else %}{{ ' ASSISTANT: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}"
    "{{ '</s>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)

EASY_VQA_WORDS = ("circle", "rectangle", "triangle", "teal", "black", "gray", "brown", "green", "blue", "yellow", "red")
ANSWER_WORDS = tuple(dict.fromkeys((*COLORS, *SHAPES, SIGN, *WORDS, *NUMBERS, *EASY_VQA_WORDS, "yes", "no")))


def _pieces(word: str) -> list[str]:
    """An answer word in two halves, so that an answer is several tokens and the later ones are truly decoded."""
    middle = (len(word) + 1) // 2
    return [" " + word[:middle], word[middle:]]


def _corpus(questions: list[str]) -> Iterator[str]:
    """Question words whole; the words of answers cut in halves, wherever they stand."""
    answers = set(ANSWER_WORDS)
    for question in questions:
        words = question.replace("?", "").replace(".", "").replace(",", "").split()
        yield from (f" {w}" for w in words if w not in answers and w.rstrip("s") not in answers and w != "crosses")
    for word in ANSWER_WORDS:
        for _ in range(50):
            yield from _pieces(word)
    for _ in range(50):
        yield from (",", "?", ".", "\n", " ASSISTANT", "USER", ":", "s", "es", *DIGITS, *(f" {d}" for d in DIGITS))


def build_tokenizer(questions: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the questions, in which no answer word is a single token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(questions), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Images to 96 x 96 px in [-1, 1]; `<image>` to 144 placeholders."""
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = CLIPImageProcessor(size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the CLS token, which the strategy "default" drops
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """2 million parameters: tower 4 x 128, projector, decoder 6 x 128 with a gated FFN of 352; 144 image tokens."""
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "projection_dim": HIDDEN,
    }
    text = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 352,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        coremat_prune_layer=PRUNE_LAYER,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    return model
