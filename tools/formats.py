"""Published formats of preference pairs, each a JSON object a line, known by their content.

    HH-RLHF              {"chosen", "rejected"}, whole conversations
    OpenAI's summaries   {"info", "summaries", "choice"}
    plain                {"prompt", "chosen", "rejected"}

A reader takes one record and where it stands (file:line) and returns a TextPair, or in a word why
the record is no pair; it raises UserError for what is malformed.
"""

from dataclasses import dataclass

from runtime import UserError


@dataclass
class TextPair:
    key: str       # pairs of one key stay in one fold: the prompt, or the id of what it is about
    prompt: str
    chosen: str
    rejected: str


def text_field(record: dict, key: str, where: str) -> str:
    """A string of a record. Raises UserError where it is missing or something else."""
    try:
        record[key].encode()
    except (KeyError, AttributeError, UnicodeEncodeError):
        raise UserError(f"{where}: field {key!r} is missing or no string of text") from None
    return record[key]


def read_plain(record: dict, where: str) -> TextPair | str:
    prompt = text_field(record, "prompt", where)
    return TextPair(prompt, prompt, text_field(record, "chosen", where),
                    text_field(record, "rejected", where))


def read_hh(record: dict, where: str) -> TextPair | str:
    """HH-RLHF: two conversations that should differ in the last assistant turn only."""
    sides = []
    for key in ("chosen", "rejected"):
        prompt, turn, response = text_field(record, key, where).rpartition("\n\nAssistant:")
        if not turn:
            raise UserError(f"{where}: field {key!r} has no turn '\\n\\nAssistant:'")
        sides.append((prompt.strip(), response.strip()))
    if sides[0][0] != sides[1][0]:
        return "prompts differ"
    return TextPair(sides[0][0], sides[0][0], sides[0][1], sides[1][1])


def read_summaries(record: dict, where: str) -> TextPair | str:
    """OpenAI summary comparisons: `choice` is the index of the preferred summary."""
    try:
        post = record["info"]["post"] or record["info"]["article"]
        texts = [text_field(summary, "text", where).strip() for summary in record["summaries"]]
        chosen, key = record["choice"], str(record["info"]["id"])
        return TextPair(key, post.strip(), texts[chosen], texts[1 - chosen])
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{where}: no summary comparison, {type(error).__name__} at {error}; "
                        "expected info.post, info.id, two summaries and choice") from None


def find_reader(record: dict, where: str):
    """The reader of a record's format. Raises UserError where no format fits."""
    if "summaries" in record:
        return read_summaries
    if "chosen" in record and "rejected" in record:
        return read_plain if "prompt" in record else read_hh
    raise UserError(f"{where}: expected the keys prompt, chosen and rejected (or HH-RLHF's, or "
                    f"those of summary comparisons), found {', '.join(record) or 'none'}")
