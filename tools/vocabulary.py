"""Trains the SentencePiece tokenizer of a run that brings none."""

from pathlib import Path

import sentencepiece

from runtime import TokenizerSection, UserError


def train_tokenizer(texts, markers: list[str], config: TokenizerSection,
                    path: Path) -> None:
    """Train a BPE tokenizer whose markers are single pieces; text is kept as it is.

    Punctuation stays apart, so a number is the same piece whatever stands behind it."""
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(" " + text for text in texts),
            model_prefix=str(path.with_suffix("")), model_type="bpe",
            vocab_size=config.vocab, byte_fallback=config.byte_fallback,
            user_defined_symbols=markers + list(",.:;!?\n"), character_coverage=0.9995,
            add_dummy_prefix=False, remove_extra_whitespaces=False, max_sentence_length=1 << 16,
            normalization_rule_name="identity", unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
            num_threads=1, minloglevel=2)
    except RuntimeError as error:
        raise UserError(f"tokenizer.vocab = {config.vocab} does not fit the data: "
                        f"{str(error).strip().splitlines()[-1]}") from None
