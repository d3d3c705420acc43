"""What a schedule has to compute and to move for a batch of prompts: counted from shapes, before anything runs.

Operations are 2 per multiply-add, of matrix products only (as in `coremat.cost.flops`); bytes are those of
weights and of the KV cache. Left out of both, as they are small: norms, rotary embeddings, softmax, activations, and
choosing tokens and neurons.

Prefill is bound by arithmetic and decoding at a small batch by bytes, so one workload over another bounds a speed-up:
`prefill_bound` and `decode_bound`.

The memory columns of the paper's Table 3. Its GB are 1000 MiB: 8.26 is the FFN of LLaVA-1.5-7B, 8256 MiB at 16 bit, and
CoreMatching's 1.65 a fifth of that. Its KV column is 0.5 MiB, all layers at 16 bit, for every kept image token and 34
text tokens. From row to row its total moves by FFN and KV alone, to 0.01 (only CoreMatching's own total is 0.15 lower),
so it holds FFN, KV and a constant of 7.07. Of that 5.22 are the other weights: attention, head, embedding, vision
tower, projector. No tensor accounts for the other 1.85: working memory of that run, which `total_bytes` leaves out and
`coremat.hardware.profiles` takes off the device's memory.
"""

from dataclasses import dataclass

from coremat.checks import whole_number
from coremat.cost.flops import decode_flops, prefill_flops
from coremat.cost.model_size import ModelSize
from coremat.cost.schedule import Schedule
from coremat.errors import ConfigError, UnknownNameError
from coremat.methods.reads import Reads

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Workload:
    """A batch of equal prompts, each under the same schedule.

    ffn_share: share of each FFN's rows that a decode step reads, being needed by at least one sequence of the batch;
        left out it is the share that one sequence needs, which is the lower bound.
    """

    size: ModelSize
    schedule: Schedule
    batch_size: int = 1
    dtype: str = "bfloat16"
    ffn_share: float | None = None

    def __post_init__(self) -> None:
        whole_number("batch_size", self.batch_size)
        if self.dtype not in DTYPE_BYTES:
            raise UnknownNameError("dtype", self.dtype, DTYPE_BYTES)
        if len(self.schedule.tokens) != self.size.layers:
            raise ConfigError(f"the schedule has {len(self.schedule.tokens)} layers; accepted: {self.size.layers}.")
        per_image, seen = self.size.image_tokens, self.schedule.image_tokens
        if seen % per_image if per_image else seen:
            raise ConfigError(f"image_tokens is {seen}; accepted: a multiple of {per_image}, the tokens of one image.")
        least_share = sum(self.schedule.neurons) / (self.size.layers * self.size.shape.ffn)
        if self.ffn_share is not None and not least_share <= self.ffn_share <= 1:
            raise ConfigError(
                f"ffn_share is {self.ffn_share!r}; accepted: {least_share:.4g}, the share of one sequence, to 1."
            )

    # --- sizes ------------------------------------------------------------------------------------------------

    @property
    def _tokens(self) -> tuple[int, ...]:
        """Tokens that each layer with attention over the sequence sees. Models with other layers prune no tokens, so
        that they are the same for all their layers."""
        return self.schedule.tokens[: self.size.text_layers]

    @property
    def _cached(self) -> tuple[int, ...]:
        """KV positions of each of these layers after the prefill."""
        return self.schedule.cached[: self.size.text_layers]

    @property
    def images(self) -> int:
        """Of the batch; one for each prompt where cross-attention looks at it."""
        each = self.schedule.image_tokens // self.size.image_tokens if self.size.image_tokens else 1
        return self.batch_size * each

    @property
    def neurons(self) -> float:
        """Of an FFN, for one sequence while decoding; the mean of the layers."""
        return sum(self.schedule.neurons) / self.size.layers

    @property
    def _extra(self) -> int:
        """Numbers of the weights that the method adds."""
        return sum(reads.extra for reads in self.schedule.reads)

    @property
    def _attention_read(self) -> int:
        """Numbers of the attention that a decode step reads; all of them where the tokens of a batch may read others
        than one would alone."""
        if self.ffn_share is not None:
            return self.size.attention
        shape = self.size.shape
        return self.size.attention - sum(
            shape.attention_weights - reads.attention(shape) for reads in self.schedule.reads
        )

    @property
    def _rows_of_batch(self) -> int | None:
        """Neurons of all FFNs that the batch needs, where it was found out."""
        return None if self.ffn_share is None else self.size.layers * round(self.ffn_share * self.size.shape.ffn)

    @property
    def _bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    # --- arithmetic -------------------------------------------------------------------------------------------

    @property
    def vision_flops(self) -> int:
        """Vision tower and projector, for all images of the batch."""
        return self.images * (self.size.tower_flops + self.size.projector_flops)

    @property
    def prefill_flops(self) -> int:
        """The decoder, and the head of the last token."""
        whole = [Reads()] * self.size.cross_layers
        cross = self.size.cross_flops(self.schedule.prompt_tokens, whole, reads_image=True)
        return self.batch_size * (prefill_flops(self.size.shape, self._tokens) + cross)

    def decode_flops(self, step: int = 1) -> int:
        """The `step`-th decode step (from 1), which brings each cache to that many positions more than the prefill."""
        lengths, reads = [cached + step for cached in self._cached], self.schedule.reads
        cross = self.size.cross_flops(1, [reads[number] for number in self.size.cross], reads_image=False)
        weights = [own.layer(self.size.shape) for number, own in enumerate(reads) if number not in self.size.cross]
        own = decode_flops(self.size.shape, lengths, weights)
        return self.batch_size * (own + cross)

    # --- bytes moved ------------------------------------------------------------------------------------------

    @property
    def vision_bytes(self) -> int:
        """Weights of vision tower and projector, read once for all images."""
        return self._bytes * (self.size.tower + self.size.projector) * bool(self.images)

    @property
    def prefill_bytes(self) -> int:
        """Weights of decoder and head read once, keys and values written; the embedding is looked up, not read."""
        read = self.size.attention + self.size.ffn + self.size.head
        written = 2 * self.size.shape.key_value * sum(self._tokens) + self.size.cross_values
        return self._bytes * (read + written * self.batch_size)

    @property
    def decode_weight_bytes(self) -> int:
        """What every decode step reads: attention weights, rows of the FFNs, output head, weights that the method adds
        in order to choose."""
        return self._bytes * (self._attention_read + self.size.head) + self.ffn_bytes_read

    @property
    def ffn_bytes_read(self) -> int:
        """Of these the FFNs' rows, and what the method adds in order to choose among them."""
        rows = self._rows_of_batch
        if rows is None:
            found = sum(reads.ffn(self.size.shape) for reads in self.schedule.reads)
        else:
            found = rows * self.size.shape.neuron_weights
        return self._bytes * (found + self._extra)

    def decode_bytes(self, step: int = 1) -> int:
        """Weights, and the cache as it is in the `step`-th decode step."""
        return self.decode_weight_bytes + self.kv_bytes(step)

    # --- bytes resident ---------------------------------------------------------------------------------------

    def kv_bytes(self, step: int = 0) -> int:
        """The cache of all layers and sequences, after the prefill or after that many decode steps."""
        return self._bytes * self._cache_values(step)

    @property
    def paper_kv_bytes(self) -> int:
        """As the paper counts it: text and image tokens kept to the end, in every layer, at 16 bit whatever the dtype;
        0.5 MiB a token for LLaVA-1.5-7B."""
        tokens = self.schedule.image_tokens_kept + self.schedule.text_tokens
        return 2 * self.batch_size * (self.size.kv_values * tokens + self.size.cross_values)

    def _cache_values(self, step: int) -> int:
        positions = sum(self._cached) + step * len(self._cached)
        return self.batch_size * (2 * self.size.shape.key_value * positions + self.size.cross_values)

    @property
    def ffn_bytes(self) -> int:
        """Rows of the FFNs that decoding needs: those that a token of the answer may read."""
        needed = sum(self.schedule.resident)
        return self._bytes * max(needed, self._rows_of_batch or 0) * self.size.shape.neuron_weights

    def resident_bytes(self, step: int = 0) -> int:
        """All that decoding needs: the weights outside the FFNs, rows of these, what the method adds, the cache."""
        return self._bytes * (self.size.outside_ffn + self._extra) + self.ffn_bytes + self.kv_bytes(step)

    @property
    def prefill_resident_bytes(self) -> int:
        """All that the prefill needs: every weight, sparse or not, those that the method adds, and the cache."""
        return self._bytes * (self.size.parameters + self._extra) + self.kv_bytes()

    @property
    def total_bytes(self) -> int:
        """The paper's total less working memory (see above): what is resident when decoding begins."""
        return self.resident_bytes()

    def memory_ratio(self, dense: "Workload") -> float:
        """How many times this workload fits into the memory of the dense one."""
        return dense.total_bytes / self.total_bytes


def prefill_bound(dense: Workload, sparse: Workload, vision: bool = False) -> float:
    """The largest speed-up that operations allow, for the decoder alone or with the vision tower and projector."""
    more = (dense.vision_flops, sparse.vision_flops) if vision else (0, 0)
    return (dense.prefill_flops + more[0]) / (sparse.prefill_flops + more[1])


def decode_bound(dense: Workload, sparse: Workload, step: int = 1) -> float:
    """The largest speed-up that bytes allow, on weights that stay resident."""
    return dense.decode_bytes(step) / sparse.decode_bytes(step)
