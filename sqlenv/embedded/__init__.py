"""The embedded dataset: its text (TOML) and the generator of its databases and questions."""

LANGUAGES = ("en", "de", "es", "fr", "ja", "vi", "zh")
SPLITS = ("sft", "train", "dev", "encoder")
