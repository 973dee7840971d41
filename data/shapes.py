"""The SQL shapes of the embedded dataset: each draws tables, columns and literals, and writes gold SQL for them.

A shape returns a ``Question``: the SQL, and the slots from which a lexicon words the question in any language. Inside
the shapes a column is written ``[table].column``; ``finish`` turns that into plain names for one table and into the
aliases T1, T2, ... for joins.
"""

import random
import re
import sqlite3
from dataclasses import dataclass, field

from data.databases import Column, Table


@dataclass(frozen=True)
class Condition:
    """A predicate on the rows of a table: ``key`` of ``column`` (eq, gt, ge, lt, between, null, by or link)."""

    table: str
    column: str
    key: str
    values: tuple = ()
    inner: "Condition | None" = None  # for link: the condition on the parent


@dataclass(frozen=True)
class Superlative:
    table: str
    column: str
    key: str  # max or min


@dataclass
class Question:
    db: str
    shape: str
    sql: str
    slots: dict
    ties: str | None = (
        None  # a query for the ordering keys; where LIMIT would cut through a tie, the answer is
    )
    limit: int = 0  # not determined and the question is not used


def literal(value) -> str:
    """A value as SQL text."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def finish(select: str, tables: list[str], joins: list[str], rest: str) -> str:
    """``SELECT ... FROM ... JOIN ... rest`` with plain column names for one table, T1, T2, ... for several."""
    alias = {table: f"T{i + 1}" for i, table in enumerate(tables)}
    source = tables[0]
    if len(tables) > 1:
        source += " AS T1" + "".join(
            f" JOIN {table} AS {alias[table]} ON {on}" for table, on in zip(tables[1:], joins)
        )
    text = f"SELECT {select} FROM {source}" + (f" {rest}" if rest else "")
    return re.sub(
        r"\[(\w+)\]\.", lambda name: f"{alias[name[1]]}." if len(tables) > 1 else "", text
    )


@dataclass
class Sampler:
    """Draws questions about one database."""

    db: str
    tables: dict[str, Table]
    connection: sqlite3.Connection
    rng: random.Random
    values: dict = field(default_factory=dict)

    # -- drawing -------------------------------------------------------------------------------------------------

    def table(self, *roles: str) -> Table:
        """A table that has columns of all these roles."""
        return self.rng.choice(
            [t for t in self.tables.values() if all(t.with_role(role) for role in roles)]
        )

    def column(
        self, table: Table, *roles: str, solid: bool = False, but: Column | None = None
    ) -> Column:
        """A column of one of the roles; ``solid`` excludes columns with NULLs."""
        found = [c for c in table.with_role(*roles) if not (solid and c.nullable) and c != but]
        if not found:
            raise LookupError(f"{table.name} has no such column")
        return self.rng.choice(found)

    def shown(self, table: Table, but: Column | None = None) -> Column:
        """A column worth asking for: mostly the one that names the row."""
        if table.label and table.label != but and self.rng.random() < 0.6:
            return table.label
        return self.column(table, "name", "category", "number", "date", but=but)

    def reference(self) -> tuple[Table, Column, Table]:
        """A (child, foreign key, parent)."""
        return self.rng.choice(
            [
                (child, column, self.tables[column.args])
                for child in self.tables.values()
                for column in child.with_role("ref")
            ]
        )

    def literals(self, table: Table, column: Column) -> list:
        """All values that stand in a column, sorted."""
        key = (table.name, column.name)
        if key not in self.values:
            query = (
                f"SELECT {column.name} FROM {table.name} WHERE {column.name} IS NOT NULL ORDER BY 1"
            )
            self.values[key] = [row[0] for row in self.connection.execute(query)]
        return self.values[key]

    def number(self, table: Table, column: Column, low: float = 0.1, high: float = 0.9):
        """A literal to compare with: often a value that stands in the column, so that > and >= differ."""
        values = self.literals(table, column)
        value = values[int(self.rng.uniform(low, high) * (len(values) - 1))]
        if (
            column.role == "number"
            and self.rng.random() < 0.4
            and value >= 100
            and "year" not in column.name
        ):
            digits = len(str(int(value))) - 2
            value = round(value / 10**digits) * 10**digits
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def condition(
        self, table: Table, depth: int = 2, roles=("category", "number", "date"), but=None
    ) -> Condition:
        """A condition on a table; with probability a quarter on its parent, ``depth`` joins away at most."""
        references = table.with_role("ref")
        if depth and references and self.rng.random() < 0.35:
            reference = self.rng.choice(references)
            parent = self.tables[reference.args]
            if self.rng.random() < 0.4:
                name = self.rng.choice(self.literals(parent, parent.label))
                return Condition(table.name, reference.name, "by", (name,))
            return Condition(
                table.name, reference.name, "link", (), self.condition(parent, depth - 1)
            )
        column = self.column(table, *roles, but=but)
        if column.nullable and self.rng.random() < 0.1:
            return Condition(table.name, column.name, "null")
        if column.role == "category":
            options = sorted(set(self.literals(table, column)))
            count = 2 if self.rng.random() < 0.2 else 1
            return Condition(table.name, column.name, "eq", tuple(self.rng.sample(options, count)))
        key = self.rng.choice(
            ("gt", "ge", "lt", "between") if column.role == "number" else ("gt", "lt", "between")
        )
        if key == "between":
            low, high = self.number(table, column, 0.1, 0.45), self.number(table, column, 0.55, 0.9)
            return Condition(table.name, column.name, key, (low, high))
        return Condition(table.name, column.name, key, (self.number(table, column),))

    # -- writing SQL -----------------------------------------------------------------------------------------------

    def where(self, condition: Condition, tables: list[str], joins: list[str]) -> str:
        """The condition as SQL; the tables that it joins are appended to ``tables`` and ``joins``."""
        name = f"[{condition.table}].{condition.column}"
        if condition.key in ("by", "link"):
            reference = next(
                c for c in self.tables[condition.table].columns if c.name == condition.column
            )
            parent = self.tables[reference.args]
            if parent.name in tables:
                raise LookupError("the table is joined already")
            tables.append(parent.name)
            joins.append(f"{name} = [{parent.name}].{parent.key}")
            if condition.inner:
                return self.where(condition.inner, tables, joins)
            return f"[{parent.name}].{parent.label.name} = {literal(condition.values[0])}"
        values = [literal(value) for value in condition.values]
        if condition.key == "null":
            return f"{name} IS NULL"
        if condition.key == "between":
            return f"{name} BETWEEN {values[0]} AND {values[1]}"
        if condition.key == "eq" and len(values) > 1:
            return f"{name} IN ({', '.join(values)})"
        return f"{name} {dict(eq='=', gt='>', ge='>=', lt='<')[condition.key]} {values[0]}"

    def select(
        self, columns: str, table: Table, *conditions: Condition, glue: str = "AND", rest: str = ""
    ) -> str:
        """SELECT columns FROM table [JOIN ...] [WHERE ...] rest"""
        tables, joins = [table.name], []
        where = f" {glue} ".join(self.where(condition, tables, joins) for condition in conditions)
        return finish(
            columns, tables, joins, " ".join(filter(None, [where and f"WHERE {where}", rest]))
        )

    # -- the shapes --------------------------------------------------------------------------------------------------

    def ask(self, shape: str) -> Question:
        """One question of a shape; LookupError where this draw does not work out."""
        family, _, variant = shape.partition(":")
        return getattr(self, f"_{family}")(variant)

    def _question(self, shape: str, sql: str, **slots) -> Question:
        ties, limit = slots.pop("ties", None), slots.pop("limit", 0)
        slots = {
            name: (value.name,) if isinstance(value, Table) else value
            for name, value in slots.items()
        }
        return Question(self.db, shape, sql, slots, ties, limit)

    def _rows(self, shape: str) -> Question:
        """Projection, with no, one or two conditions."""
        t = self.table()
        c = self.shown(t)
        d = self.column(t, "name", "category", "number", "date", but=c)
        slots = {"t": t, "c": (t.name, c.name)}
        columns = f"[{t.name}].{c.name}"
        if shape in ("list2", "where2"):
            slots["d"] = (t.name, d.name)
            columns += f", [{t.name}].{d.name}"
        conditions = []
        if shape in ("where", "where2", "and", "or"):
            conditions.append(self.condition(t, 2 if shape != "or" else 0, but=c))
            slots["a"] = conditions[0]
        if shape in ("and", "or"):
            conditions.append(self.condition(t, 0, but=c))
            slots["b"] = conditions[1]
            if conditions[0].column == conditions[1].column:
                raise LookupError("two conditions on one column")
        return self._question(
            shape,
            self.select(columns, t, *conditions, glue="OR" if shape == "or" else "AND"),
            **slots,
        )

    def _like(self, shape: str) -> Question:
        t = self.table("name")
        words = self.rng.choice(self.literals(t, t.label)).split()
        word = words[-1] if shape == "contains" else words[0]
        pattern = f"%{word}%" if shape == "contains" else f"{word}%"
        sql = f"SELECT {t.label.name} FROM {t.name} WHERE {t.label.name} LIKE {literal(pattern)}"
        return self._question(shape, sql, t=t, c=(t.name, t.label.name), v=word)

    def _aggregate(self, shape: str) -> Question:
        t = self.table("number")
        function, _, where = shape.partition("_")
        x = self.column(t, "number")
        if function == "sum" and not x.additive:
            raise LookupError("adding these up means nothing")
        slots = {"t": t, "x": (t.name, x.name)}
        if where:
            slots["a"] = self.condition(t, 2, but=x)
        sql = self.select(
            f"{function.upper()}([{t.name}].{x.name})", t, *filter(None, [slots.get("a")])
        )
        return self._question(shape, sql, **slots)

    def _count(self, shape: str) -> Question:
        t = self.table()
        slots, conditions = {"t": t}, []
        if shape in ("count_where", "count_and"):
            conditions.append(slots.setdefault("a", self.condition(t)))
        if shape == "count_and":
            conditions.append(slots.setdefault("b", self.condition(t, 0)))
            if conditions[0].column == conditions[1].column:
                raise LookupError("two conditions on one column")
        return self._question(shape, self.select("COUNT(*)", t, *conditions), **slots)

    def _distinct(self, shape: str) -> Question:
        t = self.table("category")
        g = self.column(t, "category")
        slots = {"t": t, "g": (t.name, g.name)}
        if shape.endswith("where"):
            slots["a"] = self.condition(t, 1, but=g)
        columns = f"DISTINCT [{t.name}].{g.name}"
        columns = f"COUNT({columns})" if shape.startswith("count") else columns
        return self._question(
            shape, self.select(columns, t, *filter(None, [slots.get("a")])), **slots
        )

    def _group(self, shape: str) -> Question:
        t = self.table("category", "number")
        g, x = self.column(t, "category").name, self.column(t, "number")
        slots = {"t": t, "g": (t.name, g)}
        start = f"FROM {t.name} GROUP BY {g}"
        if shape == "group_count":
            return self._question(shape, f"SELECT {g}, COUNT(*) {start}", **slots)
        if shape == "group_top":
            sql = f"SELECT {g} {start} ORDER BY COUNT(*) DESC LIMIT 1"
            return self._question(
                shape, sql, ties=f"SELECT COUNT(*) {start} ORDER BY 1 DESC", limit=1, **slots
            )
        if shape == "having_count":
            n = t.size // self.rng.randint(3, 8)
            return self._question(shape, f"SELECT {g} {start} HAVING COUNT(*) > {n}", n=n, **slots)
        slots["x"] = (t.name, x.name)
        if shape == "having_avg":
            v = self.number(t, x, 0.4, 0.6)
            return self._question(
                shape, f"SELECT {g} {start} HAVING AVG({x.name}) > {v}", v=v, **slots
            )
        function = {"group_avg": "AVG", "group_max": "MAX"}[shape]
        return self._question(shape, f"SELECT {g}, {function}({x.name}) {start}", **slots)

    def _order(self, shape: str) -> Question:
        t = self.table("number")
        c, x = self.shown(t), self.column(t, "number", "date", solid=True)
        if c == x:
            raise LookupError("ordered by itself")
        direction = "DESC" if shape == "order_desc" else "ASC"
        sql = f"SELECT {c.name} FROM {t.name} ORDER BY {x.name} {direction}"
        ties = f"SELECT {x.name} FROM {t.name}"
        return self._question(shape, sql, t=t, c=(t.name, c.name), x=(t.name, x.name), ties=ties)

    def _top(self, shape: str) -> Question:
        t = self.table("number")
        c, x = self.shown(t), self.column(t, "number", "date", solid=True)
        if c == x:
            raise LookupError("ordered by itself")
        key = self.rng.choice(("max", "min"))
        n = self.rng.randint(2, 6) if shape == "topn" else 1
        slots = {"t": t, "c": (t.name, c.name), "m": Superlative(t.name, x.name, key)}
        if shape == "topn":
            slots["n"] = n
        if shape == "top1_where":
            slots["a"] = self.condition(t, 1, but=x)
        conditions = [slots["a"]] if "a" in slots else []
        order = f"ORDER BY [{t.name}].{x.name} {'DESC' if key == 'max' else 'ASC'}"
        sql = self.select(f"[{t.name}].{c.name}", t, *conditions, rest=f"{order} LIMIT {n}")
        ties = self.select(f"[{t.name}].{x.name}", t, *conditions, rest=order)
        return self._question(shape, sql, ties=ties, limit=n, **slots)

    def _child(self, shape: str) -> Question:
        """Joins along a foreign key, asked from the parent's side (t parent, k child) but for child_list."""
        k, reference, t = self.reference()
        c = t.label.name
        if shape == "child_list":
            shown = self.shown(k)
            on = f"T1.{reference.name} = T2.{t.key}"
            sql = f"SELECT T1.{shown.name}, T2.{c} FROM {k.name} AS T1 JOIN {t.name} AS T2 ON {on}"
            return self._question(shape, sql, t=k, p=t, c=(k.name, shown.name), d=(t.name, c))
        slots = {"t": t, "k": k, "c": (t.name, c)}
        join = f"FROM {t.name} AS T1 JOIN {k.name} AS T2 ON T1.{t.key} = T2.{reference.name} GROUP BY T1.{t.key}"
        if shape == "child_count":
            return self._question(shape, f"SELECT T1.{c}, COUNT(*) {join}", **slots)
        if shape == "child_avg":
            x = self.column(k, "number")
            return self._question(
                shape, f"SELECT T1.{c}, AVG(T2.{x.name}) {join}", x=(k.name, x.name), **slots
            )
        if shape == "child_top":
            ties = f"SELECT COUNT(*) {join} ORDER BY 1 DESC"
            return self._question(
                shape,
                f"SELECT T1.{c} {join} ORDER BY COUNT(*) DESC LIMIT 1",
                ties=ties,
                limit=1,
                **slots,
            )
        if shape == "child_having":
            n = self.rng.randint(2, 8)
            return self._question(
                shape, f"SELECT T1.{c} {join} HAVING COUNT(*) >= {n}", n=n, **slots
            )
        if shape == "child_none":
            sql = f"SELECT {c} FROM {t.name} WHERE {t.key} NOT IN (SELECT {reference.name} FROM {k.name})"
            return self._question(shape, sql, **slots)
        a = self.condition(k, 0)
        test = self.where(a, [k.name], []).replace("[", "").replace("]", "")
        inner = (
            f"SELECT 1 FROM {k.name} WHERE {k.name}.{reference.name} = {t.name}.{t.key} AND {test}"
        )
        return self._question(
            shape, f"SELECT {c} FROM {t.name} WHERE EXISTS ({inner})", a=a, **slots
        )

    def _nested(self, shape: str) -> Question:
        t = self.table("number")
        c, x = self.shown(t), self.column(t, "number")
        if c == x:
            raise LookupError("compared with itself")
        sign = ">" if shape == "above_avg" else "<"
        sql = f"SELECT {c.name} FROM {t.name} WHERE {x.name} {sign} (SELECT AVG({x.name}) FROM {t.name})"
        return self._question(shape, sql, t=t, c=(t.name, c.name), x=(t.name, x.name))

    def _sets(self, shape: str) -> Question:
        t = self.table("category", "number")
        g = self.column(t, "category")
        slots = {"t": t, "g": (t.name, g.name), "a": self.condition(t, 0, but=g)}
        left = f"SELECT {g.name} FROM {t.name}"
        if shape == "except":
            right = self.select(g.name, t, slots["a"])
        else:
            slots["b"] = self.condition(t, 0, but=g)
            left, right = self.select(g.name, t, slots["a"]), self.select(g.name, t, slots["b"])
            if slots["a"].column == slots["b"].column:
                raise LookupError("two conditions on one column")
        return self._question(shape, f"{left} {shape.upper()} {right}", **slots)


# Shape and how often it is drawn: "family:shape". Simple ones run out of different questions first.
SHAPES = {
    "rows:list": 2,
    "rows:list2": 3,
    "rows:where": 14,
    "rows:where2": 8,
    "rows:and": 8,
    "rows:or": 5,
    "like:contains": 2,
    "like:starts": 2,
    "aggregate:avg": 2,
    "aggregate:max": 2,
    "aggregate:min": 2,
    "aggregate:sum": 2,
    "aggregate:avg_where": 4,
    "aggregate:max_where": 3,
    "aggregate:min_where": 3,
    "aggregate:sum_where": 3,
    "count:count": 1,
    "count:count_where": 7,
    "count:count_and": 4,
    "distinct:distinct": 1,
    "distinct:distinct_where": 3,
    "distinct:count_distinct": 2,
    "distinct:count_distinct_where": 3,
    "group:group_count": 2,
    "group:group_avg": 3,
    "group:group_max": 3,
    "group:having_count": 3,
    "group:having_avg": 3,
    "group:group_top": 2,
    "order:order_desc": 4,
    "order:order_asc": 4,
    "top:top1": 4,
    "top:topn": 4,
    "top:top1_where": 5,
    "child:child_list": 3,
    "child:child_count": 3,
    "child:child_avg": 3,
    "child:child_top": 2,
    "child:child_having": 3,
    "child:child_none": 2,
    "child:child_exists": 6,
    "nested:above_avg": 3,
    "nested:below_avg": 3,
    "sets:intersect": 4,
    "sets:except": 4,
    "sets:union": 4,
}
