"""Shapes about the rows of one table: columns, conditions, aggregates of all rows, order."""

from sqlenv.embedded.draw import Draw, Question, Superlative, literal
from sqlenv.embedded.shapes.parts import call, check_order, differ, functions_of, measured, ref


def rows(draw: Draw, shape: str) -> Question:
    """One to three columns, with up to two conditions."""
    t = draw.table()
    c = draw.asked_column(t)
    slots: dict = {"t": t, "c": (t.name, c.name)}
    others = [x for x in t.with_role("name", "category", "code", "number", "date") if x != c]
    more = {"2": 1, "3": 2}.get(shape[-1], 0)
    if len(others) < more:
        raise LookupError(f"{t.name} has too few columns")
    asked = draw.rng.sample(others, more)
    slots |= {slot: (t.name, column.name) for slot, column in zip("de", asked)}
    conditions = []
    if shape in ("where", "where2", "where3", "and", "or"):
        slots["a"] = draw.condition(t, 2 if shape != "or" else 0, exclude=c)
        conditions.append(slots["a"])
    if shape in ("and", "or"):
        slots["b"] = draw.condition(t, 0, exclude=c)
        conditions.append(slots["b"])
        differ(*conditions)
    columns = ", ".join(ref(t, column) for column in (c, *asked))
    sql = draw.select(columns, t, *conditions, connector="OR" if shape == "or" else "AND")
    return draw.question(shape, sql, **slots)


def like(draw: Draw, shape: str) -> Question:
    """LIKE on the column that names a row."""
    t = draw.table("name")
    words = draw.rng.choice(draw.literals(t, t.label)).split()
    word = words[-1] if shape == "contains" else words[0]
    pattern = f"%{word}%" if shape == "contains" else f"{word}%"
    sql = f"SELECT {t.label.name} FROM {t.name} WHERE {t.label.name} LIKE {literal(pattern)}"
    return draw.question(shape, sql, t=t, c=(t.name, t.label.name), v=word)


def aggregate(draw: Draw, shape: str) -> Question:
    """One to three aggregates of a column, with up to one condition."""
    t = draw.table("number")
    functions = functions_of(shape)
    x = measured(draw, t, functions)
    slots: dict = {"t": t, "x": (t.name, x.name)}
    if shape.endswith("where") or shape == "count_avg":
        slots["a"] = draw.condition(t, 2, exclude=x)
    columns = ", ".join(call(function, ref(t, x)) for function in functions)
    sql = draw.select(columns, t, *filter(None, [slots.get("a")]))
    if shape == "count_avg" and not draw.connection.execute(sql).fetchone()[0]:
        raise LookupError("the average of no rows")
    return draw.question(shape, sql, **slots)


def count(draw: Draw, shape: str) -> Question:
    """COUNT(*), with up to two conditions."""
    t = draw.table()
    slots, conditions = {"t": t}, []
    if shape in ("count_where", "count_and"):
        conditions.append(slots.setdefault("a", draw.condition(t)))
    if shape == "count_and":
        conditions.append(slots.setdefault("b", draw.condition(t, 0)))
        differ(*conditions)
    return draw.question(shape, draw.select("COUNT(*)", t, *conditions), **slots)


def distinct(draw: Draw, shape: str) -> Question:
    """The distinct values of a column or their number, with up to one condition."""
    t = draw.table("category")
    g = draw.column(t, "category", not_null=True)
    slots = {"t": t, "g": (t.name, g.name)}
    if shape.endswith("where"):
        slots["a"] = draw.condition(t, 1, exclude=g)
    columns = f"DISTINCT {ref(t, g)}"
    columns = f"COUNT({columns})" if shape.startswith("count") else columns
    return draw.question(shape, draw.select(columns, t, *filter(None, [slots.get("a")])), **slots)


def order(draw: Draw, shape: str) -> Question:
    """ORDER BY a number or date, with up to one condition; child_order: one on the parent."""
    t = draw.table("number", "ref") if shape == "child_order" else draw.table("number")
    c, x = draw.asked_column(t), draw.column(t, "number", "date", not_null=True)
    if c == x:
        raise LookupError("ordered by itself")
    slots: dict = {"t": t, "c": (t.name, c.name), "x": (t.name, x.name)}
    conditions = []
    if shape in ("where_order_asc", "where_order_desc", "child_order"):
        slots["a"] = draw.condition(t, 1, exclude=c)
        conditions.append(slots["a"])
        if (slots["a"].key in ("by", "link")) != (shape == "child_order"):
            raise LookupError("a condition on the other table")
    direction = "ASC" if shape.endswith("asc") else "DESC"
    sql = draw.select(ref(t, c), t, *conditions, rest=f"ORDER BY {ref(t, x)} {direction}")
    return draw.question(shape, sql, ties=draw.select(ref(t, x), t, *conditions), **slots)


def top(draw: Draw, shape: str) -> Question:
    """ORDER BY with LIMIT, with up to one condition."""
    t = draw.table("number")
    c, x = draw.asked_column(t), draw.column(t, "number", "date", not_null=True)
    if c == x:
        raise LookupError("ordered by itself")
    key = draw.rng.choice(("max", "min"))
    n = draw.rng.randint(2, 6) if shape == "topn" else 1
    slots: dict = {"t": t, "c": (t.name, c.name), "m": Superlative(t.name, x.name, key)}
    if shape == "topn":
        slots["n"] = n
    if shape == "top1_where":
        slots["a"] = draw.condition(t, 1, exclude=x)
    conditions = [slots["a"]] if "a" in slots else []
    order = f"ORDER BY {ref(t, x)} {'DESC' if key == 'max' else 'ASC'}"
    sql = draw.select(ref(t, c), t, *conditions, rest=f"{order} LIMIT {n}")
    ties = draw.select(ref(t, x), t, *conditions, rest=order)
    check_order(draw, ties, n)
    return draw.question(shape, sql, ties=ties, limit=n, **slots)
