"""What generated schemas are made of: the kinds of tables in concepts.toml, and the tables of the
handwritten databases (databases.toml) except those that only dev asks about.

A concept has nouns and generic predicates ("have a price above 5"), a handwritten table the
predicates that people use ("cost more than 5").
"""

from dataclasses import dataclass

from sqlenv.embedded.concepts import TableConcept, load_concepts, load_words
from sqlenv.embedded.databases import UNSEEN, Column, Table, load_databases
from sqlenv.embedded.lexicon import Lexicon
from sqlenv.embedded.wording import WORDING, Forms

Words = dict[str, Forms]  # by language
FLAG = "choice yes|no"  # the kind of an answer to a question


@dataclass(frozen=True)
class SourceColumn:
    """A property of things.

    Attributes:
        names: identifiers in lower snake_case, the usual one first.
        kind: how its values are drawn, as in databases.toml.
        words: its forms.
    """

    names: tuple[str, ...]
    kind: str
    words: Words

    @property
    def is_label(self) -> bool:
        return self.kind.partition(" ")[0] in ("name", "person", "combine")


@dataclass(frozen=True)
class SourceTable:
    """A kind of thing.

    Attributes:
        names: identifiers in lower snake_case and the singular, the usual one first.
        person: whether the things are people.
        words: its forms.
        references: for each foreign key the parent's source, and predicates of its own if it has
            any.
    """

    names: tuple[str, ...]
    person: bool
    words: Words
    references: tuple[tuple[str, Words], ...]
    columns: tuple[SourceColumn, ...]


def load_sources(langs: tuple[str, ...]) -> dict[str, dict[str, SourceTable]]:
    """All sources: {domain: {source: table}}. A handwritten database is a domain."""
    return _concepts(langs) | _handwritten(langs)


def _concepts(langs: tuple[str, ...]) -> dict[str, dict[str, SourceTable]]:
    columns, domains = load_concepts()
    nouns = {lang: load_words(lang) for lang in langs}
    shared: dict[tuple[str, bool], SourceColumn] = {}  # columns that tables share

    def column(key: str, person: bool) -> SourceColumn:
        if (key, person) not in shared:
            kind = "person" if person and key == "name" else columns[key].kind
            role = "number" if kind.startswith(("int", "real")) else kind.partition(" ")[0]
            role = {"choice": "category", "person": "name"}.get(role, role)
            role = "flag" if kind == FLAG else role
            words = {
                lang: WORDING[lang][0]("column", nouns[lang]["columns"][key], role)
                for lang in langs
            }
            shared[key, person] = SourceColumn(columns[key].names, kind, words)
        return shared[key, person]

    def table(domain: str, key: str, concept: TableConcept) -> SourceTable:
        words = {
            lang: WORDING[lang][0]("table", nouns[lang]["tables"][key], concept.person)
            for lang in langs
        }
        references = tuple((f"{domain}.{parent}", {}) for parent in concept.refs)
        own = tuple(column(name, concept.person) for name in concept.columns)
        return SourceTable(concept.names, concept.person, words, references, own)

    return {
        domain: {f"{domain}.{key}": table(domain, key, concept) for key, concept in tables.items()}
        for domain, tables in domains.items()
    }


def _handwritten(langs: tuple[str, ...]) -> dict[str, dict[str, SourceTable]]:
    lexicons = {lang: Lexicon(lang).entries for lang in langs}

    def words_of(table: Table, *column: str) -> Words:
        words = {}
        for lang in langs:
            entry = lexicons[lang][table.db][table.name]
            for name in column:
                entry = entry[name]
            # In a table's entry, the entries of its columns are left out.
            is_form = (lambda text: True) if column else (lambda text: isinstance(text, str))
            words[lang] = {form: text for form, text in entry.items() if is_form(text)}
        return words

    def property_of(table: Table, column: Column) -> SourceColumn:
        marks = (" +" if column.additive else "") + (" ?" if column.nullable else "")
        kind = f"{column.kind} {column.args}{marks}".replace("person ", "person")
        return SourceColumn((column.name,), kind, words_of(table, column.name))

    def source(db: str, table: Table) -> SourceTable:
        own = [c for c in table.columns if c.role not in ("key", "ref")]
        return SourceTable(
            (table.key.removesuffix("_id"),),
            any(column.kind == "person" for column in own),
            words_of(table),
            tuple(
                (f"{table.db}.{c.args}", words_of(table, c.name)) for c in table.with_role("ref")
            ),
            tuple(property_of(table, column) for column in own),
        )

    return {
        db: {f"{db}.{name}": source(db, table) for name, table in tables.items()}
        for db, tables in load_databases().items()
        if db not in UNSEEN
    }
