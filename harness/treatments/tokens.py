"""Texts to tokens, and padding to one length."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import ConfigError, DataError, require_choice
from harness.treatments.numbers import Batch
from harness.wording import first_line

Model = Literal["bpe", "wordpiece", "word"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # 0 to 4 of a trained vocabulary
_BYTES = 256
_FILE = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
# What else transformers reads of a tokenizer's folder
_BESIDE = (_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


class Tokenise:
    """Texts as tokens, by Hugging Face's `tokenizers`: B texts `key` -> B integers `into`, (T_i,)
    int64 each, for `Pad`; cut to `length` tokens if that is given.

    `file`: a tokenizer.json, or a folder with one, such as that of a pretrained network. Or one is
    trained on the training split: `size` tokens of the `model` bpe (byte by byte like GPT-2's, so
    that no text is unknown), wordpiece (like BERT's) or word (the most frequent words), on its
    first `learn_from` texts; 0 to 4 are [PAD], [UNK], [CLS], [SEP], [MASK]. `special`: whether to
    add the tokens with which a text begins and ends. A trained tokenizer treats a text that spells
    one ("[PAD]") as plain text; one from a file reads it as that token, as in transformers. Either
    tokenizer is kept in every checkpoint, and the file is not read again. `size` must match the
    network.

    Raises ConfigError, and DataError for a text that gives no tokens and for texts with more
    distinct characters than `size`.
    """

    def __init__(
        self,
        key: str = "text",
        into: str = "tokens",
        file: str | None = None,
        model: Model = "bpe",
        size: int | None = None,
        length: int | None = None,
        special: bool = True,
        lowercase: bool = False,
        learn_from: int | None = None,
    ) -> None:
        require_choice("model", model, get_args(Model))
        if (file is None) == (size is None):
            raise ConfigError(
                "file, size: give the file of a tokenizer, or the size of the vocabulary to train."
            )
        if file is not None and (model != "bpe" or lowercase or learn_from is not None):
            raise ConfigError(
                "model, lowercase, learn_from: no effect on a tokenizer from a file. Remove them."
            )
        least = len(SPECIAL) + (_BYTES if model == "bpe" else 1)
        if size is not None and size < least:
            raise ConfigError(f"size: {size}: {model} needs at least {least}.")
        if length is not None and length < 1 + 2 * special:
            raise ConfigError(f"length: {length}: leaves no room for the text. Increase it.")
        self.key, self.into = key, into
        self._file, self._model, self._size = file, model, size
        self._length, self._special, self._lowercase = length, special, lowercase
        self._wanted = 0 if file is not None else learn_from
        self._texts: list[str] = []
        # The library's threads would be forked with the data workers, which already run in parallel
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    @staticmethod
    def paths_of(file: str | None = None, **_: Any) -> list[Path]:
        """The file of the tokenizer, if there is one, and those beside it."""
        return [] if file is None else [_path(file), *_beside(_path(file))]

    @property
    def ready(self) -> bool:
        """Whether it has seen all the texts that it learns from."""
        return self._wanted is not None and len(self._texts) >= self._wanted

    def observe(self, batch: Batch) -> None:
        """batch: as for `__call__`."""
        self._texts += self._read(batch)

    def finish(self) -> None:
        """Raises DataError for a file that is not a tokenizer, and if there is no text."""
        if self._file is not None:
            tokenizer = _load(_path(self._file))
        else:
            if not any(text.strip() for text in self._texts):
                raise DataError(f"{self.key}: no text to learn tokens from. Set key.")
            assert self._size is not None
            texts = self._texts[: self._wanted]
            tokenizer = _train(texts, self._model, self._size, lowercase=self._lowercase)
        self._texts = []
        files = [] if self._file is None else _beside(_path(self._file))
        beside = {one.name: _text_of(one) for one in files}
        self.restore({"tokenizer": tokenizer.to_str(), **({"beside": beside} if beside else {})})

    def state(self) -> dict[str, Any]:
        """{tokenizer: the text of a tokenizer.json; beside: {name: text} of files beside it}"""
        return {"tokenizer": self._state, **({"beside": self._beside} if self._beside else {})}

    def files_beside(self) -> dict[str, str]:
        """What `AutoTokenizer.from_pretrained` reads."""
        words = self._tokenizer.get_vocab()
        roles = ("pad", "unk", "cls", "sep", "mask")
        special = {f"{role}_token": f"[{role.upper()}]" for role in roles}
        config: dict[str, Any] = {name: word for name, word in special.items() if word in words}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if self._length is not None:
            config["model_max_length"] = self._length
        return {_FILE: self._state, _CONFIG: json.dumps(config, indent=2) + "\n", **self._beside}

    def restore(self, state: Mapping[str, Any]) -> None:
        """state: as returned by `state()`."""
        self._state: str = state["tokenizer"]
        self._beside: dict[str, str] = {**state.get("beside", {})}
        self._tokenizer = _library().Tokenizer.from_str(self._state)
        self._tokenizer.encode_special_tokens = self._file is None
        self._tokenizer.no_padding()
        if self._length is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(self._length)

    def __call__(self, batch: Batch) -> Batch:
        texts = self._read(batch)
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=self._special)
        tokens = [torch.tensor(one.ids, dtype=torch.int64) for one in found]
        if empty := [text for text, one in zip(texts, tokens, strict=True) if len(one) == 0]:
            raise DataError(
                f"{self.key}: the text {empty[0][:40]!r} gives no tokens. Remove it, or set "
                "special."
            )
        kept = {name: value for name, value in batch.items() if name != self.key}
        return {**kept, self.into: tokens}

    def decode(self, column: str, values: NDArray[Any]) -> str | None:
        """The tokens of a sample (T,), parted by |, with those that are special."""
        if column != self.into:
            return None
        return "|".join(
            self._tokenizer.decode([token], skip_special_tokens=False) for token in values.tolist()
        )

    def _read(self, batch: Batch) -> list[str]:
        texts = batch.get(self.key)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"Tokenise needs {self.key!r} as text; samples have {', '.join(sorted(batch))}. "
                f"Read the column as text, e.g. columns: {{{self.key}: text}}, or set key."
            )
        return texts


class Pad:
    """Samples of several lengths as one array: B arrays (T_i, ...) -> (B, T, ...), padded with
    `value` at their ends; T is `length`, or without it the longest of the micro-batch.

    `mask`: a name for (B, T) int64, 1 at samples and 0 at padding. The network sees the mask; the
    loss and the metrics do not. For tokens that `LanguageModelling` predicts, `value: -100`, its
    `ignore_index`, keeps the padding out. Raises DataError for samples longer than `length`, or
    that differ in their other axes, and for a `value` that their type cannot hold.
    """

    def __init__(
        self,
        key: str = "tokens",
        length: int | None = None,
        value: float = 0,
        mask: str | None = None,
    ) -> None:
        if length is not None and length < 1:
            raise ConfigError(f"length: {length}: must be at least 1.")
        self.key, self.length, self.value, self.mask = key, length, value, mask
        self.of_batch = length is None

    def __call__(self, batch: Batch) -> Batch:
        samples = self._samples(batch)
        lengths = [len(one) for one in samples]
        length = max(lengths) if self.length is None else self.length
        if max(lengths) > length:
            raise DataError(
                f"{self.key}: a sample of {max(lengths)}, longer than length: {length}. Cut it "
                "first, e.g. with the length of Tokenise, or increase length."
            )
        first = samples[0]
        if not _holds(first.dtype, self.value):
            kind = str(first.dtype).removeprefix("torch.")
            raise DataError(
                f"{self.key}: value: {self.value}: {kind} cannot hold it. Give another one."
            )
        padded = torch.full((len(samples), length, *first.shape[1:]), self.value, dtype=first.dtype)
        for row, one in zip(padded, samples, strict=True):
            row[: len(one)] = one
        masked = {}
        if self.mask is not None:
            masked[self.mask] = (torch.arange(length) < torch.tensor(lengths)[:, None]).long()
        return {**batch, self.key: padded, **masked}

    def _samples(self, batch: Batch) -> Sequence[Tensor]:
        samples = batch.get(self.key)
        alike = isinstance(samples, Tensor) or (
            isinstance(samples, list)
            and all(isinstance(one, Tensor) for one in samples)
            and len({(one.shape[1:], one.dtype) for one in samples}) == 1
        )
        if not alike or samples is None or samples[0].dim() == 0:
            raise DataError(
                f"Pad needs arrays (T, ...) {self.key!r} that differ in T alone; samples have "
                f"{', '.join(sorted(batch))}. Set key, or put Tokenise before it."
            )
        return list(samples)


def _holds(dtype: torch.dtype, value: float) -> bool:
    if dtype == torch.bool:
        return value in (0, 1)
    if dtype.is_complex or not math.isfinite(value):
        return dtype.is_complex or dtype.is_floating_point
    limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    fits = limits.min <= value <= limits.max
    return fits and (dtype.is_floating_point or value == int(value))


def _library() -> Any:
    try:
        import tokenizers  # loaded when used: an extra
    except ImportError as error:
        raise ConfigError(
            "Tokenise needs tokenizers, which is not installed: pip install 'fermarsi[text]'."
        ) from error
    return tokenizers


def _path(file: str) -> Path:
    path = Path(file).expanduser()
    return path / _FILE if path.is_dir() else path


def _beside(path: Path) -> list[Path]:
    return [one for name in _BESIDE if (one := path.with_name(name)).is_file()]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as text: {first_line(error)}. Copy the tokenizer's folder "
            "again, or take the file out of it."
        ) from error


def _load(path: Path) -> Any:
    library = _library()
    try:
        return library.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        hint = ""
        if path.name == _FILE and path.parent.is_dir():
            hint = (
                " For the folder of an older tokenizer, transformers writes one: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
            )
        raise DataError(
            f"{path}: {error.strerror}. Give a tokenizer.json, or a folder with one.{hint}"
        ) from error
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(
            f"{path}: not the tokenizer.json of a tokenizer: {error}. Download it again."
        ) from error


def _train(texts: Sequence[str], model: Model, size: int, *, lowercase: bool) -> Any:
    library = _library()
    of = library.models, library.pre_tokenizers, library.trainers
    models, pre_tokenizers, trainers = of
    options: dict[str, Any] = {
        "vocab_size": size,
        "special_tokens": list(SPECIAL),
        "show_progress": False,
    }
    normal = [library.normalizers.NFC()]
    if lowercase:
        normal.append(library.normalizers.Lowercase())
    normalizer = library.normalizers.Sequence(normal)
    make: dict[str, Callable[[], tuple[Any, Any, Any, Any]]] = {
        "bpe": lambda: (
            models.BPE(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            library.decoders.ByteLevel(),
            trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options),
        ),
        "wordpiece": lambda: (
            models.WordPiece(unk_token=SPECIAL[1]),
            pre_tokenizers.BertPreTokenizer(),
            library.decoders.WordPiece(),
            trainers.WordPieceTrainer(**options),
        ),
        "word": lambda: (
            models.WordLevel(unk_token=SPECIAL[1]),
            pre_tokenizers.Whitespace(),
            None,
            trainers.WordLevelTrainer(**options),
        ),
    }
    if model == "wordpiece":
        options["special_tokens"] += _continuations(texts, normalizer)
    kind, pre_tokenizer, decoder, trainer = make[model]()
    tokenizer = library.Tokenizer(kind)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        tokenizer.decoder = decoder
    begin, end = SPECIAL[2], SPECIAL[3]
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(begin, SPECIAL.index(begin)), (end, SPECIAL.index(end))],
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (num_tokens := tokenizer.get_vocab_size()) > size:
        raise DataError(
            f"size: {size}: the characters of the texts alone make {num_tokens} tokens. Increase "
            "size, or set model: bpe."
        )
    kept = json.loads(tokenizer.to_str())
    kept["added_tokens"] = kept["added_tokens"][: len(SPECIAL)]
    return library.Tokenizer.from_str(json.dumps(kept))


def _continuations(texts: Sequence[str], normalizer: Any) -> list[str]:
    """The pieces that continue a word by one character, sorted: left to itself, the trainer numbers
    them at random, and its choice among equally frequent pieces depends on the numbers.
    """
    split = _library().pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    found: set[str] = set()
    for text in texts:
        for word, _ in split(normalizer.normalize_str(text)):
            found.update(word[1:])
    return [f"##{character}" for character in sorted(found)]
