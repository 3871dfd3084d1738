"""Known architectures, as their published configurations have them: what KV of one token takes. Pure."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Architecture:
    """layers that keep KV; kv_heads per layer of `head_dim`; heads that read. latent: numbers that a layer keeps of a
    token instead of heads (multi-head latent attention); 0 for none.
    """

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    latent: int = 0

    @property
    def numbers_per_token(self) -> int:
        return self.layers * (self.latent or 2 * self.kv_heads * self.head_dim)

    def bytes_of(self, num_tokens: int, bytes_per_number: float = 2) -> float:
        """Of K and V; two bytes are float16 or bfloat16."""
        return num_tokens * self.numbers_per_token * bytes_per_number

    @property
    def grouping(self) -> float:
        """How many times more it would be if every reading head had a K and a V of its own."""
        return self.layers * 2 * self.heads * self.head_dim / self.numbers_per_token


ARCHITECTURES: Final = (
    Architecture("GPT-2", 12, 12, 12, 64),
    Architecture("SmolLM2 135M", 30, 9, 3, 64),
    Architecture("TinyLlama 1.1B", 22, 32, 4, 64),
    Architecture("Phi-3 mini 3.8B", 32, 32, 32, 96),
    Architecture("Llama 2 7B", 32, 32, 32, 128),
    Architecture("Mistral 7B", 32, 32, 8, 128),
    Architecture("Qwen2.5 7B", 28, 28, 4, 128),
    Architecture("Llama 3.1 8B", 32, 32, 8, 128),
    Architecture("Qwen3 8B", 36, 32, 8, 128),
    Architecture("Gemma 2 9B", 42, 16, 8, 256),
    Architecture("Mixtral 8x7B", 32, 32, 8, 128),
    Architecture("Llama 3.1 70B", 80, 64, 8, 128),
    Architecture("Llama 3.1 405B", 126, 128, 8, 128),
    Architecture("DeepSeek V3 (latent)", 61, 128, 128, 128, latent=512 + 64),
)
"""Sliding windows (every other layer of Gemma 2) are not taken off: a prefix cache keeps what a window has passed."""
