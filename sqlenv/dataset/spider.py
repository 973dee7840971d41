"""Spider as published, and its relatives in the same layout:

    ROOT/train_spider.json, train_others.json, dev.json    or train.json (CSpider)
    ROOT/database/<db_id>/<db_id>.sqlite

Spider-DK and Spider-Realistic have a dev split under a name of its own. Spider-Syn and
Spider-Realistic come without databases: put a link to Spider's beside them.
"""

from pathlib import Path

from sqlenv.dataset.base import Dataset, check_plain_name, listing
from sqlenv.dataset.entries import SPIDER_FIELDS, read_entries
from sqlenv.dataset.example import Example
from sqlenv.errors import UserError

# The files of a split: those of the first row of which one exists.
FILES = {
    "train": [["train_spider.json", "train_others.json"], ["train.json"]],
    "dev": [["dev.json"], ["Spider-DK.json"], ["spider-realistic.json"]],
}
FIELDS = SPIDER_FIELDS | {"question": ["SpiderSynQuestion", "question"]}


class Spider(Dataset):
    looked_for = "database/ with dev.json (Spider)"
    default_lang = "en"

    @staticmethod
    def matches(root: Path) -> bool:
        return (root / "database").is_dir()

    def languages(self, split: str) -> list[str]:
        return [self.default_lang] if self._files(split) else []

    def questions(self, lang: str, split: str) -> list[Example]:
        files = self._files(split)
        if not files:
            names = ", ".join(name for row in FILES[split] for name in row)
            raise UserError(
                f"{self.root}: no {split} questions: none of {names}; it contains "
                f"{listing(self.root)}"
            )
        return [
            Example(lang=lang, db_path=self._database(row["db_id"]), **row)
            for file in files
            for row in read_entries(file, FIELDS)
        ]

    def database_path(self, db_id: str) -> Path:
        check_plain_name(db_id)
        return self._database(db_id)

    def _files(self, split: str) -> list[Path]:
        for names in FILES[split]:
            files = [self.root / name for name in names if (self.root / name).is_file()]
            if files:
                return files
        return []

    def _database(self, db_id: str) -> Path:
        return self.root / "database" / db_id / f"{db_id}.sqlite"
