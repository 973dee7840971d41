"""Whether SQL that was written to please the encoder scores above gold."""

import random

from encoder.attacks import ATTACKS, TRAINED, AttackInput
from encoder.evaluation.retrieval import Embeddings, Question
from encoder.text import sql_text
from sqlenv import share


def attack_texts(
    questions: list[Question], *, with_schema: bool, seed: int
) -> list[tuple[Question, dict[str, str]]]:
    """The attacks on each question by name, as the encoder reads them.

    The other question that some attacks use is a translation if there is one, or else any question.
    """
    attacked = []
    for question in questions:
        entry = question.entry
        rng = random.Random(f"{seed} {question.lang} {question.text}")
        translations = [text for lang, text in entry.questions if lang != question.lang]
        other = rng.choice(translations or [question.text for question in questions])
        inputs = AttackInput(question.text, other, entry.gold, entry.schema)
        texts = {
            name: sql_text(attack(inputs), entry.schema, with_schema=with_schema)
            for name, attack in ATTACKS.items()
        }
        attacked.append((question, texts))
    return attacked


def gaming_report(
    attacked: list[tuple[Question, dict[str, str]]], embeddings: Embeddings, seed: int
) -> dict:
    """How often attacks score above gold.

    Returns:
        {"attacks": {name: share of questions where it scores above gold, and "trained", whether
        encoders are trained against it}, "none_above": share of questions where no attack does,
        "none_held_out_above": share where none does that training does not show}
    """
    successes = []  # of each question
    for question, texts in attacked:
        gold, *rivals = embeddings.cosines(question.text, [question.gold, *texts.values()]).tolist()
        successes.append({name for name, rival in zip(texts, rivals) if rival > gold})
    return {
        "attacks": {
            name: {
                **share([name in names for names in successes], seed=seed),
                "trained": name in TRAINED,
            }
            for name in ATTACKS
        },
        "none_above": share([not names for names in successes], seed=seed),
        "none_held_out_above": share([not names - set(TRAINED) for names in successes], seed=seed),
    }
