"""Published formats of preference pairs, each known by its content.

    HH-RLHF              {"chosen", "rejected"}, whole conversations as text
    conversations        {"chosen", "rejected"} as lists of {"role", "content"}, with or without
                         their "prompt" (TRL; UltraFeedback-binarized)
    OpenAI's summaries   {"info", "summaries", "choice"}
    judge sets           {"instruction", "response1", "response2"} and votes (PandaLM)
    HelpSteer3           {"context", "response1", "response2", "overall_preference"}
    SHP                  {"history", "human_ref_A", "human_ref_B", "labels"}
    Nectar               {"prompt", "answers"}, ranked
    Chatbot Arena        {"conversation_a", "conversation_b", "winner"}
    plain                {"prompt", "chosen", "rejected"}, and "system" if there is one

A file holds JSON lines, one JSON list, or a Parquet table; it may be gzipped. A reader takes one
record and where it stands (file:line) and returns a TextPair, or in a word why the record is no
pair; it raises Unusable for a record that is not as its format says. A few of these are left out,
as published files have some; a file that has many is refused.
"""

import gzip
import json
import re
import sys
import zlib
from collections import Counter
from dataclasses import dataclass

from runtime.settings import UserError, reason_of

MOST_UNUSABLE = 1 / 20  # of a file's records
SHOWN = 3               # of those that are left out
ROLES = ("system", "user", "assistant")
Turn = tuple[str, str]  # role, text


@dataclass
class TextPair:
    key: str             # pairs of one key stay in one fold: the first turn, or the source's id
    prompt: list[Turn]   # ends with the user's turn that is answered
    chosen: str
    rejected: str


class Unusable(UserError):
    """A record that is not as its format says. Such records are counted by their `reason`, which
    names no value of the record; the `detail` follows it in the message, from its "; " or ", " on.
    """

    def __init__(self, where: str, reason: str, detail: str = ""):
        super().__init__(f"{where}: {reason}{detail}")
        self.reason = reason


def found(value) -> str:
    """Return a detail that shows the beginning of a wrong value."""
    return f", found {str(value)[:40]!r}"


def is_number(value) -> bool:
    """Tell whether a value is a number, which NaN, infinity, true and false are not."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def read_pairs(path: str, dropped: Counter) -> list[TextPair]:
    """Read all usable pairs of a file; count the others in `dropped` by reason.

    Raises UserError with file and line for what cannot be read, and for a file of which more than
    one record in twenty is not as its format says.
    """
    pairs, unusable, count = [], [], 0
    try:
        for count, (record, where) in enumerate(records(str(path)), 1):
            try:
                pair = read_record(record, where)
            except Unusable as error:
                unusable.append(error)
                continue
            if isinstance(pair, str):
                dropped[pair] += 1
            else:
                pairs.append(pair)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the data: {reason_of(error)}") from None
    if len(unusable) > MOST_UNUSABLE * count:
        raise UserError(f"{unusable[0]} ({len(unusable)} of {count} records cannot be used)")
    for error in unusable[:SHOWN]:
        print(f"data: left out: {error}", file=sys.stderr)
    dropped.update(error.reason for error in unusable)
    return pairs


def read_record(record, where: str) -> TextPair | str:
    """Return the pair of a record, or in a word why it is none."""
    if not isinstance(record, dict):
        raise Unusable(where, "expected a JSON object a line")
    pair = find_reader(record, where)(record, where)
    if isinstance(pair, str):
        return pair
    if pair.chosen == pair.rejected:
        return "responses equal"
    if not (pair.prompt and pair.prompt[-1][1].strip() and pair.chosen.strip()
            and pair.rejected.strip()):
        return "empty text"
    return pair


def records(path: str):
    """Yield each record of a file and where it stands."""
    with open(path, "rb") as raw:
        start = raw.read(30)
        raw.seek(0)
        if start.startswith(b"version https://git-lfs"):
            raise UserError(f"{path}: only a Git LFS pointer; run git lfs pull where it lies")
        if start[:4] == b"PAR1":
            yield from parquet_records(path)
            return
        packed = start[:2] == b"\x1f\x8b" or path.endswith(".gz")
        first = True
        with gzip.GzipFile(fileobj=raw) if packed else raw as file:
            for number, line in enumerate(file, 1):
                text, where = decoded(line, path, number), f"{path}:{number}"
                if first and text.lstrip().startswith("["):
                    text += decoded(file.read(), path, number + 1)  # apart: an error has its number
                    for item, record in enumerate(parsed(text, path), 1):
                        yield record, f"{path}, item {item}"
                    return
                if text.strip():
                    first = False
                    yield parsed(text, where), where


def decoded(text: bytes, path: str, number: int) -> str:
    """Decode some lines, of which the first has this number in its file."""
    try:
        return text.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        number += text[:error.start].count(b"\n")
        raise UserError(f"{path}:{number}: it is no UTF-8 ({error.reason}); save it as such"
                        ) from None


def parsed(text: str, where: str):
    try:
        return json.loads(text.rstrip("\r\n"))  # else what is cut off is missed on a next line
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " * (error.lineno > 1) + f"column {error.colno}"
        raise UserError(f"{where}: no JSON ({error.msg}: {place}); formats: docs/data.md") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON: {error}") from None


def parquet_records(path: str):
    """Yield the rows of a Parquet table; needs pyarrow."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"{path}: Parquet needs an extra: pip install pyarrow") from None
    try:
        rows = (row for batch in parquet.ParquetFile(path).iter_batches()
                for row in batch.to_pylist())
        for number, record in enumerate(rows, 1):
            yield record, f"{path}, row {number}"
    except (ArrowException, UnicodeError) as error:
        raise UserError(f"{path}: no Parquet table: {str(error).splitlines()[0]}") from None


def text_field(record: dict, key: str, where: str) -> str:
    """Return a string of a record; a number, true or false is taken as its text. Raises Unusable
    where it is missing or something else, such as NaN."""
    value = record.get(key)
    if isinstance(value, bool) or is_number(value):
        value = str(value)
    try:
        value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise Unusable(where, f"field {key!r} is missing or no string of text") from None
    return value


def key_of(turns: list[Turn]) -> str:
    """Return the user's first turn, the same in every format: conversations that begin alike are
    often one conversation, longer and shorter."""
    return next(text for role, text in turns if role == "user")


def one_turn_pair(prompt: str, chosen: str, rejected: str, key: str | None = None) -> TextPair:
    """Make a pair whose prompt is one turn."""
    return TextPair(prompt if key is None else key, [("user", prompt)], chosen, rejected)


def read_plain(record: dict, where: str) -> TextPair | str:
    """Read a prompt of one turn, which may have a system message, or a conversation of HH-RLHF."""
    prompt, *sides = (text_field(record, key, where) for key in ("prompt", "chosen", "rejected"))
    pair, system = one_turn_pair(prompt, *sides), record.get("system")
    if prompt.lstrip().startswith("Human:") and prompt.rstrip().endswith("\n\nAssistant:"):
        pair = hh_pair(hh_prompt(prompt), *map(str.strip, sides))
    if isinstance(pair, TextPair) and isinstance(system, str) and system.strip():
        pair.prompt.insert(0, ("system", text_field(record, "system", where)))
    return pair


def read_hh(record: dict, where: str) -> TextPair | str:
    """Read HH-RLHF: two conversations that should differ in the last assistant turn only."""
    sides = []
    for key in ("chosen", "rejected"):
        prompt, turn, response = text_field(record, key, where).rpartition("\n\nAssistant:")
        if not turn:
            raise Unusable(where, f"field {key!r} has no turn '\\n\\nAssistant:'", " (without a "
                           "field 'prompt' it is read as a whole conversation of HH-RLHF)")
        if "\n\nHuman:" in response:
            return "no response at the end"
        sides.append((prompt.strip(), response.strip()))
    if sides[0][0] != sides[1][0]:
        return "prompts differ"
    return hh_pair(*sides[0], sides[1][1])


def hh_prompt(text: str) -> str:
    """Return a conversation as text, without the last "Assistant:"."""
    return text.strip().removesuffix("Assistant:").strip()


def hh_pair(prompt: str, chosen: str, rejected: str) -> TextPair | str:
    """Make a pair whose prompt is a conversation as text, without the last "Assistant:"."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", prompt)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [(roles[name], text.strip()) for name, text in zip(parts[1::2], parts[2::2])]
    if not turns or parts[0].strip() or turns[-1][0] != "user":
        return "no turn 'Human:' before the response"
    return TextPair(key_of(turns), turns, chosen, rejected)


def content_of(message: dict, where: str) -> str:
    """Return the text of a message, of which the content may be a list of parts (Arena's sets of
    2025). Raises Unusable where a part is an image."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return text_field(message, "content", where)
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
        raise Unusable(where, "a message has parts that are no text")
    return "".join(text_field(part, "text", where) for part in parts)


def read_turns(messages, key: str, where: str) -> list[Turn]:
    """Read a list of {"role", "content"}."""
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Unusable(where, f"field {key!r} is no list of messages")
    turns = [(text_field(m, "role", where), content_of(m, where)) for m in messages]
    for role, _ in turns:
        if role not in ROLES:
            raise Unusable(where, f"field {key!r} has a role that is none of {', '.join(ROLES)}",
                           found(role))
    return turns


def read_conversations(record: dict, where: str) -> TextPair | str:
    """Read messages: the prompt is given apart, or is all but the last message of both sides."""
    prompt, sides = record.get("prompt"), []
    if record.get("score_chosen") is not None and (
            record["score_chosen"] == record.get("score_rejected")):
        return "tie"
    for key in ("chosen", "rejected"):
        turns = read_turns(record[key], key, where)
        if isinstance(prompt, list):
            before = read_turns(prompt, "prompt", where)
            turns = turns if turns[:len(before)] == before else before + turns
        elif prompt is not None and turns and turns[0][0] == "assistant":
            turns = [("user", text_field(record, "prompt", where))] + turns
        sides.append(turns)
    return turns_pair(*sides)


def turns_pair(chosen: list[Turn], rejected: list[Turn]) -> TextPair | str:
    """Make a pair of two conversations that should differ in the last turn only."""
    if not all(turns and turns[-1][0] == "assistant" for turns in (chosen, rejected)):
        return "no response at the end"
    prompt = chosen[:-1]
    if prompt != rejected[:-1]:
        return "prompts differ"
    if not prompt or prompt[-1][0] != "user":
        return "no turn of the user before the response"
    return TextPair(key_of(prompt), prompt, chosen[-1][1], rejected[-1][1])


def read_summaries(record: dict, where: str) -> TextPair | str:
    """Read OpenAI's summary comparisons: `choice` is the index of the preferred summary. Many pairs
    are of one post, which is the key."""
    info, summaries, choice = (record.get(key) for key in ("info", "summaries", "choice"))
    if not (isinstance(info, dict) and isinstance(summaries, list) and len(summaries) == 2
            and all(isinstance(one, dict) for one in summaries) and choice in (0, 1)
            and type(choice) is int and "id" in info):
        raise Unusable(where, "no summary comparison", "; expected info with id and post, two "
                       "summaries and choice, 0 or 1")
    post = text_field(info, "post" if info.get("post") else "article", where).strip()
    texts = [text_field(summary, "text", where).strip() for summary in summaries]
    return one_turn_pair(post, texts[choice], texts[1 - choice], key=str(info["id"]))


def read_votes(record: dict, where: str) -> TextPair | str:
    """Read a judge set: votes 1 or 2 for a response, 0 for a tie, in fields `annotator...`, in a
    list `votes`, or in `preference`. The majority of those that prefer one decides."""
    prompt = text_field(record, "instruction" if "instruction" in record else "prompt", where)
    if record.get("input"):
        prompt += "\n\n" + text_field(record, "input", where)
    texts = [text_field(record, key, where).strip() for key in ("response1", "response2")]
    votes = [value for key, value in record.items() if key.startswith("annotator")]
    listed = record.get("votes", [])
    votes += listed if isinstance(listed, list) else [listed, "no list"]
    votes += [record["preference"]] if "preference" in record else []
    if not votes or any(str(vote) not in ("0", "1", "2") for vote in votes):
        raise Unusable(where, "expected votes 0, 1 or 2 in annotator..., votes or preference",
                       found(votes))
    lead = sum((0, 1, -1)[int(vote)] for vote in votes)
    return one_turn_pair(prompt, *(texts if lead > 0 else texts[::-1])) if lead else "tie"


def read_helpsteer(record: dict, where: str) -> TextPair | str:
    """Read HelpSteer3: a preference from -3, response1 is much better, to 3, response2 is."""
    preference = record["overall_preference"]
    if not is_number(preference) or abs(preference) > 3:
        raise Unusable(where, "expected overall_preference from -3 to 3", found(preference))
    before = read_turns(record.get("context"), "context", where)
    sides = [before + [("assistant", text_field(record, key, where).strip())]
             for key in ("response1", "response2")]
    return turns_pair(*(sides if preference < 0 else sides[::-1])) if preference else "tie"


def read_shp(record: dict, where: str) -> TextPair | str:
    """Read SHP: `labels` is 1 where A is preferred, 0 where B is. Many pairs are of one post, and
    `history` is its text."""
    if record.get("labels") not in (0, 1):
        raise Unusable(where, "expected labels, 0 or 1", found(record.get("labels")))
    texts = [text_field(record, f"human_ref_{name}", where).strip() for name in "AB"]
    return one_turn_pair(text_field(record, "history", where).strip(),
                         *(texts if record["labels"] else texts[::-1]))


def read_nectar(record: dict, where: str) -> TextPair | str:
    """Read Nectar: the best against the worst of some answers, of which 1 is the best rank."""
    answers = record["answers"]
    if not answers or not all(isinstance(one, dict) and is_number(one.get("rank"))
                              for one in answers):
        raise Unusable(where, "expected answers, each with a rank")
    ranked = sorted(answers, key=lambda one: one["rank"])
    if ranked[0]["rank"] == ranked[-1]["rank"]:
        return "tie"
    prompt = hh_prompt(text_field(record, "prompt", where))
    return hh_pair(prompt, *(text_field(one, "answer", where).strip()
                             for one in (ranked[0], ranked[-1])))


def read_arena(record: dict, where: str) -> TextPair | str:
    """Read Chatbot Arena: each model has a conversation of its own, so that those of several turns
    seldom are a pair."""
    winner = text_field(record, "winner", where)
    if winner.startswith("tie") or winner == "both_bad":
        return "tie"
    if winner not in ("model_a", "model_b"):
        raise Unusable(where, "expected winner model_a, model_b or tie", found(winner))
    sides = [read_turns(record[f"conversation_{name}"], f"conversation_{name}", where)
             for name in "ab"]
    if type(record.get("turn")) is int:  # of which the last was judged; in MT-bench more follow
        sides = [turns[:2 * record["turn"] + sum(role == "system" for role, _ in turns[:1])]
                 for turns in sides]
    return turns_pair(*(sides if winner == "model_a" else sides[::-1]))


def find_reader(record: dict, where: str):
    """Return the reader of a record's format: of several that fit the most special one, first.
    Raises Unusable where none fits."""
    if "summaries" in record:
        return read_summaries
    if "human_ref_A" in record and "human_ref_B" in record:
        return read_shp
    if "conversation_a" in record and "conversation_b" in record:
        return read_arena
    if "prompt" in record and isinstance(record.get("answers"), list) and "chosen" not in record:
        return read_nectar
    if {"context", "response1", "response2", "overall_preference"} <= record.keys():
        return read_helpsteer
    if "response1" in record and "response2" in record:
        return read_votes
    if "chosen" in record and "rejected" in record:
        if isinstance(record["chosen"], list):
            return read_conversations
        return read_plain if "prompt" in record else read_hh
    raise Unusable(where, "expected the keys prompt, chosen and rejected", " (or those of another "
                   f"format, see docs/data.md), found {', '.join(record) or 'none'}")
