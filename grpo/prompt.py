"""Turns a question and its schema into token ids.

A model with a chat template gets a user message. A plain model gets the schema followed by the
question as a comment, and continues this text with SQL. From here on, prompts and completions are
token ids: nothing is decoded and tokenised again between sampling and training.
"""

from grpo.model_checks import context_of
from sqlenv import Example, UserError, load_schema, schema_text

# Tokens; a longer schema text loses sample values first, then types, then whole column lists.
SCHEMA_BUDGET = 1024


def question_text(question: str) -> str:
    """What a plain model sees after the schema: a comment, and so one line."""
    return f"\n-- {' '.join(question.splitlines())}\n"


def chat_text(schema: str, question: str) -> str:
    """The user message of a chat model."""
    return (
        f"Given the SQLite schema:\n{schema}\n\nWrite one SQL query that answers: {question}\n"
        "Answer with the SQL query only."
    )


class PromptBuilder:
    """Makes prompts for one tokenizer. The schema text of each database is cached."""

    def __init__(self, tokenizer, schema_budget: int = SCHEMA_BUDGET):
        self.tokenizer, self.budget = tokenizer, schema_budget
        self.schemas: dict = {}

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def schema(self, example: Example) -> str:
        if example.db_path not in self.schemas:
            self.schemas[example.db_path] = schema_text(
                load_schema(example.db_path),
                budget=self.budget,
                count_tokens=lambda text: len(self.encode(text)),
            )
        return self.schemas[example.db_path]

    def __call__(self, example: Example) -> list[int]:
        """The prompt's token ids."""
        schema = self.schema(example)
        if self.tokenizer.chat_template:
            message = [{"role": "user", "content": chat_text(schema, example.question)}]
            return self.tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_dict=False, enable_thinking=False
            )
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return start + self.encode(schema) + self.encode(question_text(example.question))


def check_context(
    model: str, tokenizer, config, examples: list[Example], *, max_new_tokens: int | None = None
) -> None:
    """Checks that all prompts with their completions fit into a model's context.

    Args:
        model: its name, for the message.
        tokenizer, config: from ``grpo.models.read_tokenizer``.
        max_new_tokens: of a completion; None: the completions are gold SQL.

    Raises:
        UserError: the longest does not.
    """
    context, prompts = context_of(config), PromptBuilder(tokenizer)

    def length(example: Example) -> int:
        return len(prompts(example)) + (max_new_tokens or len(prompts.encode(example.gold_sql)) + 1)

    lengths = [length(example) for example in examples]
    longest = max(lengths, default=0)
    if context is not None and longest > context:
        example = examples[lengths.index(longest)]
        completion = f"--max-new-tokens {max_new_tokens}" if max_new_tokens else "gold SQL"
        lower = "lower --max-new-tokens, " if max_new_tokens else ""
        raise UserError(
            f"--model {model}: the prompt of {example.question!r} ({example.lang}, "
            f"{example.db_id}) and {completion} have {longest} tokens, more than {context}, the "
            f"model's context; {lower}leave out databases with large schemas, or choose another "
            "model"
        )
