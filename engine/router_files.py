"""Which files make a router's folder: one list for all who fetch, copy, link or fingerprint one.

Enters: nothing. Leaves: names and patterns. Knows nothing of what the files hold.
"""

from __future__ import annotations

TEXT_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""The backbone without its weights, as `save_pretrained` of transformers writes it."""
HEAD_FILES = ("router.json", "router_head.safetensors")
WEIGHT_PATTERNS = ("model*.safetensors", "model.safetensors.index.json", "int8.safetensors")
"""One file, shards with their index, or an int8 copy in their place."""
