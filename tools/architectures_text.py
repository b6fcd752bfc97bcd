"""Architectures for text and sound: encoders, decoders and both, state spaces, recurrent networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from architecture_sketch import ATTENTION, BATCH, TOKENS, Example, Exporter, Size, named, text, token_ids, tr


def roberta(size: Size, exporter: Exporter) -> Example:
    """RoBERTa: a BERT whose positions are counted from the padding (4 layers when full)."""
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    full = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 1536}
    config = tr.RobertaConfig(
        vocab_size=1000, max_position_embeddings=130, **tiny if size == "tiny" else full,
        attn_implementation=ATTENTION[exporter],
    )  # fmt: skip
    return named(tr.RobertaModel(config), *text(mask=True), "last_hidden_state", "pooler_output")


def distilbert(size: Size, exporter: Exporter) -> Example:
    """DistilBERT: a BERT without token types and pooler (6 layers when full)."""
    tiny = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    full = {"dim": 384, "n_layers": 6, "n_heads": 6, "hidden_dim": 1536}
    config = tr.DistilBertConfig(
        vocab_size=1000, max_position_embeddings=128, **tiny if size == "tiny" else full,
        attn_implementation=ATTENTION[exporter],
    )  # fmt: skip
    return named(tr.DistilBertModel(config), *text(mask=True), "last_hidden_state")


def albert(size: Size, exporter: Exporter) -> Example:
    """ALBERT: one layer's weights for all layers, factorized embeddings, tanh GELU (6 layers when full)."""
    tiny = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    full = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    config = tr.AlbertConfig(
        vocab_size=1000, embedding_size=8 if size == "tiny" else 128, max_position_embeddings=128,
        **tiny if size == "tiny" else full, attn_implementation=ATTENTION[exporter],
    )  # fmt: skip
    return named(tr.AlbertModel(config), *text(mask=True), "last_hidden_state", "pooler_output")


def t5(size: Size, exporter: Exporter) -> Example:
    """T5 v1.1, encoder and decoder: relative position bias, RMSNorm, gated GELU (3 + 3 layers when full)."""
    tiny = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4}
    full = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 3, "num_decoder_layers": 3}
    config = tr.T5Config(
        vocab_size=1000, feed_forward_proj="gated-gelu", tie_word_embeddings=False, use_cache=False,
        **tiny if size == "tiny" else full | {"num_heads": 8},
    )  # fmt: skip
    ids, axes = text(mask=True)
    inputs = ids | {"decoder_input_ids": token_ids()}
    dynamic = axes | {"decoder_input_ids": TOKENS}
    return named(tr.T5ForConditionalGeneration(config), inputs, dynamic, "logits")


def t5enc(size: Size, exporter: Exporter) -> Example:
    """The first T5's encoder: Relu instead of the gate (6 layers when full)."""
    tiny = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    full = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
    config = tr.T5Config(vocab_size=1000, use_cache=False, **tiny if size == "tiny" else full)
    return named(tr.T5EncoderModel(config), *text(mask=True), "last_hidden_state")


def whisperdec(size: Size, exporter: Exporter) -> Example:
    """Whisper's decoder (whisper-tiny when full): causal and cross attention, no cache."""
    tiny = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    full = {"d_model": 384, "decoder_layers": 4, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536}
    config = tr.WhisperConfig(
        vocab_size=1000, max_target_positions=128, encoder_layers=1, encoder_attention_heads=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, use_cache=False,
        **tiny if size == "tiny" else full, attn_implementation=ATTENTION[exporter],
    )  # fmt: skip
    states = torch.randn(2, 20 if size == "tiny" else 1500, config.d_model)
    ids, axes = text(mask=exporter == "ts")
    dynamic = axes | {"encoder_hidden_states": BATCH}
    inputs = ids | {"encoder_hidden_states": states}
    return named(tr.WhisperModel(config).decoder, inputs, dynamic, "last_hidden_state")


def qwen3(size: Size, exporter: Exporter) -> Example:
    """Qwen3: a Llama whose queries and keys are normalized, head by head (4 layers when full)."""
    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    full = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = tr.Qwen3Config(
        vocab_size=1000, use_cache=False, tie_word_embeddings=True, **tiny if size == "tiny" else full, **heads,
        attn_implementation=ATTENTION[exporter],
    )  # fmt: skip
    return named(tr.Qwen3ForCausalLM(config), *text(mask=exporter == "ts"), "logits")


def gemma3(size: Size, exporter: Exporter) -> Example:
    """Gemma 3: sliding and full attention with two rotary bases, norms before and after, tanh GELU gate."""
    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    full = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "head_dim": 64}
    kinds = ["sliding_attention", "full_attention"] * (1 if size == "tiny" else 2)
    config = tr.Gemma3TextConfig(
        vocab_size=1000, num_attention_heads=4, num_key_value_heads=1, use_cache=False, sliding_window=16,
        layer_types=kinds, **tiny if size == "tiny" else full, attn_implementation=ATTENTION[exporter],
    )  # fmt: skip
    return named(tr.Gemma3ForCausalLM(config), *text(mask=exporter == "ts"), "logits")


def mamba(size: Size, exporter: Exporter) -> Example:
    """Mamba, its scan written out step by step over a fixed number of tokens (2 layers)."""
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    full = {"hidden_size": 256, "num_hidden_layers": 2, "state_size": 16}
    config = tr.MambaConfig(vocab_size=1000, use_cache=False, **tiny if size == "tiny" else full)
    inputs = {"input_ids": token_ids(length=6 if size == "tiny" else 16)}
    return named(tr.MambaForCausalLM(config), inputs, {"input_ids": BATCH}, "logits")


def wav2vec2(size: Size, exporter: Exporter) -> Example:
    """wav2vec 2.0 over one second of sound: Conv1d with GroupNorm, grouped positional Conv1d, encoder."""
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    full = {"hidden_size": 384, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 1536}
    sound = {"conv_dim": (8, 8, 8), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4)}
    position = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    config = tr.Wav2Vec2Config(
        **tiny | sound | position if size == "tiny" else full, attn_implementation=ATTENTION[exporter]
    )
    inputs = {"input_values": torch.randn(2, 1600 if size == "tiny" else 16000)}
    return named(tr.Wav2Vec2Model(config), inputs, {"input_values": BATCH}, "last_hidden_state")


class Forecaster(nn.Module):
    """Two GRU layers over a series; from the last state, the next values."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, features)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        states, _ = self.gru(series)
        return self.head(F.elu(self.norm(states[:, -1])))


def gru(size: Size, exporter: Exporter) -> Example:
    """A forecaster: two GRU layers and a linear head."""
    features, width = (4, 12) if size == "tiny" else (32, 512)
    series = torch.randn(2, 64, features)
    return Example(Forecaster(features, width), {"series": series}, {"series": TOKENS}, ("forecast",))


TEXT = (
    roberta, distilbert, albert, t5, t5enc, whisperdec, qwen3, gemma3, mamba, wav2vec2, gru
)  # fmt: skip
