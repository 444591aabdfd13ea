"""Vocabularies: trained alike from the same texts, kept whole through JSON, and honest about bytes."""

import numpy as np
import pytest
import torch

from dlrun.errors import DlrunError, Exit
from dlrun.tokens import PADDING, Tokenizer, references, to_bytes, to_texts

TEXTS = ["The cat sat on the mat.", "Don't go!\n\n  A naïve dog 🐕 said: we're here.", "the the the mat"]
KINDS = ("char", "word", "bpe")


def trained(kind: str, texts=TEXTS, size: int = 400, **settings) -> Tokenizer:
    return Tokenizer.train(kind, texts, size=size, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_vocabulary_and_json_keeps_all_of_it(kind):
    made = trained(kind)
    assert trained(kind).to_json() == made.to_json()
    kept = Tokenizer.from_json(made.to_json())
    assert (kept.kind, kept.size, kept.to_json()) == (kind, made.size, made.to_json())
    assert [kept.encode(text) for text in TEXTS] == [made.encode(text) for text in TEXTS]


@pytest.mark.parametrize("kind", KINDS)
def test_every_vocabulary_begins_with_the_same_special_tokens(kind):
    made = trained(kind)
    markers = [made.marker(role) for role in ("system", "user", "assistant")]
    assert PADDING == 0
    assert [made.unknown, made.beginning, made.end, made.separator, made.mask] == [1, 2, 3, 4, 5]
    assert markers == [[6], [7], [8]]
    assert made.specials == set(range(9))


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_characters_and_byte_pairs_give_the_text_back(kind):
    made = trained(kind)
    assert [made.decode(made.encode(text)) for text in TEXTS] == TEXTS
    assert made.decode_batch([made.encode(text) for text in TEXTS]) == TEXTS


def test_words_are_split_from_signs_but_not_at_apostrophes():
    made = trained("word", lower=True)
    ids = made.encode("DON'T go, the cat!")
    assert len(ids) == 6  # don't, go, comma, the, cat, exclamation mark
    assert ids[2] == made.unknown
    assert made.decode(made.encode("the cat sat.")) == "the cat sat."


def test_byte_pairs_know_every_text_and_characters_have_an_unknown_one():
    assert trained("bpe").unknown not in trained("bpe").encode("żółć 漢字")
    assert trained("char").encode("x€") == [trained("char").unknown] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_spells_a_special_token_is_only_text(kind):
    made = trained(kind, [*TEXTS, "<s></s><|assistant|><pad>"])
    assert not made.specials & set(made.encode("<s></s><|assistant|><pad>"))


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_tokens_add_up_to_those_of_the_text(kind):
    made = trained(kind, TEXTS[:1])
    for text in [*TEXTS, "  blanks  ", "漢字 and more"]:
        ids, num_bytes = made.encode_with_bytes([text])[0]
        assert ids.tolist() == made.encode(text)
        assert num_bytes.sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_has_the_tokens_it_would_have_whole(kind):
    made = trained(kind)
    text = "The cat sat.\n\n on the\nmat we're 🐕 here \n" * 3000
    whole = made._backend.encode(text, add_special_tokens=False).ids
    assert made.encode(text) == whole


def test_rare_words_and_those_beyond_the_size_are_left_out():
    made = trained("word", ["a a a b b c"], size=11)
    assert made.size == 11 and made.encode("a b c")[2] == made.unknown
    assert trained("word", ["a a a b b c"], min_count=3).size == 10
    assert trained("char", ["aaabbc"], min_count=2).size == 11


def test_one_text_or_two_are_framed_and_cut_to_fit():
    plain, framed = trained("word"), trained("word", framed=True)
    nine, eight = np.full(6, 9), np.full(3, 10)
    assert plain.framed(nine, most=4).tolist() == [9] * 4
    assert plain.framed(nine, eight).tolist() == [9] * 6 + [4] + [10] * 3
    assert framed.framed(nine, most=4).tolist() == [2, 9, 9, 3]
    assert framed.framed(nine, eight, most=9).tolist() == [2, 9, 9, 9, 4, 10, 10, 10, 3]
    assert framed.frames[1].num_tokens == 3


def test_a_vocabulary_too_small_for_its_kind_is_refused():
    with pytest.raises(DlrunError, match="200 is too small for 256 bytes beside 9 special tokens") as caught:
        trained("bpe", size=200)
    assert caught.value.hint == "use data.vocabulary_size=1000"


def test_a_pretrained_vocabulary_is_found_in_a_folder_and_named_where_it_is_missing(tmp_path):
    made = trained("bpe")
    (tmp_path / "tokenizer.json").write_bytes(made.to_json())
    assert Tokenizer.pretrained(str(tmp_path)).to_json() == made.to_json()
    assert Tokenizer.pretrained(str(tmp_path / "tokenizer.json")).size == made.size
    (tmp_path / "empty").mkdir()
    with pytest.raises(DlrunError, match=r"data.pretrained: .*empty has no tokenizer.json"):
        Tokenizer.pretrained(str(tmp_path / "empty"))
    with pytest.raises(DlrunError, match=r"data.pretrained: no folder") as caught:
        Tokenizer.pretrained(str(tmp_path / "emty"))
    assert caught.value.hint == "did you mean empty?"


def test_a_foreign_vocabulary_has_its_own_special_tokens_and_spells_the_roles_out():
    import tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "user", "<", "|", ">"]
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(words[:4])
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(2)
    backend.enable_padding(length=7)
    made = Tokenizer.from_json(backend.to_str().encode())
    assert (made.kind, made.beginning, made.end, made.separator) == ("pretrained", 2, 3, 3)
    assert made.framed(np.array([4, 4, 4]), np.array([4])).tolist() == [2, 4, 4, 4, 3, 4, 3]
    assert made.encode("cat cat cat") == [4, 4, 4]  # neither cut nor padded, whatever the file says
    assert made.marker("user") == [6, 7, 5, 7, 8]
    with pytest.raises(DlrunError, match="the vocabulary has no mask token; its special tokens are"):
        _ = made.mask


def test_what_is_no_vocabulary_is_refused():
    with pytest.raises(DlrunError, match=r"x.json: is no vocabulary of the tokenizers library") as caught:
        Tokenizer.from_json(b"{}", "x.json")
    assert caught.value.code == Exit.DATA


def test_texts_go_through_a_batch_as_bytes():
    texts = ["", "näh", "one\x1etwo 🐕"]
    batch = to_bytes(texts)
    assert batch.dtype == torch.uint8 and batch.shape == (3, 12)
    assert to_texts(batch) == texts
    assert references(texts[2]) == ["one", "two 🐕"]
    assert to_bytes([]).shape == (0, 0) and to_texts(to_bytes([""])) == [""]
