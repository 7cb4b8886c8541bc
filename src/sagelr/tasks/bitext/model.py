"""The Transformer of "Attention Is All You Need" (Vaswani et al., 2017), as transformers has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sagelr.tasks.bitext.options import TransformerOptions

if TYPE_CHECKING:
    from transformers import MarianMTModel, PreTrainedTokenizerBase

POSITIONS = 1024  # more than any sentence has; they are computed, not learned


def transformer(
    options: TransformerOptions,
    tokenizer: PreTrainedTokenizerBase,
    *,
    beam: int,
    length_penalty: float,
) -> MarianMTModel:
    """A model with weights drawn from torch's generator; one matrix is every embedding of it.

    Marian's is the Transformer as it was published: layers are normalized after each part, and
    positions are sines.

    Args:
        options: its size.
        tokenizer: of both languages.
        beam: width of its beam search.
        length_penalty: exponent of the length that a translation's log-probability is divided by.
    """
    from transformers import GenerationConfig, MarianConfig, MarianMTModel

    pad: Any = tokenizer.pad_token_id
    end: Any = tokenizer.eos_token_id
    model = MarianMTModel(
        MarianConfig(
            vocab_size=len(tokenizer),
            d_model=options.hidden,
            encoder_layers=options.layers,
            decoder_layers=options.layers,
            encoder_attention_heads=options.heads,
            decoder_attention_heads=options.heads,
            encoder_ffn_dim=options.feed_forward,
            decoder_ffn_dim=options.feed_forward,
            dropout=options.dropout,
            attention_dropout=options.attention_dropout,
            activation_dropout=options.activation_dropout,
            activation_function="relu",
            # Embeddings times √hidden then have deviation 1, as positions nearly have; and for
            # square matrices it is Glorot's.
            init_std=options.hidden**-0.5,
            scale_embedding=True,
            max_position_embeddings=POSITIONS,
            pad_token_id=pad,
            eos_token_id=end,
            decoder_start_token_id=end,  # a sentence begins where another has ended, as in fairseq
            forced_eos_token_id=None,
            use_cache=False,  # it is of use in decoding alone
        )
    )
    model.generation_config = GenerationConfig(
        num_beams=beam,
        max_new_tokens=200,  # for whoever generates without a limit, as in fairseq; else it were 20
        length_penalty=length_penalty,
        pad_token_id=pad,
        eos_token_id=end,
        decoder_start_token_id=end,
        suppress_tokens=[pad],
        use_cache=True,
    )
    return model
