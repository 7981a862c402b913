"""A small corpus of film reviews, made of templates, for the tests of text classification."""

import datasets
import numpy as np

GOOD = ("moving", "funny", "charming", "clever", "warm", "fresh", "bright", "honest")
BAD = ("dull", "tired", "clumsy", "flat", "empty", "stale", "cold", "messy")
NOUNS = ("film", "story", "plot", "cast", "script", "ending", "music", "scene")


def make_reviews(num_rows, seed=0, noise=0.1, text="text", label="label", names=("negative", "positive")):
    """Reviews of one to four clauses; the class is that of most adjectives, and a share of them says the opposite."""
    generator = np.random.default_rng(seed)
    texts, labels = [], [i % 2 for i in range(num_rows)]
    for is_good in labels:
        clauses = []
        for _ in range(generator.integers(1, 5)):
            words = GOOD if is_good != (generator.random() < noise) else BAD
            clauses.append(f"the {generator.choice(NOUNS)} is {generator.choice(words)}")
        texts.append(" and ".join(clauses))
    features = datasets.Features({text: datasets.Value("string"), label: datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({text: texts, label: labels}, features=features)
