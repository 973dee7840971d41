"""Turns a question and its schema into token ids.

A model with a chat template gets a user message. A plain model gets the schema followed by the
question as a comment, and continues this text with SQL. From here on, prompts and completions are
token ids: nothing is decoded and tokenised again between sampling and training.

Both texts are templates, which ``--prompt`` replaces. docs/prompts.md describes them.
"""

import functools
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from string import Formatter

from grpo.model_checks import context_of, reason
from grpo.name_constraint import NameConstraint
from sqlenv import Example, UserError, load_schema, question_values, sample_values
from sqlenv.files import write_json
from sqlenv.schema import fit_schema

logger = logging.getLogger(__name__)

# Tokens; a longer schema text loses sample values first, then types, then whole column lists.
SCHEMA_BUDGET = 1024
FIELDS = ("schema", "question", "evidence", "dialect")
DIALECT = "SQLite"
PLAIN = "{schema}\n-- Evidence: {evidence}\n-- {question}\n"
CHAT = (
    "Given the {dialect} schema:\n{schema}\n\nWrite one SQL query that answers: {question}\n"
    "Evidence: {evidence}\nAnswer with the SQL query only."
)
SAVED = "prompt.json"  # in the directory of a model that was trained with other settings


@dataclass(frozen=True)
class PromptSettings:
    """What a prompt depends on beside the question, and how it is answered; the names are those of
    ``Config``.

    Attributes:
        prompt: the template; "": PLAIN or CHAT.
        system_prompt: the template of a system message; "": there is none.
        thinking: "on" or "off", for chat templates that know it.
        schema_budget: tokens of the schema text.
        sample_values: shown of each column, beside as many that the question seems to name.
        constrain_names: answers have no names but those of the schema (name_constraint.py).
    """

    prompt: str = ""
    system_prompt: str = ""
    thinking: str = "off"
    schema_budget: int = SCHEMA_BUDGET
    sample_values: int = 0
    constrain_names: bool = False

    @classmethod
    def of(cls, values: Mapping) -> "PromptSettings":
        """The settings that are among the values, such as those of a run."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    def save(self, model: Path) -> None:
        """Writes them into a model's directory, unless they are the defaults."""
        if self != DEFAULTS:
            write_json(model / SAVED, asdict(self))


DEFAULTS = PromptSettings()


def saved_prompt(model: str) -> dict:
    """The settings that ``PromptSettings.save`` wrote into a model's directory; {} if none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(model) / SAVED
    if not path.is_file():
        return {}
    try:
        values, known = json.loads(path.read_text(encoding="utf-8")), asdict(DEFAULTS)
        if any(type(known[name]) is not type(value) for name, value in values.items()):
            raise ValueError("a value of another kind")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: not the settings of a prompt ({error!r}); remove it to use the defaults"
        ) from error
    return values


def read_template(option: str, path: str) -> str:
    """The template in a file.

    Raises:
        UserError: the file cannot be read, or as in ``check_template``.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {path}: cannot be read ({reason(error)})") from error
    check_template(option, text, path)
    return text


def check_template(option: str, text: str, path: str = "") -> None:
    """Checks a template; one for ``--prompt`` has to have the question.

    Raises:
        UserError: it is none. Names the line of the file, or else of the option.
    """
    known, has_question = ", ".join(f"{{{name}}}" for name in FIELDS), False
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path or option}:{number}"
        try:
            used = fields_of(line)
        except ValueError as error:
            raise UserError(f"{where}: {error}; a brace is written {{{{ or }}}}") from error
        if unknown := [name for name in used if name not in FIELDS]:
            raise UserError(
                f"{where}: unknown field {{{unknown[0]}}}; there are {known}, and a brace is "
                "written {{ or }}"
            )
        if "evidence" in used and len(set(used)) > 1:
            raise UserError(
                f"{where}: {{evidence}} needs a line of its own, which is left out for questions "
                "without evidence"
            )
        has_question |= "question" in used
    if option == "--prompt" and not has_question:
        raise UserError(f"{f'{option} {path}'.strip()}: a template needs {{question}}")


def fields_of(text: str) -> list[str]:
    """The fields of a template, with their format if they have one, which none may have.

    Raises:
        ValueError: a single brace, or a colon without a format.
    """
    fields, understood = [], ""
    for literal, name, spec, conversion in Formatter().parse(text):
        understood += literal.replace("{", "{{").replace("}", "}}")
        if name is not None:
            conversion, spec = conversion and f"!{conversion}", spec and f":{spec}"
            fields.append(f"{name}{conversion or ''}{spec or ''}")
            understood += f"{{{fields[-1]}}}"
    if understood != text:
        raise ValueError("an empty format after ':'")
    return fields


def without_evidence(template: str) -> str:
    """The template for a question without evidence: lines that show it are left out."""
    lines = template.splitlines(keepends=True)
    return "".join(line for line in lines if "evidence" not in fields_of(line))


def after_schema(template: str) -> list[str]:
    """The template in two parts, the first of which ends with the schema, if it has one."""
    first = ""
    for literal, name, _, _ in Formatter().parse(template):
        first += literal.replace("{", "{{").replace("}", "}}") + (f"{{{name}}}" if name else "")
        if name == "schema":
            return [first, template[len(first) :]]
    return [template]


def question_text(question: str, evidence: str = "") -> str:
    """What a plain model sees after the schema: comments, of a line each."""
    rest = after_schema(PLAIN if evidence else without_evidence(PLAIN))[1]
    return rest.format(question=one_line(question), evidence=one_line(evidence))


def one_line(text: str) -> str:
    """A text whose lines are joined, so that it stays in a comment."""
    return " ".join(text.splitlines())


class PromptBuilder:
    """Makes prompts for one tokenizer. The schema text of each database is cached.

    Attributes:
        shortened: databases whose schema text lacks columns, to fit into the budget.

    Raises:
        UserError: a template is none, or the tokenizer's chat template does not take the settings.
    """

    def __init__(self, tokenizer, settings: PromptSettings = DEFAULTS):
        self.tokenizer, self.settings = tokenizer, settings
        self.schemas: dict = {}
        self.shortened: set[Path] = set()
        self.constraints: dict[Path, NameConstraint] = {}
        if settings.prompt:
            check_template("--prompt", settings.prompt)
        check_template("--system-prompt", settings.system_prompt)
        self.is_chat = bool(tokenizer.chat_template)
        self.template = settings.prompt or (CHAT if self.is_chat else PLAIN)
        if self.is_chat:
            self.template = self.template.removesuffix("\n")  # the file's, not the message's
        check_chat(tokenizer, settings)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def schema(self, example: Example) -> str:
        named = f"{example.question} {example.evidence}" if self.settings.sample_values else ""
        key = example.db_path, named  # all questions on a database have the same descriptions
        if key not in self.schemas:
            samples = matches = None
            if count := self.settings.sample_values:
                samples = sample_values(example.db_path, count)
                matches = question_values(example.db_path, named, count)
            self.schemas[key], complete = fit_schema(
                load_schema(example.db_path),
                budget=self.settings.schema_budget,
                count_tokens=lambda text: len(self.encode(text)),
                samples=samples,
                matches=matches,
                descriptions=example.descriptions,
            )
            if not complete:
                self.shortened.add(example.db_path)
        return self.schemas[key]

    def constraint(self, example: Example) -> NameConstraint:
        """What may follow in SQL on the example's database."""
        if example.db_path not in self.constraints:
            schema = load_schema(example.db_path)
            tables = schema.tables + schema.views
            columns = [column.name for table in tables for column in table.columns]
            names = [*(table.name for table in tables), *columns]
            self.constraints[example.db_path] = NameConstraint(names)
        return self.constraints[example.db_path]

    def templates(self, evidence: str = "") -> list[str]:
        """The parts of a plain prompt, which are tokenised one by one; or a chat's messages, the
        user's being the last.
        """
        template = self.template if evidence else without_evidence(self.template)
        if not self.is_chat:
            return after_schema(template)
        system = self.settings.system_prompt.removesuffix("\n")
        system = system if evidence else without_evidence(system)
        return [system, template] if system else [template]

    def texts(self, example: Example) -> list[str]:
        """``templates`` with a question."""
        line = str if self.is_chat else one_line
        values = {"schema": self.schema(example), "dialect": DIALECT}
        values |= {"question": line(example.question), "evidence": line(example.evidence)}
        return [text.format(**values) for text in self.templates(example.evidence)]

    def __call__(self, example: Example) -> list[int]:
        """The prompt's token ids."""
        texts = self.texts(example)
        if self.is_chat:
            thinking = self.settings.thinking == "on"
            return render(self.tokenizer, messages_of(texts), thinking=thinking)
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return start + [token for text in texts for token in self.encode(text)]


def answer_end(tokenizer, eos_ids: set[int]) -> int:
    """The token that ends an answer: the chat template's, or the tokenizer's."""
    if not tokenizer.chat_template:
        return tokenizer.eos_token_id
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "SELECT 1"}]
    asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    return next((t for t in whole[len(asked) :] if t in eos_ids), tokenizer.eos_token_id)


def messages_of(texts: list[str]) -> list[dict]:
    """A chat's messages from ``PromptBuilder.texts``."""
    roles = ("system", "user")[-len(texts) :]
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]


def render(tokenizer, messages: list[dict], *, thinking: bool) -> list[int]:
    """The token ids of a chat, up to the start of the model's answer."""
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, enable_thinking=thinking
    )


def check_chat(tokenizer, settings: PromptSettings) -> None:
    """Raises UserError if the tokenizer's chat template does not take the settings."""
    system, thinks = settings.system_prompt, settings.thinking == "on"
    if not tokenizer.chat_template:
        for option, given in (("--system-prompt", system), ("--thinking on", thinks)):
            if given:
                raise UserError(f"{option}: the model has no chat template; leave it out")
        return
    if system:
        try:
            render(tokenizer, messages_of([system, "?"]), thinking=thinks)
        except Exception as error:  # a template is a program of the model's authors
            raise UserError(
                f"--system-prompt: the model's chat template does not take it ({reason(error)}); "
                "put its text into --prompt"
            ) from error
    if thinks:
        on, off = (render(tokenizer, messages_of(["?"]), thinking=value) for value in (True, False))
        if on == off:
            raise UserError(
                "--thinking on: the model's chat template has no such switch; leave it out, and "
                "the model thinks if it was trained to"
            )


@functools.cache
def warn_once(message: str) -> None:
    """A warning that is not repeated for each question that is asked."""
    logger.warning(message)


def check_context(
    model: str,
    tokenizer,
    config,
    examples: Iterable[Example],
    *,
    settings: PromptSettings = DEFAULTS,
    max_new_tokens: int | None = None,
) -> None:
    """Checks that all prompts with their completions fit into a model's context, and warns about
    schemas that are shown without some of their columns.

    Args:
        model: its name, for the message.
        tokenizer, config: from ``grpo.models.read_tokenizer``.
        settings: of the prompts.
        max_new_tokens: of a completion; None: the completions are gold SQL.

    Raises:
        UserError: the longest does not, or there can be no such prompt.
    """
    context, prompts = context_of(config), PromptBuilder(tokenizer, settings)

    def length(example: Example) -> int:
        return len(prompts(example)) + (max_new_tokens or len(prompts.encode(example.gold_sql)) + 1)

    # By database: an index of its values is kept for a few databases only (sqlenv/values.py).
    examples = sorted(examples, key=lambda example: example.db_path)
    lengths = [length(example) for example in examples]
    longest = max(lengths, default=0)
    if prompts.shortened:
        names = sorted(path.stem for path in prompts.shortened)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        warn_once(
            f"prompts lack columns to fit into --schema-budget {settings.schema_budget}: databases "
            f"{', '.join(names[:3])}{more}"
        )
    if context is not None and longest > context:
        example = examples[lengths.index(longest)]
        completion = f"--max-new-tokens {max_new_tokens}" if max_new_tokens else "gold SQL"
        lower = "--max-new-tokens or " if max_new_tokens else ""
        raise UserError(
            f"--model {model}: the prompt of {example.question!r} ({example.lang}, "
            f"{example.db_id}) and {completion} have {longest} tokens, more than {context}, the "
            f"model's context; lower {lower}--schema-budget, leave out databases with large "
            "schemas, or choose another model"
        )
