"""Columns of texts in little memory: each distinct text once, or written when it is asked for."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class _Column(Sequence[str]):
    """N texts; equal to any other sequence of the same texts."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment] # as a list has none

    def __repr__(self) -> str:
        return repr(list(self))

    def take(self, rows: NDArray[Any]) -> "_Column":
        """rows: (M,) -> M texts"""
        raise NotImplementedError

    def _of(self, span: slice) -> "_Column":
        return self.take(np.arange(len(self))[span])


class Texts(_Column):
    """N texts, many of them equal: `words[codes[i]]`, each word once."""

    def __init__(self, words: Sequence[str], codes: NDArray[np.integer]) -> None:
        self.words = words
        self.codes = codes

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Texts":
        """The same texts; `texts` itself if it is of this class."""
        if isinstance(texts, Texts):
            return texts
        words = dict.fromkeys(texts)
        code_of = dict(zip(words, range(len(words)), strict=True))
        codes = np.fromiter(map(code_of.__getitem__, texts), np.int32, len(texts))
        return cls([*words], codes)

    @classmethod
    def concat(cls, columns: Sequence["Texts"]) -> "Texts":
        """Columns one after another."""
        if len(columns) == 1:
            return columns[0]
        words = cls.of([word for column in columns for word in column.words])
        begins = np.cumsum([0, *(len(column.words) for column in columns)])
        codes_of = [
            words.codes[begin : begin + len(column.words)]
            for begin, column in zip(begins, columns, strict=False)
        ]
        parts = [
            # Of columns with the same words, as of one file, all but a copy is spared
            column.codes if (codes == np.arange(len(codes))).all() else codes[column.codes]
            for codes, column in zip(codes_of, columns, strict=True)
        ]
        return cls(words.words, np.concatenate(parts))

    def compact(self) -> "Texts":
        """The same texts, with only those words that occur."""
        occurs = np.bincount(self.codes, minlength=len(self.words)) > 0
        if occurs.all():
            return self
        words = [self.words[code] for code in np.flatnonzero(occurs).tolist()]
        return Texts(words, (np.cumsum(occurs) - 1)[self.codes])

    def counts(self) -> Counter[str]:
        """How often each word occurs."""
        numbers = np.bincount(self.codes, minlength=len(self.words)).tolist()
        return Counter(
            {word: count for word, count in zip(self.words, numbers, strict=True) if count}
        )

    def rows_by_word(self) -> dict[str, NDArray[np.int64]]:
        """{word: where it occurs, ascending}, of those words that occur."""
        texts = self.compact()
        ordered = np.argsort(texts.codes, kind="stable")
        parts = np.split(ordered, np.cumsum(np.bincount(texts.codes))[:-1])
        return dict(zip(texts.words, parts, strict=True)) if len(self) else {}

    def take(self, rows: NDArray[Any]) -> "Texts":
        return Texts(self.words, self.codes[rows])

    def equal(self, text: str) -> NDArray[np.bool_]:
        """(N,): which ones are this text"""
        codes = [code for code, word in enumerate(self.words) if word == text]
        found: NDArray[np.bool_] = (
            self.codes == codes[0] if len(codes) == 1 else np.isin(self.codes, codes)
        )
        return found

    def array(self) -> NDArray[np.str_]:
        """(N,)"""
        texts: NDArray[np.str_] = np.array(self.words, dtype=np.str_)[self.codes]
        return texts

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Texts": ...
    def __getitem__(self, index: int | slice) -> "str | Texts":
        if isinstance(index, slice):
            return Texts(self.words, self.codes[index])
        word: str = self.words[self.codes[index]]
        return word

    def __iter__(self) -> Iterator[str]:
        return map(self.words.__getitem__, self.codes.tolist())


class Taken(Mapping[str, Sequence[str]]):
    """Columns of texts in some rows, which are taken when they are asked for."""

    def __init__(self, columns: Mapping[str, _Column], rows: NDArray[np.int64]) -> None:
        self._columns, self._rows = columns, rows
        self._taken: dict[str, _Column] = {}

    def __getitem__(self, name: str) -> Sequence[str]:
        if name not in self._taken:
            self._taken[name] = self._columns[name].take(self._rows)
        return self._taken[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class NumberTexts(_Column):
    """N numbers, as texts."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    def take(self, rows: NDArray[Any]) -> "NumberTexts":
        return NumberTexts(self.values[rows])

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "_Column": ...
    def __getitem__(self, index: int | slice) -> "str | _Column":
        if isinstance(index, slice):
            return self._of(index)
        return str(self.values[index].item())

    def __iter__(self) -> Iterator[str]:
        return map(str, self.values.tolist())
