"""Tokenizers: SentencePiece's, also trained here for a run that brings none, and Hugging Face's
tokenizer.json. Both have the same methods, `read_tokenizer` tells them apart by their content.

Markers in a template (`fixed`) stand for single tokens, but never in a text (`encode`): a user
cannot write the end of a turn into a prompt. A text is encoded as it would be after what stands
before it: `spaced` says whether that ends in a space, which then belongs to the text's first piece
(None: nothing is known of it).
"""

import re
from itertools import groupby
from pathlib import Path

import sentencepiece

from runtime.settings import UserError


def train_tokenizer(texts, markers: list[str], config, path: Path) -> None:
    """Train a BPE tokenizer as [tokenizer] says, whose markers are single pieces; text stays as it
    is.

    Punctuation stays apart, so a number is the same piece whatever follows it."""
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(" " + text for text in texts),
            model_prefix=str(path.with_suffix("")), model_type="bpe",
            vocab_size=config.vocab, byte_fallback=config.byte_fallback,
            control_symbols=markers, user_defined_symbols=list(",.:;!?\n"),
            character_coverage=0.9995,
            add_dummy_prefix=False, remove_extra_whitespaces=False, max_sentence_length=1 << 16,
            normalization_rule_name="identity", unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
            num_threads=1, minloglevel=2)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        most = re.search(r"value <= (\d+)", reason)
        if "required_chars" in reason:
            reason = "it has not even room for their characters; raise it, or set byte_fallback"
        raise UserError(f"tokenizer.vocab = {config.vocab} does not fit the data: "
                        + (f"at most {most[1]} there; lower it" if most else reason)) from None


def without_space(encode, texts: list[str]) -> list[list[int]]:
    """Return encode(texts) without the space that some tokenizers put before a text: encode each
    after a line's end, which is then cut off again."""
    line, = encode(["\n"])
    both = encode(["\n" + text for text in texts])
    return [ids[len(line):] if line and ids[:len(line)] == line else encode([text])[0]
            for text, ids in zip(texts, both)]


class Tokenizer:
    """A SentencePiece model: text to token ids and back."""

    def __init__(self, path: str | Path, eos: str = ""):
        try:
            self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path}: no SentencePiece model ({str(error).strip()})") from None
        self.path, self.vocab = Path(path), self.pieces.vocab_size()
        self.bos = self.pieces.bos_id()
        self.eos = self.pieces.piece_to_id(eos) if eos else self.pieces.eos_id()
        if self.eos < 0 or eos and self.eos == self.pieces.unk_id():
            raise UserError(f"{path}: has no end-of-sentence piece {eos}; name what ends a "
                            "response in tokenizer.eos")
        self.controls = {self.pieces.id_to_piece(i): i for i in range(self.vocab)
                         if self.pieces.is_control(i)}
        own_space = self.pieces.encode("a", out_type=str)[0].startswith("\u2581")
        self.lead = "" if own_space else " "  # a word is the same piece first and later in a text
        self.always_spaced = not own_space

    def fixed(self, text: str, first: bool = False) -> list[int]:
        """Return the token ids of a template's own text, in which `</s>` and its like are single
        tokens; `first` in a sequence, it gets the space that the tokenizer puts there."""
        controls, ids = "|".join(map(re.escape, self.controls)) or "(?!)", []
        for part in filter(None, re.split(f"({controls})", text)):
            if part in self.controls:
                ids.append(self.controls[part])
            elif self.lead or first and not ids:
                ids += self.pieces.encode(part)
            else:
                ids += without_space(self.pieces.encode, [part])[0]
        return ids

    def encode(self, texts: list[str], spaced: bool | None = None) -> list[list[int]]:
        """Return the token ids of texts: prompts or responses."""
        if self.lead or spaced is not False:
            return self.pieces.encode([self.lead + text for text in texts])
        return without_space(self.pieces.encode, texts)

    def unknown(self, text: str) -> str:
        """Return the characters of a text that the tokenizer cannot spell."""
        no_piece = self.pieces.unk_id()
        return "".join(c for c in dict.fromkeys(text) if no_piece in self.pieces.encode(c))

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; the end and what follows it are left out."""
        ids = ids[:ids.index(self.eos)] if self.eos in ids else ids
        return self.pieces.decode([int(i) for i in ids if i < self.vocab]).strip()

    def show(self, ids: list[int]) -> str:
        """Return the text of a prompt, with the markers of its turns."""
        names = {number: name for name, number in self.controls.items()}
        runs = [(name, list(run)) for name, run in groupby(ids, lambda i: names.get(i, ""))]
        return "".join(name * len(run) or self.pieces.decode(run) for name, run in runs).strip()

    def piece(self, i: int) -> str:
        """Return the text of a token id."""
        return self.pieces.id_to_piece(i) if i < self.vocab else f"<{i}>"  # of more rows

    def settings(self) -> dict:
        """Return what transformers has to know of it (tokenizer_config.json)."""
        special = {"bos": self.bos, "unk": self.pieces.unk_id()}
        return {"tokenizer_class": "LlamaTokenizer", "add_bos_token": self.bos >= 0,
                "add_eos_token": False, "legacy": False, "add_prefix_space": not self.lead} | {
                    f"{name}_token": self.piece(i) if i >= 0 else None
                    for name, i in special.items()}


class JSONTokenizer:
    """A tokenizer.json of Hugging Face's library `tokenizers`, with the methods of `Tokenizer`."""

    always_spaced = False

    def __init__(self, path: str | Path, eos: str):
        try:
            import tokenizers
        except ImportError:
            raise UserError(f"{path}: needs an extra: pip install tokenizers") from None
        try:
            self.pieces = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise UserError(f"{path}: no tokenizer.json ({str(error).splitlines()[0]})") from None
        self.pieces.no_truncation()
        self.pieces.no_padding()
        self.path, self.vocab = Path(path), self.pieces.get_vocab_size()
        self.eos: int = self.pieces.token_to_id(eos)
        if self.eos is None:
            raise UserError(f"{path}: has no piece {eos!r}; name what ends a response in "
                            "tokenizer.eos")
        first = next(iter(self.pieces.encode("").ids), -1)  # what it puts before every text
        self.bos = -1 if first == self.eos else first
        own_space = self.pieces.encode("a", add_special_tokens=False).tokens[:1]
        self.lead = "" if own_space and own_space[0].startswith("\u2581") else " "

    def plain(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of texts as the library gives them."""
        return [e.ids for e in self.pieces.encode_batch_fast(texts, add_special_tokens=False)]

    def fixed(self, text: str, first: bool = False) -> list[int]:
        """Return the ids of a template's own text, in which special tokens are single ones."""
        self.pieces.encode_special_tokens = False
        return (self.plain([text]) if self.lead or first else without_space(self.plain, [text]))[0]

    def encode(self, texts: list[str], spaced: bool | None = None) -> list[list[int]]:
        """Return the token ids of texts: prompts or responses."""
        self.pieces.encode_special_tokens = True  # as the text that they are
        if spaced is False and not self.lead:
            return without_space(self.plain, texts)
        return self.plain([self.lead * bool(spaced) + text for text in texts])

    def unknown(self, text: str) -> str:
        """Return the characters of a text that the tokenizer cannot spell: it drops them, or has a
        token that stands for all of them."""
        found = self.plain(list(dict.fromkeys(text)))
        no_piece = self.pieces.token_to_id(getattr(self.pieces.model, "unk_token", None) or "")
        return "".join(c for c, ids in zip(dict.fromkeys(text), found) if not c.isspace() and (
            not ids or no_piece is not None and no_piece in ids))

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids; the end and what follows it are left out."""
        ids = ids[:ids.index(self.eos)] if self.eos in ids else ids
        return self.pieces.decode([int(i) for i in ids], skip_special_tokens=True).strip()

    def show(self, ids: list[int]) -> str:
        """Return the text of a prompt, with the markers of its turns."""
        return self.pieces.decode([int(i) for i in ids], skip_special_tokens=False).strip()

    def piece(self, i: int) -> str:
        """Return the text of a token id."""
        return self.pieces.id_to_token(i) or f"<{i}>"  # an embedding may have more rows

    def settings(self) -> dict:
        """Return what transformers has to know of it (tokenizer_config.json)."""
        start = {"bos_token": self.piece(self.bos)} if self.bos >= 0 else {}
        return {"tokenizer_class": "PreTrainedTokenizerFast"} | start


def file_name(content: bytes) -> str:
    """Name a tokenizer's file by its content."""
    return "tokenizer.json" if content.lstrip()[:1] == b"{" else "tokenizer.model"


Tokenizers = Tokenizer | JSONTokenizer  # either kind, with the same methods


def read_tokenizer(path: Path, eos: str) -> Tokenizers:
    """Read a tokenizer of either kind; `eos` is the piece that ends a response, "" the model's own.
    Raises UserError where it cannot be read or has no end."""
    try:
        with open(path, "rb") as file:
            name = file_name(file.read(64))
    except OSError as error:
        raise UserError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
    return JSONTokenizer(path, eos) if name.endswith("json") else Tokenizer(path, eos)
