"""What a backbone is: the sizes and switches of a decoder, read from its Hugging Face `config.json`.

Enters: a folder, or a decoded config.json (as transformers 4 or 5 writes it). Leaves: a `BackboneConfig`. Knows nothing
of tensors or of routers. Whatever would change the arithmetic and is not computed here is refused, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onebeat.engine.errors import FormatError
from onebeat.engine.strict_json import nearest, read_object, shown

Family = Literal["qwen2", "qwen3", "llama", "mistral"]
FAMILIES: tuple[Family, ...] = ("qwen2", "qwen3", "llama", "mistral")

LARGEST_SIZE = 2**31 - 1
MOST_LAYERS = 1000
HEAD_SIZES = (64, 96, 128)
"""What the attention kernels are written for."""
MISTRAL_WINDOW = 4096
"""What transformers assumes when a Mistral config.json does not mention `sliding_window`."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """A decoder's sizes. H `hidden_size`, F `feed_forward`, NQ `query_heads`, NKV `key_heads`, D `head_size`."""

    family: Family
    vocab_size: int
    hidden_size: int
    layers: int
    feed_forward: int
    query_heads: int
    key_heads: int
    head_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    """Sliding window of every layer, in tokens, counting the token itself; None when attention sees everything."""
    attention_bias: bool = False
    """q, k and v have biases."""
    output_bias: bool = False
    """The attention's output projection has a bias."""
    qk_norm: bool = False
    """q and k are RMS-normed per head before the rotation (Qwen3)."""
    tied_embeddings: bool = False

    @classmethod
    def load(cls, folder: Path) -> BackboneConfig:
        """Reads `folder/config.json`. Raises `FormatError` for what is missing, malformed or not computed here."""
        path = folder / "config.json"
        return cls.from_json(read_object(path), str(path))

    @classmethod
    def from_json(cls, found: Mapping[str, Any], place: str = "config.json") -> BackboneConfig:
        """The config that `found`, a decoded config.json, describes; `place` names it in errors."""
        family = found.get("model_type")
        if family not in FAMILIES:
            raise FormatError(
                f"{place} describes an unknown architecture, model_type {shown(family)}; "
                f"backbones are {', '.join(FAMILIES)}."
            )
        keys = _Keys(found, place)
        _refuse_what_is_not_computed(keys, family)
        query_heads = keys.size("num_attention_heads")
        key_heads = keys.size("num_key_value_heads", query_heads)
        hidden_size = keys.size("hidden_size")
        if query_heads % key_heads:
            raise FormatError(f"{place}: {query_heads} query heads cannot share {key_heads} key heads evenly.")
        head_size = keys.size("head_dim", 128 if family == "qwen3" else max(1, hidden_size // query_heads))
        if head_size not in HEAD_SIZES:
            raise FormatError(
                f"{place}: head_dim is {head_size}; heads of {', '.join(map(str, HEAD_SIZES))} are computed."
            )
        layers = keys.size("num_hidden_layers", largest=MOST_LAYERS)
        theta, scaling = _rope(keys)
        bias = keys.flag("attention_bias", family == "qwen2")
        if bias and family == "mistral":
            raise FormatError(f"{place}: attention_bias is true, and Mistral's attention has none; set it to false.")
        return cls(
            family=family,
            vocab_size=keys.size("vocab_size"),
            hidden_size=hidden_size,
            layers=layers,
            feed_forward=keys.size("intermediate_size"),
            query_heads=query_heads,
            key_heads=key_heads,
            head_size=head_size,
            max_positions=keys.size("max_position_embeddings"),
            norm_eps=keys.number("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            window=_window(keys, family, layers),
            attention_bias=True if family == "qwen2" else bias,
            output_bias=bias and family in ("llama", "qwen3"),
            qk_norm=family == "qwen3",
            tied_embeddings=keys.flag("tie_word_embeddings", False),
        )


@dataclass(frozen=True, slots=True)
class _Keys:
    """Typed reading of a decoded config.json; a null counts as absent, as it does in transformers."""

    found: Mapping[str, Any]
    place: str

    def size(self, key: str, default: int | None = None, largest: int = LARGEST_SIZE) -> int:
        value = self._value(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise FormatError(f"{self.place}: {key} is {shown(value)}; it must be a whole number of 1 to {largest}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1e300:
            raise FormatError(f"{self.place}: {key} is {shown(value)}; it must be a number above 0.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise FormatError(f"{self.place}: {key} is {shown(value)}; it must be true or false.")
        return value

    def table(self, key: str) -> dict[str, Any]:
        value = self.found.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise FormatError(f"{self.place}: {key} is {shown(value)}; it must be an object.")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.found.get(key)
        if value is None:
            value = default
        if value is None:
            raise FormatError(f"{self.place} has no {key!r}; {nearest(key, self.found)}.")
        return value


def _refuse_what_is_not_computed(keys: _Keys, family: Family) -> None:
    """Raises `FormatError` for settings that change the arithmetic in ways that no kernel here follows."""
    activation = keys.found.get("hidden_act", "silu")
    if activation != "silu":
        raise FormatError(f"{keys.place}: hidden_act is {shown(activation)}; only silu is computed.")
    if keys.flag("mlp_bias", False):
        raise FormatError(f"{keys.place}: mlp_bias is true; feed-forward layers with a bias are not computed.")
    if (quantized := keys.found.get("quantization_config")) is not None:
        raise FormatError(
            f"{keys.place} says that the weights are already quantised ({shown(quantized)}); "
            "give the bf16 or float32 checkpoint, and onebeat quantises it."
        )
    if (partial := keys.number("partial_rotary_factor", 1.0)) != 1.0:
        raise FormatError(
            f"{keys.place}: partial_rotary_factor is {partial:g} and {family} here rotates whole heads (1)."
        )


def _rope(keys: _Keys) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling: transformers 5 writes both in `rope_parameters`, 4 apart."""
    table = keys.table("rope_parameters") or keys.table("rope_scaling")
    inner = _Keys(table, f"{keys.place}, rope settings")
    theta = inner.number("rope_theta") if table.get("rope_theta") is not None else keys.number("rope_theta", 10000.0)
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise FormatError(f"{keys.place}: rope scaling of type {shown(kind)} is not computed; default and llama3 are.")
    scaling = RopeScaling(
        factor=inner.number("factor"),
        low_freq_factor=inner.number("low_freq_factor"),
        high_freq_factor=inner.number("high_freq_factor"),
        original_max_positions=inner.size("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise FormatError(
            f"{keys.place}: high_freq_factor {scaling.high_freq_factor:g} must be above "
            f"low_freq_factor {scaling.low_freq_factor:g}."
        )
    return theta, scaling


def _window(keys: _Keys, family: Family, layers: int) -> int | None:
    """The sliding window that all layers share, or None. Layers that differ are refused."""
    if family == "mistral":
        if "sliding_window" in keys.found and keys.found["sliding_window"] is None:
            return None
        return keys.size("sliding_window", MISTRAL_WINDOW)
    if family == "llama" or not keys.flag("use_sliding_window", False) or keys.found.get("sliding_window") is None:
        return None
    window = keys.size("sliding_window")
    kinds = keys.found.get("layer_types")
    if kinds is None:
        first = keys.found.get("max_window_layers", 28)
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise FormatError(f"{keys.place}: max_window_layers is {shown(first)}; it must be a whole number.")
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]
    if kinds == ["full_attention"] * layers:
        return None
    if kinds == ["sliding_attention"] * layers:
        return window
    raise FormatError(
        f"{keys.place}: some layers have a sliding window of {window} and others none; "
        "only one window for all layers is computed (use_sliding_window false turns it off)."
    )
