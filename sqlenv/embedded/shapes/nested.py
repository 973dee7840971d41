"""Shapes with a query in a query, and with INTERSECT, EXCEPT and UNION."""

from sqlenv.embedded.draw import Condition, Draw, Question, Superlative
from sqlenv.embedded.shapes.parts import Link, differ, joined, ref


def average(draw: Draw, shape: str) -> Question:
    """The rows, or their number, above or below the average of all rows."""
    t = draw.table("number")
    c, x = draw.asked_column(t), draw.column(t, "number")
    if c == x:
        raise LookupError("compared with itself")
    slots: dict = {"t": t, "x": (t.name, x.name)}
    columns = ref(t, c)
    if shape == "count_above_avg":
        columns = "COUNT(*)"
    else:
        slots["c"] = (t.name, c.name)
    test = f"{ref(t, x)} {'<' if shape == 'below_avg' else '>'} "
    test += f"(SELECT AVG({x.name}) FROM {t.name})"
    conditions, word = [], "WHERE"
    if shape == "above_avg_where":
        slots["a"], word = draw.condition(t, 1, exclude=x), "AND"
        conditions.append(slots["a"])
        if slots["a"].column == c.name:
            raise LookupError("a condition on the column asked for")
    sql = draw.select(columns, t, *conditions, rest=f"{word} {test}")
    return draw.question(shape, sql, **slots)


def extreme(draw: Draw, shape: str) -> Question:
    """All rows that have the greatest or smallest value of a column."""
    t = draw.table("number")
    c, x = draw.asked_column(t), draw.column(t, "number", "date")
    if c == x:
        raise LookupError("compared with itself")
    key = draw.rng.choice(("max", "min"))
    inner = f"SELECT {key.upper()}({x.name}) FROM {t.name}"
    sql = f"SELECT {c.name} FROM {t.name} WHERE {x.name} = ({inner})"
    return draw.question(shape, sql, t=t, c=(t.name, c.name), m=Superlative(t.name, x.name, key))


def sets(draw: Draw, shape: str) -> Question:
    """A set operator between the categories of two parts of a table."""
    t = draw.table("category", "number")
    g = draw.column(t, "category", not_null=True)
    slots: dict = {"t": t, "g": (t.name, g.name), "a": draw.condition(t, 0, exclude=g)}
    left = f"SELECT {g.name} FROM {t.name}"
    if shape == "except":
        right = draw.select(g.name, t, slots["a"])
    else:
        slots["b"] = draw.condition(t, 0, exclude=g)
        left, right = draw.select(g.name, t, slots["a"]), draw.select(g.name, t, slots["b"])
        differ(slots["a"], slots["b"])
    return draw.question(shape, f"{left} {shape.upper()} {right}", **slots)


def child_sets(draw: Draw, shape: str) -> Question:
    """A set operator between the parents t of two kinds of children k."""
    link = Link(*draw.reference())
    k, t = link.child, link.parent
    a = draw.condition(k, 0)
    slots: dict = {"t": t, "k": k, "c": (t.name, t.label.name), "a": a}

    def parents(condition: Condition) -> str:
        return joined(draw, ref(t, t.label), [t, k], [link], a=condition)

    if shape == "except_child":
        left, right = f"SELECT {t.label.name} FROM {t.name}", parents(a)
    else:
        b = slots["b"] = draw.condition(k, 0)
        both_values = a.key == b.key == "eq" and not set(a.values) & set(b.values)
        if a.column == b.column and not both_values:
            raise LookupError("two conditions that overlap")
        left, right = parents(a), parents(b)
    return draw.question(shape, f"{left} {shape.split('_')[0].upper()} {right}", **slots)
