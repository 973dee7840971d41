"""MultiSpider's layout, which the embedded dataset has, too:

ROOT/dataset/multispider/with_English_value/{train,dev}_{lang}.json
ROOT/dataset/spider/database/<db_id>/<db_id>.sqlite
"""

from pathlib import Path

from sqlenv.dataset.base import Dataset, check_plain_name
from sqlenv.dataset.entries import read_entries
from sqlenv.dataset.example import Example
from sqlenv.dataset.language import is_language, language_tag
from sqlenv.embedded import SPLITS


class MultiSpider(Dataset):
    looked_for = "dataset/ (MultiSpider)"
    splits = SPLITS

    @staticmethod
    def matches(root: Path) -> bool:
        return (root / "dataset").is_dir()

    def languages(self, split: str) -> list[str]:
        return list(self._files(split))

    def questions(self, lang: str, split: str) -> list[Example]:
        file = self._files(split).get(lang, self._folder() / f"{split}_{lang}.json")
        return [
            Example(lang=lang, db_path=self._database(row["db_id"]), **row)
            for row in read_entries(file, optional=["part"])
        ]

    def database_path(self, db_id: str) -> Path:
        check_plain_name(db_id)
        return self._database(db_id)

    def _folder(self) -> Path:
        return _follow(self.root / "dataset" / "multispider") / "with_English_value"

    def _files(self, split: str) -> dict[str, Path]:
        """The file of each language."""
        files = sorted(self._folder().glob(f"{split}_*.json"))
        tags = {file: file.stem.removeprefix(f"{split}_") for file in files}
        return {language_tag(tag): file for file, tag in tags.items() if is_language(tag)}

    def _database(self, db_id: str) -> Path:
        return _follow(self.root / "dataset" / "spider") / "database" / db_id / f"{db_id}.sqlite"


def _follow(path: Path) -> Path:
    """The target of a symbolic link that git wrote as a text file, as on systems without symbolic
    links. Other paths are returned unchanged."""
    return path.parent / path.read_text(encoding="utf-8").strip() if path.is_file() else path
