"""The embedded dataset: its text (TOML), and the generator that turns it into questions."""

LANGUAGES = ("en", "de", "es", "fr", "ja", "vi", "zh")
SPLITS = ("sft", "train", "dev", "encoder")
