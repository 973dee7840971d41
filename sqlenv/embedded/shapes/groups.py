"""Shapes with GROUP BY: rows in groups by a category of theirs, or of their parents."""

from sqlenv.embedded.draw import Draw, Question
from sqlenv.embedded.shapes.parts import (
    call,
    check_order,
    functions_of,
    joined,
    links,
    measured,
    ref,
)


def group(draw: Draw, shape: str) -> Question:
    """Each group with one or two aggregates, with up to one condition on the rows."""
    t = draw.table("category", "number")
    g = draw.column(t, "category", not_null=True)
    functions = functions_of(shape) or ["count"]
    x = measured(draw, t, functions)
    slots: dict = {"t": t, "g": (t.name, g.name)}
    if functions != ["count"]:
        slots["x"] = (t.name, x.name)
    if shape.endswith("where"):
        slots["a"] = draw.condition(t, 1, exclude=g)
    conditions = [slots["a"]] if "a" in slots else []
    columns = ", ".join([ref(t, g), *(call(function, ref(t, x)) for function in functions)])
    rest = f"GROUP BY {ref(t, g)}"
    if shape == "group_order":
        slots["ties"] = draw.select("COUNT(*)", t, rest=rest)
        rest += " ORDER BY COUNT(*) DESC"
    return draw.question(shape, draw.select(columns, t, *conditions, rest=rest), **slots)


def group_top(draw: Draw, shape: str) -> Question:
    """The largest groups, or the one with the highest average."""
    t = draw.table("category", "number")
    g, x = draw.column(t, "category", not_null=True), draw.column(t, "number")
    n = draw.rng.randint(2, 3) if shape == "group_topn" else 1
    slots: dict = {"t": t, "g": (t.name, g.name)}
    if shape == "group_topn":
        slots["n"] = n
    if shape == "group_top_avg":
        slots["x"] = (t.name, x.name)
    if shape == "group_top_where":
        slots["a"] = draw.condition(t, 1, exclude=g)
    conditions = [slots["a"]] if "a" in slots else []
    by, key = f"GROUP BY {ref(t, g)}", call("avg" if "x" in slots else "count", ref(t, x))
    sql = draw.select(ref(t, g), t, *conditions, rest=f"{by} ORDER BY {key} DESC LIMIT {n}")
    ties = draw.select(key, t, *conditions, rest=f"{by} ORDER BY 1 DESC")
    check_order(draw, ties, n)
    return draw.question(shape, sql, ties=ties, limit=n, **slots)


def having(draw: Draw, shape: str) -> Question:
    """The groups with many rows, or with a high average."""
    t = draw.table("category", "number")
    g, x = draw.column(t, "category", not_null=True), draw.column(t, "number")
    slots: dict = {"t": t, "g": (t.name, g.name)}
    if "count" in shape:
        test = "COUNT(*) >"
        limit = slots["n"] = max(2, t.size // draw.rng.randint(3, 8))
    else:
        slots["x"], test = (t.name, x.name), f"AVG({ref(t, x)}) >"
        if shape == "having_above_avg":
            limit = f"(SELECT AVG({x.name}) FROM {t.name})"
        else:
            limit = slots["v"] = draw.number(t, x, 0.4, 0.6)
    if shape == "having_count_where":
        slots["a"] = draw.condition(t, 1, exclude=g)
        limit = slots["n"] = draw.rng.randint(2, max(3, t.size // 12))
    conditions = [slots["a"]] if "a" in slots else []
    rest = f"GROUP BY {ref(t, g)} HAVING {test} {limit}"
    return draw.question(shape, draw.select(ref(t, g), t, *conditions, rest=rest), **slots)


def parent_group(draw: Draw, shape: str) -> Question:
    """The rows of the child t, in groups by a category of their parent p."""
    link = draw.rng.choice(links(draw))
    t, p = link.child, link.parent
    g = draw.column(p, "category", not_null=True)
    slots: dict = {"t": t, "p": p, "g": (p.name, g.name)}
    columns, by, tables = ref(p, g), f"GROUP BY {ref(p, g)}", [t, p]
    if shape == "parent_group_count":
        columns += ", COUNT(*)"
    if shape == "parent_group_avg":
        x = draw.column(t, "number")
        slots["x"] = (t.name, x.name)
        columns += f", AVG({ref(t, x)})"
    if shape == "parent_having":
        slots["n"] = max(2, t.size // draw.rng.randint(3, 8))
        by += f" HAVING COUNT(*) > {slots['n']}"
    if shape == "parent_group_top":
        ties = joined(draw, "COUNT(*)", tables, [link], f"{by} ORDER BY 1 DESC")
        slots |= {"ties": ties, "limit": 1}
        by += " ORDER BY COUNT(*) DESC LIMIT 1"
    return draw.question(shape, joined(draw, columns, tables, [link], by), **slots)
