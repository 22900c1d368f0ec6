"""SentencePiece tokenizers: reads one, and trains one for a run that brings none."""

import re
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
        reason = str(error).strip().splitlines()[-1]
        most = re.search(r"value <= (\d+)", reason)
        raise UserError(f"tokenizer.vocab = {config.vocab} does not fit the data: "
                        + (f"at most {most[1]} there" if most else reason)) from None


class Tokenizer:
    """A SentencePiece model: text to token ids and back."""

    def __init__(self, path: str | Path):
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: no SentencePiece model ({str(error).strip()})") from None
        self.vocab = self.pieces.vocab_size()
        self.bos, self.eos = self.pieces.bos_id(), self.pieces.eos_id()
        if self.eos < 0:
            raise UserError(f"{path}: the tokenizer has no end-of-sentence piece")
        spaced = self.pieces.encode("a", out_type=str)[0].startswith("\u2581")
        self.lead = "" if spaced else " "  # a word is the same piece first and later in a text

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts: prompts or responses."""
        return self.pieces.encode([self.lead + text for text in texts])

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; the end and what follows it are left out."""
        ids = ids[:ids.index(self.eos)] if self.eos in ids else ids
        return self.pieces.decode([int(i) for i in ids]).strip()
