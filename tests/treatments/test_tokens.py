"""Texts as tokens, and padding."""

import gzip
import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from harness.data.preparing import Feedback, Sources, fit, open_splits, prepare
from harness.data.settings import DataConfig
from harness.errors import ConfigError, DataError
from harness.sources.tables import Table
from harness.tasks import LanguageModelling
from harness.treatments import Pad, Tokenise
from harness.treatments.tokens import SPECIAL
from tests.pool import command, train_on_ranks
from tests.sources import make_docstrings

ROOT = Path(__file__).parents[2]
TEXTS = [
    "The cat sat on the mat, and the dog did not.",
    "Größe: 3,5 µm — naïve café",
    "数据 und 日本語 😀 mixed\twith\ttabs",
    "the the the the cat",
    "x",
]


def trained(texts: list[str] = TEXTS, **options: Any) -> Tokenise:
    tokenise = Tokenise(**{"size": 400, **options})
    for text in texts:
        tokenise.observe({"text": [text]})
    tokenise.finish()
    return tokenise


def ids(tokenise: Tokenise, texts: list[str] = TEXTS) -> list[list[int]]:
    return [one.tolist() for one in tokenise({"text": texts})["tokens"]]


BYTES = trained(special=False)


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_text_is_unknown_byte_by_byte(text: str) -> None:
    [tokens] = ids(BYTES, [text])
    decoded = Tokenizer.from_str(BYTES.state()["tokenizer"]).decode(tokens)
    assert decoded == unicodedata.normalize("NFC", text)


def test_words_are_the_most_frequent_ones_of_the_training_split() -> None:
    words = Counter(word for text in ("the cat sat", "the mat the cat") for word in text.split())
    tokenise = trained(["the cat sat", "The mat the CAT"], model="word", size=8, lowercase=True)
    numbers = dict(zip(["the", "cat"], [5, 6], strict=True))
    assert [word for word, _ in words.most_common(2)] == list(numbers)
    assert ids(tokenise, ["the dog CAT"]) == [[2, numbers["the"], 1, numbers["cat"], 3]]


@pytest.mark.parametrize("model", ["bpe", "wordpiece", "word"])
def test_a_training_gives_one_vocabulary_of_the_size_that_was_asked_for(model: Any) -> None:
    texts = [str(path.read_text()) for path in sorted((ROOT / "harness" / "data").glob("*.py"))]
    texts[0] += "[PAD] ##a"
    states = {trained(texts, model=model, size=500).state()["tokenizer"] for _ in range(4)}
    assert len(states) == 1  # the library's hashes differ within a process too
    kept = json.loads(states.pop())
    assert sorted(kept["model"]["vocab"].values()) == list(range(500))
    assert [token["content"] for token in kept["added_tokens"]] == list(SPECIAL)


def test_a_text_that_spells_a_special_token_is_text(tmp_path: Path) -> None:
    tokenise = trained()
    assert ids(tokenise, ["a [PAD] b"])[0].count(0) == 0
    (tmp_path / "tokenizer.json").write_text(tokenise.state()["tokenizer"])
    of_file = Tokenise(file=str(tmp_path))  # as transformers has it
    of_file.finish()
    assert ids(of_file, ["a [PAD] b"])[0].count(0) == 1


@pytest.mark.parametrize("model", ["bpe", "wordpiece", "word"])
def test_a_folder_gives_what_transformers_reads_from_it(tmp_path: Path, model: Any) -> None:
    (tmp_path / "tokenizer.json").write_text(trained(model=model).state()["tokenizer"])
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="[PAD]"
    )
    for file in (tmp_path, tmp_path / "tokenizer.json"):
        tokenise = Tokenise(file=str(file), length=9)
        assert tokenise.ready
        tokenise.finish()
        for length in (None, 12):
            batch = Pad(length=length, mask="mask")(tokenise({"text": TEXTS, "label": 1}))
            expected = theirs(TEXTS, truncation=True, max_length=9)
            to = {"padding": True} if length is None else {"padding": "max_length"}
            expected = theirs.pad(expected, max_length=length, return_tensors="pt", **to)
            assert batch["tokens"].tolist() == expected["input_ids"].tolist()
            assert batch["mask"].tolist() == expected["attention_mask"].tolist()
            assert batch.keys() == {"tokens", "mask", "label"}


def test_what_was_learned_is_kept_and_the_file_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(trained().state()["tokenizer"])
    first = Tokenise(file=str(tmp_path))
    first.finish()
    state = json.loads(json.dumps(first.state()))
    (tmp_path / "tokenizer_config.json").write_bytes(b"\xff{}")
    with pytest.raises(DataError, match=r"tokenizer_config\.json: cannot be read as text: .*utf-8"):
        Tokenise(file=str(tmp_path)).finish()
    (tmp_path / "tokenizer.json").unlink()
    second = Tokenise(file=str(tmp_path))
    second.restore(state)
    assert ids(second) == ids(first)
    with pytest.raises(DataError, match=r"tokenizer\.json: No such file .*save_pretrained\(FOLDER"):
        Tokenise(file=str(tmp_path)).finish()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"not the tokenizer\.json of a"):
        Tokenise(file=str(tmp_path)).finish()


def test_the_same_texts_from_every_format_and_the_store_are_the_same_tokens(
    tmp_path: Path,
) -> None:
    table = pd.DataFrame({"text": TEXTS, "label": list("abbab")})
    table.to_csv(tmp_path / "plain.csv", index=False)
    table.to_csv(tmp_path / "bom.csv", index=False, encoding="utf-8-sig")
    table.to_csv(tmp_path / "packed.csv.gz", index=False)
    table.to_json(tmp_path / "lines.jsonl", orient="records", lines=True, force_ascii=False)
    table.to_parquet(tmp_path / "table.parquet")
    with gzip.open(tmp_path / "bom.csv.gz", "wb") as file:
        file.write((tmp_path / "bom.csv").read_bytes())
    for packed in ("lines.jsonl.gz", "whole.json.gz"):
        rows = table.to_dict("records")
        lines = "\n".join(map(json.dumps, rows)) if "lines" in packed else json.dumps(rows)
        (tmp_path / packed).write_bytes(gzip.compress(lines.encode("utf-8-sig")))
    expected = None
    for path in sorted(tmp_path.iterdir()):
        source = Table(str(path), features=[], columns={"text": "text", "label": "text"})
        batch = source.__getitems__(list(range(5)))
        assert batch["text"] == TEXTS, path
        found = ids(trained(batch["text"]), batch["text"])
        expected = expected or found
        assert found == expected, path

    (tmp_path / "cut.jsonl.gz").write_bytes((tmp_path / "lines.jsonl.gz").read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: cannot be unpacked: .*be truncated"):
        Table(str(tmp_path / "cut.jsonl.gz"), features=[], columns={"text": "text"})

    def splits(*treatments: dict[str, Any], store: bool) -> Any:
        spec = {
            "source": {
                "_target_": "harness.sources.tables.Table",
                "files": str(tmp_path / "plain.csv"),
                "features": [],
                "columns": {"text": "text"},
            },
            "treatments": list(treatments),
        }
        kept = {"store": {"dir": str(tmp_path / "store")}} if store else {}
        return DataConfig.model_validate({"train": spec, **kept})

    (tmp_path / "folder").mkdir()
    file = tmp_path / "folder" / "tokenizer.json"
    for size in (300, 400):  # the file changes, its path does not
        file.write_text(trained(size=size).state()["tokenizer"])
        tokenise = {"_target_": "harness.treatments.Tokenise", "file": str(file)}
        config = splits(tokenise, {"_target_": "harness.treatments.Pad"}, store=True)
        made = prepare(config, ["train"], Sources(config), None, tmp_path, Feedback())
        split = open_splits(config, ["train"], Sources(config), made, lambda batch: None)["train"]
        rows = torch.arange(5).numpy()
        batch = split.fetch(rows[[4, 0]], rows[:2].astype("uint64"), 0, training=True)
        assert Path(made.stored["train"]).is_dir()
        tokens = ids(trained(size=size))
        length = len(tokens[0])
        assert batch["tokens"].tolist() == [tokens[4] + [0] * (length - len(tokens[4])), tokens[0]]


class Endless:
    """Texts, of which only the first few may be read."""

    def __len__(self) -> int:
        return 100_000

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        assert max(indices) < 1000
        return {"text": [f"word{index % 7}" for index in indices]}

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise AssertionError


def test_no_more_is_read_than_is_learned_from() -> None:
    spec = {"_target_": "harness.treatments.Tokenise", "model": "word", "size": 12}
    config = DataConfig.model_validate(
        {
            "train": {
                "source": {"_target_": "tests.treatments.test_tokens.Endless"},
                "treatments": [{**spec, "learn_from": 300}],
            }
        }
    )
    [learned] = fit(config, Sources(config), Feedback())
    words = json.loads(learned.state["tokenizer"])["model"]["vocab"]
    assert {f"word{number}" for number in range(7)} < set(words)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tokenise(), "file, size: give the file of a tokenizer, or the size"),
        (lambda: Tokenise(file="x", size=300), "file, size: give the file of a tokenizer, or"),
        (lambda: Tokenise(file="x", lowercase=True), "model, lowercase, learn_from: no effect"),
        (lambda: Tokenise(size=260), "size: 260: bpe needs at least 261"),
        (lambda: Tokenise(size=300, model="sentences"), "model: 'sentences'"),  # type: ignore[arg-type]
        (lambda: Tokenise(size=300, length=2), "length: 2: leaves no room for the text"),
        (lambda: Pad(length=0), "length: 0: must be at least 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda: trained(["", " "]), "text: no text to learn tokens from"),
        (lambda: ids(trained(special=False), ["a", ""]), "text: the text '' gives no tokens"),
        (lambda: BYTES({"note": ["a"]}), "Tokenise needs 'text' as text; samples have note"),
        (lambda: BYTES({"text": torch.ones(2)}), "Tokenise needs 'text' as text"),
        (lambda: Pad(length=2)({"tokens": [torch.ones(3)]}), "a sample of 3, longer than length"),
        (lambda: trained(model="wordpiece", size=40), "size: 40: the characters .* set model: bpe"),
        *(
            (
                lambda one=one, value=value: Pad(value=value)({"tokens": [one]}),
                "value: .* cannot hold",
            )
            for one, value in (
                (torch.ones(2, dtype=torch.int64), 0.5),
                (torch.ones(2, dtype=torch.uint8), -100),
                (torch.ones(2, dtype=torch.int64), float("nan")),
                (torch.ones(2, dtype=torch.bool), 2),
                (torch.ones(2, dtype=torch.float16), 1e9),
            )
        ),
        (lambda: Pad()({"tokens": [1, 2]}), "Pad needs arrays"),
        (lambda: Pad()({"tokens": [torch.ones(2, 3), torch.ones(2, 4)]}), "Pad needs arrays"),
    ],
)
def test_what_cannot_be_tokenised_or_padded_is_named(use: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        use()


def test_arrays_of_further_axes_are_padded_and_equal_ones_too() -> None:
    samples = [torch.ones(2, 3), torch.full((4, 3), 2.0)]
    batch = Pad("x", value=-1, mask="m")({"x": samples})
    assert batch["x"].shape == (2, 4, 3)
    assert batch["x"][0, :, 0].tolist() == [1, 1, -1, -1]
    assert batch["m"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert Pad("x", length=5)({"x": torch.ones(2, 3)})["x"].shape == (2, 5)


def test_padding_that_a_language_model_ignores_is_neither_learned_nor_measured() -> None:
    texts = [torch.tensor([3, 1, 4, 1, 5]), torch.tensor([2, 7])]
    task = LanguageModelling("tokens")
    network = torch.nn.Embedding(9, 9).requires_grad_(False)  # of each token by itself
    losses, items = [], []
    for batch in ([texts[0]], [texts[1]], texts):
        padded = Pad(value=-100)({"tokens": batch})
        task.fit_to(outputs := task.forward(network, padded))
        task.check(padded)
        losses.append(float(task.loss_sum(outputs, padded)))
        items.append(int(task.num_items(padded)))
    assert items == [4, 1, 5]
    assert losses[2] == pytest.approx(losses[0] + losses[1], rel=1e-6)


SHORT = [
    "stop.budget={steps: 4}",
    "checkpoint.every={steps: 2}",
    # A share of all groups, of which there are few here
    "data.checks={missing_classes: warn, imbalance: off}",
]


def train(directory: Path, ranks: int, *overrides: str) -> Path:
    """The last checkpoint of a short training of the config for texts."""
    table = directory.parent / "docstrings.csv.gz"
    if not table.exists():
        make_docstrings.make(table, 8)
    ends = train_on_ranks(
        ranks,
        ROOT / "configs" / "docstrings.yaml",
        [f"run.dir={directory}", *SHORT, *overrides],
        env={"FERMARSI_DOCSTRINGS": str(table)},
    )
    assert [end.exit_code for end in ends] == [0] * ranks, ends[0].stderr
    return directory / "checkpoints" / "step-00000004"


@pytest.mark.soak
def test_the_config_for_texts_ends_by_its_target(tmp_path: Path) -> None:
    table = tmp_path / "docstrings.csv.gz"
    make_docstrings.make(table)
    ends = train_on_ranks(
        2,
        ROOT / "configs" / "docstrings.yaml",
        [f"run.dir={tmp_path / 'run'}"],
        env={"FERMARSI_DOCSTRINGS": str(table)},
        timeout_s=900,
    )
    assert [end.exit_code for end in ends] == [0, 0]
    outcome = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert outcome["reason"] == "targets_reached"


@pytest.mark.torture
def test_a_pretrained_network_is_tuned_with_its_tokenizer(tmp_path: Path) -> None:
    saved = train(tmp_path / "run", 2)
    assert transformers.BertConfig.from_pretrained(saved).vocab_size == 4000
    evaluated = command("evaluate", saved, "--split", "test", "--json", "--allow", "/")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert 0 <= json.loads(evaluated.stdout)["accuracy"] <= 1
    folder = tmp_path / "pretrained"
    transformers.BertForSequenceClassification.from_pretrained(saved).save_pretrained(folder)
    [learned] = [
        one["state"]["tokenizer"]
        for one in json.loads((tmp_path / "run" / "treatments.json").read_text())
        if "tokenizer" in one["state"]
    ]
    (folder / "tokenizer.json").write_text(learned)
    auto = "transformers.AutoModelForSequenceClassification.from_pretrained"
    treatments = (
        "[{_target_: harness.treatments.Encode, key: library, optional: true}, "
        f"{{_target_: harness.treatments.Tokenise, file: {folder}, length: 64}}, "
        "{_target_: harness.treatments.Pad, mask: mask}]"
    )
    train(
        tmp_path / "tuned",
        1,
        f"network={{_target_: {auto}, pretrained_model_name_or_path: {folder}}}",
        *(f"data.{name}.treatments={treatments}" for name in ("train", "val", "test")),
    )
