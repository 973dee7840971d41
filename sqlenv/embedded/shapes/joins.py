"""Shapes along foreign keys: a child with its parent, a parent with its children, and three tables.

Shapes whose names have "count", "avg" or "sum" aggregate the children of each parent. GROUP BY the
parent's key leaves out parents without children; the questions say so.
"""

from sqlenv.embedded.draw import Draw, Question
from sqlenv.embedded.shapes.parts import (
    Link,
    call,
    check_order,
    functions_of,
    joined,
    measured,
    ref,
    two_links,
)


def child_list(draw: Draw, shape: str) -> Question:
    """Columns of the child t with the name of its parent p."""
    link = Link(*draw.reference())
    t, p = link.child, link.parent
    c = draw.asked_column(t)
    slots: dict = {"t": t, "p": p, "c": (t.name, c.name)}
    columns = [ref(t, c)]
    if shape == "child_list2":
        d = draw.column(t, "name", "category", "code", "number", "date", exclude=c)
        slots["d"] = (t.name, d.name)
        columns.append(ref(t, d))
    if shape == "child_list_where":
        slots["a"] = draw.condition(t, 0, exclude=c)
    slots["e" if shape == "child_list2" else "d"] = (p.name, p.label.name)
    columns.append(ref(p, p.label))
    sql = joined(draw, ", ".join(columns), [t, p], [link], a=slots.get("a"))
    return draw.question(shape, sql, **slots)


def child_group(draw: Draw, shape: str) -> Question:
    """The children k of each parent t, aggregated: shown, in HAVING or in ORDER BY."""
    link = Link(*draw.reference())
    k, t = link.child, link.parent
    slots: dict = {"t": t, "k": k, "c": (t.name, t.label.name)}
    function = (functions_of(shape) or ["count"])[0]
    key = "COUNT(*)"
    if function != "count":
        x = measured(draw, k, [function])
        slots["x"], key = (k.name, x.name), call(function, ref(k, x))
    if shape.endswith("where"):
        slots["a"] = draw.condition(k, 0, exclude=x if "x" in slots else None)
    columns, end, tables = ref(t, t.label), f"GROUP BY {ref(t, t.key)}", [t, k]
    if shape.startswith("child_top"):
        n = draw.rng.randint(2, 4) if shape == "child_topn" else 1
        if n > 1:
            slots["n"] = n
        ties = joined(draw, key, tables, [link], f"{end} ORDER BY 1 DESC")
        check_order(draw, ties, n)
        slots |= {"ties": ties, "limit": n}
        end += f" ORDER BY {key} DESC LIMIT {n}"
    elif shape == "child_having_avg":
        slots["v"] = draw.number(k, x, 0.4, 0.6)
        end += f" HAVING {key} > {slots['v']}"
    elif shape.startswith("child_having"):
        slots["n"] = draw.rng.randint(2, 4 if "a" in slots else 8)
        end += f" HAVING {key} >= {slots['n']}"
    else:
        columns += f", {key}"
    if shape == "child_count_order":  # many parents have equally many children
        slots["ties"] = joined(draw, f"{key}, {ref(t, t.label)}", tables, [link], end)
        end += f" ORDER BY {key} DESC, {ref(t, t.label)}"
    sql = joined(draw, columns, tables, [link], end, slots.get("a"))
    return draw.question(shape, sql, **slots)


def child_rows(draw: Draw, shape: str) -> Question:
    """The parents t with, or without, children k that satisfy a condition."""
    link = Link(*draw.reference())
    k, t, foreign, c = link.child, link.parent, link.column.name, link.parent.label.name
    slots: dict = {"t": t, "k": k, "c": (t.name, c)}
    if shape != "child_none":
        slots["a"] = draw.condition(k, 0)
    if shape == "child_distinct":
        sql = joined(draw, f"DISTINCT {ref(t, c)}", [t, k], [link], a=slots["a"])
    elif shape == "child_exists":
        test = draw.where(slots["a"], [k.name], []).replace("[", "").replace("]", "")
        inner = f"SELECT 1 FROM {k.name} WHERE {k.name}.{foreign} = {t.name}.{t.key} AND {test}"
        sql = f"SELECT {c} FROM {t.name} WHERE EXISTS ({inner})"
    else:
        inner = draw.select(foreign, k, *filter(None, [slots.get("a")]))
        sql = f"SELECT {c} FROM {t.name} WHERE {t.key} NOT IN ({inner})"
    return draw.question(shape, sql, **slots)


def grand(draw: Draw, shape: str) -> Question:
    """Three tables: t, its parent p, and the named parent q of that."""
    lower, upper = two_links(draw)
    t, p, q = lower.child, lower.parent, upper.parent
    name = (q.name, q.label.name)
    slots: dict = {"t": t, "p": p, "q": q}
    if shape == "grand_list":
        c = draw.asked_column(t)
        slots |= {"c": (t.name, c.name), "d": name}
        columns = f"{ref(t, c)}, {ref(q, q.label)}"
        return draw.question(shape, joined(draw, columns, [t, p, q], [lower, upper]), **slots)
    slots["c"] = name
    columns, end = ref(q, q.label), f"GROUP BY {ref(q, q.key)}"
    tables, keys = [q, p, t], [upper, lower]
    if shape == "grand_exists":
        columns, end, slots["a"] = f"DISTINCT {columns}", "", draw.condition(t, 0)
    elif shape == "grand_count":
        columns += ", COUNT(*)"
    else:
        ties = joined(draw, "COUNT(*)", tables, keys, f"{end} ORDER BY 1 DESC")
        slots |= {"ties": ties, "limit": 1}
        end += " ORDER BY COUNT(*) DESC LIMIT 1"
    sql = joined(draw, columns, tables, keys, end, slots.get("a"))
    return draw.question(shape, sql, **slots)
