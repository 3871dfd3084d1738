"""The kernels' structures as ctypes sees them; the headers named say what is in them. A pointer holds nothing alive."""

import ctypes
from typing import Final

P: Final = ctypes.c_void_p
I32: Final = ctypes.c_int32
I64: Final = ctypes.c_int64
F32: Final = ctypes.c_float


class LayerPool(ctypes.Structure):
    """pool.h"""

    _fields_ = (
        ("keys", P), ("values", P), ("key_scales", P), ("value_scales", P),
        ("dtype", I32), ("block_size", I32), ("kv_heads", I32), ("head_dim", I32), ("value_dim", I32),
        ("unused", I32),
    )  # fmt: skip


class AttentionCall(ctypes.Structure):
    """attention.h"""

    _fields_ = (
        ("pool", P), ("sequences", P),
        ("query", P), ("key", P), ("value", P), ("out", P), ("scratch", P), ("parts_done", P),
        ("query_row", I64), ("query_head", I64), ("key_row", I64), ("key_head", I64),
        ("value_row", I64), ("value_head", I64),
        ("num_sequences", I32), ("q_heads", I32), ("window", I32), ("num_threads", I32),
        ("scaling", F32),
    )  # fmt: skip


class Linear(ctypes.Structure):
    """team.h"""

    _fields_ = (("packed", P), ("bias", P), ("inputs", I64), ("outputs", I64), ("bits", I32), ("unused", I32))


class DecoderLayer(ctypes.Structure):
    """decoder.cpp"""

    _fields_ = (
        ("input_norm", P), ("q_norm", P), ("k_norm", P), ("mlp_norm", P),
        ("qkv", Linear), ("output", Linear), ("gate_up", Linear), ("down", Linear),
        ("q_heads", I32), ("kv_heads", I32), ("head_dim", I32), ("window", I32),
        ("input_epsilon", F32), ("head_epsilon", F32), ("mlp_epsilon", F32), ("scaling", F32),
        ("rotates", I32), ("unused", I32),
    )  # fmt: skip


class Decoder(ctypes.Structure):
    """decoder.cpp"""

    _fields_ = (
        ("layers", P), ("embed", P), ("norm", P), ("head", Linear),
        ("num_layers", I64), ("num_ids", I64), ("hidden", I64), ("rotary_dim", I64), ("epsilon", F32), ("unused", I32),
    )  # fmt: skip


class DecoderCall(ctypes.Structure):
    """decoder.cpp"""

    _fields_ = (
        ("decoder", P), ("pools", P), ("sequences", P), ("last_sequences", P),
        ("token_ids", P), ("positions", P), ("logit_rows", P), ("cosine", P), ("sine", P), ("logits", P), ("room", P),
        ("scratch", P), ("parts_done", P),
        ("rows", I64), ("num_logits", I64), ("num_sequences", I32), ("num_threads", I32),
    )  # fmt: skip


class DrawCall(ctypes.Structure):
    """draw.cpp"""

    _fields_ = (
        ("logits", P), ("rows", P), ("token_ids", P), ("scratch", P), ("count", I64), ("width", I64),
        ("num_threads", I32), ("unused", I32),
    )  # fmt: skip
