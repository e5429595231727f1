"""The tokenizer that lies beside a model: `tokenizer.json` (or `vocab.txt`), read by a library that runs no code of it.

`AutoTokenizer` is not used: it would import classes that a configuration names, and build slow tokenizers in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laocoon.core.errors import BrokenFile, InputError, MissingExtra
from laocoon.files.wording import first_line, printable
from laocoon.modalities.text import PADDING, Text, is_marker

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST_TOKENIZER = 128 * 2**20
LARGEST_VOCABULARY = 2**20  # tokens
SPARE_ROWS = 1024  # by which an embedding table may be longer than its vocabulary: tables are padded to round numbers
LONGEST = 128  # tokens of a text that are looked at where the network takes more
FILES = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True, eq=False)
class Around:
    """A tokenizer, and what it puts around a text: [CLS] before, [SEP] after, the padding id behind."""

    tokenizer: Tokenizer
    before: tuple[int, ...]
    after: tuple[int, ...]
    padding: int


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES)


def read_tokenizer(folder: Path) -> Around:
    """The tokenizer of a folder. Raises InputError where there is none, BrokenFile where it cannot be read."""
    file = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if file is None:
        old = next((n for n in ("vocab.json", "spiece.model", "sentencepiece.bpe.model")
                    if (folder / n).is_file()), None)
        beside = f", only {old}, which is for a slow tokenizer" if old else ""
        raise InputError(f"{printable(folder.name)} holds no tokenizer.json{beside}.",
                         "Put the fast tokenizer (tokenizer.json) beside the weights.")
    size = file.stat().st_size
    if not 0 < size <= LARGEST_TOKENIZER:
        raise BrokenFile(f"{file.name} has {size} bytes.", f"Between 1 and {LARGEST_TOKENIZER} are read.")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BrokenFile(f"{file.name} is not UTF-8 (byte {error.start}).", "Fetch it again.") from None
    if file.name == "vocab.txt":
        tokenizer = _word_pieces(text)
    else:
        tokenizer = parsed(text, file.name)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return _around(tokenizer, file.name)


def parsed(text: str, name: str = "the tokenizer") -> Tokenizer:
    """A tokenizer from its JSON."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("a tokenizer needs the package tokenizers.",
                           "pip install 'laocoon[transformers]'") from error
    with _Rust(f"{name} is no tokenizer"):
        return Tokenizer.from_str(text)


class _Rust:
    """A with-block around the library, which raises bare `Exception`; a panic in its Rust code is not even that."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and (kind is Exception or type(error).__name__ == "PanicException"):
            raise BrokenFile(f"{self.problem} ({first_line(error, 120)}).", "Fetch it again.") from None


def _word_pieces(text: str) -> Tokenizer:
    """BERT's tokenizer of a list of tokens, one a line."""
    try:
        from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    except ImportError as error:
        raise MissingExtra("a tokenizer needs the package tokenizers.",
                           "pip install 'laocoon[transformers]'") from error

    tokens = text.rstrip("\n").split("\n")
    vocabulary = {token.rstrip("\r"): i for i, token in enumerate(tokens)}
    needed = [t for t in ("[UNK]", "[CLS]", "[SEP]") if t not in vocabulary]
    if needed or len(vocabulary) > LARGEST_VOCABULARY:
        raise BrokenFile(f"vocab.txt has {len(vocabulary)} tokens, and {', '.join(needed) or 'all'} "
                         f"{'are not' if needed else 'are'} among them.",
                         "It must be the word pieces of a BERT, or put its tokenizer.json here.")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    lower = not any(t != t.lower() for t in vocabulary if not (t.startswith("[") and t.endswith("]")))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
    tokenizer.post_processor = processors.BertProcessing(  # type: ignore[assignment]
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.add_special_tokens([t for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if t in vocabulary])
    return tokenizer


def _around(tokenizer: Tokenizer, name: str) -> Around:
    """What is put around a text, learned from one text."""
    with _Rust(f"{name} fails on a text"):
        plain, whole = (tokenizer.encode("the", add_special_tokens=special).ids for special in (False, True))
    at = next((i for i in range(len(whole) - len(plain) + 1) if whole[i:i + len(plain)] == plain), 0)
    before, after = tuple(whole[:at]), tuple(whole[at + len(plain):])
    named = (tokenizer.token_to_id(token) for token in ("[PAD]", "<pad>", "<PAD>"))
    return Around(tokenizer, before, after, next((i for i in named if i is not None), PADDING))


def modality_of(around: Around, rows: int, positions: int, where: str) -> Text:
    """The text modality of a network with an embedding table of `rows` and room for `positions` tokens."""
    by_token = around.tokenizer.get_vocab(with_added_tokens=True)
    highest = max(by_token.values(), default=-1)
    if not by_token or highest >= LARGEST_VOCABULARY:
        raise BrokenFile(f"{where}: the tokenizer has {len(by_token)} tokens, the last is number {highest}.",
                         f"Between 1 and {LARGEST_VOCABULARY} are read.")
    if not rows - SPARE_ROWS <= highest + 1 <= rows:
        raise InputError(f"{where}: the tokenizer numbers {highest + 1} tokens, the embedding table has {rows} rows.",
                         "Tokenizer and model do not belong together: fetch both from one place.")
    room = positions - len(around.before) - len(around.after)
    if room < 1:
        raise BrokenFile(f"{where}: the network has room for {positions} tokens.", "No text fits.")
    vocabulary = [f"[row {i}]" for i in range(rows)]
    for token, number in by_token.items():
        vocabulary[number] = token
    named = {number: token for token, number in by_token.items()}
    # Any other added token is found in texts, whatever its file calls it, and is searched like a word.
    added = {i for i, token in around.tokenizer.get_added_tokens_decoder().items()
             if token.special and is_marker(token.content)}
    untyped = {i for i in range(rows) if i not in named or named[i].startswith("[unused")}
    unknown = {i for t in ("[UNK]", "<unk>", "[PAD]", "<pad>") if (i := by_token.get(t)) is not None}
    special = sorted({PADDING, *added, *untyped, *unknown, *around.before, *around.after})
    return Text(tuple(vocabulary), min(LONGEST, room), tuple(special), around.tokenizer)
