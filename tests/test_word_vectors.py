"""Aligned word vectors: wordings of a concept come near each other, and only they."""

import random

import pytest
import torch
from torch.nn import functional as F

from encoder import word_vectors
from encoder.word_vectors import align, mean_vectors
from sqlenv.embedded.fresh import FreshQuestions, wordings_of


def test_mean_vectors_by_hand():
    """(3, 0) and (1, 4) have the mean (2, 2), normalised (0.707, 0.707); (0, 2) alone is (0, 1)."""
    vectors = torch.tensor([[3.0, 0.0], [1.0, 4.0], [0.0, 2.0]])
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0], [1.0, 0.0]])
    assert torch.allclose(mean_vectors(vectors, [[0, 1], [2], [0]]), expected)


@pytest.fixture(scope="module")
def aligned():
    """Twenty concepts of three wordings: two of one token, one of two tokens. Token 80 is in none,
    token 81 in all wordings of two tokens.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_vectors, "STEPS", 200)
        vectors = torch.randn(82, 32, generator=torch.Generator().manual_seed(0)) * 0.02
        concepts = [[[4 * c], [4 * c + 1], [4 * c + 2, 81]] for c in range(20)]
        trained = align(vectors, concepts, torch.Generator().manual_seed(1))
    return vectors, concepts, trained


def test_each_wording_is_nearest_to_one_of_its_own_concept(aligned):
    """Before, by the token that they share, those of two tokens are near each other."""
    vectors, concepts, trained = aligned
    texts, owner = zip(*((text, c) for c, wordings in enumerate(concepts) for text in wordings))
    for table, low, high in ((vectors, 0.0, 0.1), (trained, 0.95, 1.0)):
        means = mean_vectors(table, texts)
        similar = means @ means.T - 2 * torch.eye(len(texts))
        right = [owner[i] == c for i, c in zip(similar.argmax(1).tolist(), owner)]
        assert low <= sum(right) / len(right) <= high


def test_lengths_and_other_tokens_stay(aligned):
    vectors, _, trained = aligned
    assert torch.allclose(trained.norm(dim=1), vectors.norm(dim=1), rtol=1e-4)
    assert torch.allclose(trained[80], vectors[80], rtol=1e-4)
    assert F.cosine_similarity(trained[0], vectors[0], dim=0) < 0.99


def test_a_concept_with_a_single_wording_has_no_pair(aligned):
    vectors, concepts, _ = aligned
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_vectors, "STEPS", 3)
        some = align(vectors, [*concepts, [[80]]], torch.Generator().manual_seed(1))
    assert torch.allclose(some[80], vectors[80], rtol=1e-4)


def test_concepts_have_names_and_wordings_of_all_languages():
    questions = FreshQuestions(("en", "de", "ja"))
    concepts = questions.concepts(random.Random(0), 40)
    assert len(concepts) > 100
    names, wordings = concepts["name"]
    assert "name" in {name.lower() for name in names} and len(names) > 3
    assert {"name", "names", "Name", "Namen", "名前"} <= wordings
    assert not any("{" in text for _, texts in concepts.values() for text in texts)


def test_wordings_by_hand():
    """Nouns and conditions without their values; no articles, and no column called like a key."""
    forms = {
        "sg": "price", "pl": "prices", "der": "der", "gt": "cost more than {v}",
        "between": {"base": "{v}から{w}までの", "te": "x"}, "n": {"sg": "number"},
    }  # fmt: skip
    assert list(wordings_of(forms)) == ["price", "prices", "cost more than", "からまでの"]
