"""The SQL shapes of the embedded dataset. Each draws tables and columns and writes gold SQL.

A shape returns a ``Question``: the SQL, and the slots that a lexicon fills with text in any
language. The variables have the names of the slots (lexicon/en.toml): t the table asked about,
k a child table, c and d columns asked for, g a grouped column, x a numeric column, a and b
conditions, v a literal, n a whole number, m a superlative.
"""

from sqlenv.embedded.draw import Draw, Question, Superlative, literal


def draw_question(draw: Draw, shape: str) -> Question:
    """Draws a question of a shape.

    Raises:
        LookupError: the drawn parts do not fit together; draw again.
    """
    return SHAPES[shape][0](draw, shape)


def rows(draw: Draw, shape: str) -> Question:
    """One or two columns, with up to two conditions."""
    t = draw.table()
    c = draw.asked_column(t)
    d = draw.column(t, "name", "category", "number", "date", exclude=c)
    slots = {"t": t, "c": (t.name, c.name)}
    columns = f"[{t.name}].{c.name}"
    if shape in ("list2", "where2"):
        slots["d"] = (t.name, d.name)
        columns += f", [{t.name}].{d.name}"
    conditions = []
    if shape in ("where", "where2", "and", "or"):
        conditions.append(draw.condition(t, 2 if shape != "or" else 0, exclude=c))
        slots["a"] = conditions[0]
    if shape in ("and", "or"):
        conditions.append(draw.condition(t, 0, exclude=c))
        slots["b"] = conditions[1]
        if conditions[0].column == conditions[1].column:
            raise LookupError("two conditions on one column")
    return draw.question(
        shape,
        draw.select(columns, t, *conditions, connector="OR" if shape == "or" else "AND"),
        **slots,
    )


def like(draw: Draw, shape: str) -> Question:
    """LIKE on the column that names a row."""
    t = draw.table("name")
    words = draw.rng.choice(draw.literals(t, t.label)).split()
    word = words[-1] if shape == "contains" else words[0]
    pattern = f"%{word}%" if shape == "contains" else f"{word}%"
    sql = f"SELECT {t.label.name} FROM {t.name} WHERE {t.label.name} LIKE {literal(pattern)}"
    return draw.question(shape, sql, t=t, c=(t.name, t.label.name), v=word)


def aggregate(draw: Draw, shape: str) -> Question:
    """AVG, MAX, MIN or SUM of a column, with up to one condition."""
    t = draw.table("number")
    function, _, where = shape.partition("_")
    x = draw.column(t, "number")
    if function == "sum" and not x.additive:
        raise LookupError("the sum of this column has no meaning")
    slots = {"t": t, "x": (t.name, x.name)}
    if where:
        slots["a"] = draw.condition(t, 2, exclude=x)
    sql = draw.select(
        f"{function.upper()}([{t.name}].{x.name})", t, *filter(None, [slots.get("a")])
    )
    return draw.question(shape, sql, **slots)


def count(draw: Draw, shape: str) -> Question:
    """COUNT(*), with up to two conditions."""
    t = draw.table()
    slots, conditions = {"t": t}, []
    if shape in ("count_where", "count_and"):
        conditions.append(slots.setdefault("a", draw.condition(t)))
    if shape == "count_and":
        conditions.append(slots.setdefault("b", draw.condition(t, 0)))
        if conditions[0].column == conditions[1].column:
            raise LookupError("two conditions on one column")
    return draw.question(shape, draw.select("COUNT(*)", t, *conditions), **slots)


def distinct(draw: Draw, shape: str) -> Question:
    """The distinct values of a column or their number, with up to one condition."""
    t = draw.table("category")
    g = draw.column(t, "category")
    slots = {"t": t, "g": (t.name, g.name)}
    if shape.endswith("where"):
        slots["a"] = draw.condition(t, 1, exclude=g)
    columns = f"DISTINCT [{t.name}].{g.name}"
    columns = f"COUNT({columns})" if shape.startswith("count") else columns
    return draw.question(shape, draw.select(columns, t, *filter(None, [slots.get("a")])), **slots)


def group(draw: Draw, shape: str) -> Question:
    """GROUP BY with an aggregate, HAVING, or the largest group."""
    t = draw.table("category", "number")
    g, x = draw.column(t, "category").name, draw.column(t, "number")
    slots = {"t": t, "g": (t.name, g)}
    start = f"FROM {t.name} GROUP BY {g}"
    if shape == "group_count":
        return draw.question(shape, f"SELECT {g}, COUNT(*) {start}", **slots)
    if shape == "group_top":
        sql = f"SELECT {g} {start} ORDER BY COUNT(*) DESC LIMIT 1"
        return draw.question(
            shape, sql, ties=f"SELECT COUNT(*) {start} ORDER BY 1 DESC", limit=1, **slots
        )
    if shape == "having_count":
        n = t.size // draw.rng.randint(3, 8)
        return draw.question(shape, f"SELECT {g} {start} HAVING COUNT(*) > {n}", n=n, **slots)
    slots["x"] = (t.name, x.name)
    if shape == "having_avg":
        v = draw.number(t, x, 0.4, 0.6)
        return draw.question(shape, f"SELECT {g} {start} HAVING AVG({x.name}) > {v}", v=v, **slots)
    function = {"group_avg": "AVG", "group_max": "MAX"}[shape]
    return draw.question(shape, f"SELECT {g}, {function}({x.name}) {start}", **slots)


def order(draw: Draw, shape: str) -> Question:
    """ORDER BY a number or date."""
    t = draw.table("number")
    c, x = draw.asked_column(t), draw.column(t, "number", "date", not_null=True)
    if c == x:
        raise LookupError("ordered by itself")
    direction = "DESC" if shape == "order_desc" else "ASC"
    sql = f"SELECT {c.name} FROM {t.name} ORDER BY {x.name} {direction}"
    ties = f"SELECT {x.name} FROM {t.name}"
    return draw.question(shape, sql, t=t, c=(t.name, c.name), x=(t.name, x.name), ties=ties)


def top(draw: Draw, shape: str) -> Question:
    """ORDER BY with LIMIT, with up to one condition."""
    t = draw.table("number")
    c, x = draw.asked_column(t), draw.column(t, "number", "date", not_null=True)
    if c == x:
        raise LookupError("ordered by itself")
    key = draw.rng.choice(("max", "min"))
    n = draw.rng.randint(2, 6) if shape == "topn" else 1
    slots = {"t": t, "c": (t.name, c.name), "m": Superlative(t.name, x.name, key)}
    if shape == "topn":
        slots["n"] = n
    if shape == "top1_where":
        slots["a"] = draw.condition(t, 1, exclude=x)
    conditions = [slots["a"]] if "a" in slots else []
    order = f"ORDER BY [{t.name}].{x.name} {'DESC' if key == 'max' else 'ASC'}"
    sql = draw.select(f"[{t.name}].{c.name}", t, *conditions, rest=f"{order} LIMIT {n}")
    ties = draw.select(f"[{t.name}].{x.name}", t, *conditions, rest=order)
    return draw.question(shape, sql, ties=ties, limit=n, **slots)


def child(draw: Draw, shape: str) -> Question:
    """A join along a foreign key of the child k, asked from the parent t (not in child_list)."""
    k, reference, t = draw.reference()
    c = t.label.name
    if shape == "child_list":
        asked = draw.asked_column(k)
        on = f"T1.{reference.name} = T2.{t.key}"
        sql = f"SELECT T1.{asked.name}, T2.{c} FROM {k.name} AS T1 JOIN {t.name} AS T2 ON {on}"
        return draw.question(shape, sql, t=k, p=t, c=(k.name, asked.name), d=(t.name, c))
    slots = {"t": t, "k": k, "c": (t.name, c)}
    join = f"FROM {t.name} AS T1 JOIN {k.name} AS T2 ON T1.{t.key} = T2.{reference.name}"
    join += f" GROUP BY T1.{t.key}"
    if shape == "child_count":
        return draw.question(shape, f"SELECT T1.{c}, COUNT(*) {join}", **slots)
    if shape == "child_avg":
        x = draw.column(k, "number")
        return draw.question(
            shape, f"SELECT T1.{c}, AVG(T2.{x.name}) {join}", x=(k.name, x.name), **slots
        )
    if shape == "child_top":
        ties = f"SELECT COUNT(*) {join} ORDER BY 1 DESC"
        return draw.question(
            shape,
            f"SELECT T1.{c} {join} ORDER BY COUNT(*) DESC LIMIT 1",
            ties=ties,
            limit=1,
            **slots,
        )
    if shape == "child_having":
        n = draw.rng.randint(2, 8)
        return draw.question(shape, f"SELECT T1.{c} {join} HAVING COUNT(*) >= {n}", n=n, **slots)
    if shape == "child_none":
        sql = (
            f"SELECT {c} FROM {t.name} WHERE {t.key} NOT IN (SELECT {reference.name} FROM {k.name})"
        )
        return draw.question(shape, sql, **slots)
    a = draw.condition(k, 0)
    test = draw.where(a, [k.name], []).replace("[", "").replace("]", "")
    inner = f"SELECT 1 FROM {k.name} WHERE {k.name}.{reference.name} = {t.name}.{t.key} AND {test}"
    return draw.question(shape, f"SELECT {c} FROM {t.name} WHERE EXISTS ({inner})", a=a, **slots)


def nested(draw: Draw, shape: str) -> Question:
    """A comparison with the average, by a subquery."""
    t = draw.table("number")
    c, x = draw.asked_column(t), draw.column(t, "number")
    if c == x:
        raise LookupError("compared with itself")
    sign = ">" if shape == "above_avg" else "<"
    sql = (
        f"SELECT {c.name} FROM {t.name} WHERE {x.name} {sign} (SELECT AVG({x.name}) FROM {t.name})"
    )
    return draw.question(shape, sql, t=t, c=(t.name, c.name), x=(t.name, x.name))


def sets(draw: Draw, shape: str) -> Question:
    """INTERSECT, EXCEPT or UNION."""
    t = draw.table("category", "number")
    g = draw.column(t, "category")
    slots = {"t": t, "g": (t.name, g.name), "a": draw.condition(t, 0, exclude=g)}
    left = f"SELECT {g.name} FROM {t.name}"
    if shape == "except":
        right = draw.select(g.name, t, slots["a"])
    else:
        slots["b"] = draw.condition(t, 0, exclude=g)
        left, right = draw.select(g.name, t, slots["a"]), draw.select(g.name, t, slots["b"])
        if slots["a"].column == slots["b"].column:
            raise LookupError("two conditions on one column")
    return draw.question(shape, f"{left} {shape.upper()} {right}", **slots)


# The function and the weight of each shape. Simple shapes have fewer different questions.
SHAPES = {
    "list": (rows, 2),
    "list2": (rows, 3),
    "where": (rows, 14),
    "where2": (rows, 8),
    "and": (rows, 8),
    "or": (rows, 5),
    "contains": (like, 2),
    "starts": (like, 2),
    "avg": (aggregate, 2),
    "max": (aggregate, 2),
    "min": (aggregate, 2),
    "sum": (aggregate, 2),
    "avg_where": (aggregate, 4),
    "max_where": (aggregate, 3),
    "min_where": (aggregate, 3),
    "sum_where": (aggregate, 3),
    "count": (count, 1),
    "count_where": (count, 7),
    "count_and": (count, 4),
    "distinct": (distinct, 1),
    "distinct_where": (distinct, 3),
    "count_distinct": (distinct, 2),
    "count_distinct_where": (distinct, 3),
    "group_count": (group, 2),
    "group_avg": (group, 3),
    "group_max": (group, 3),
    "having_count": (group, 3),
    "having_avg": (group, 3),
    "group_top": (group, 2),
    "order_desc": (order, 4),
    "order_asc": (order, 4),
    "top1": (top, 4),
    "topn": (top, 4),
    "top1_where": (top, 5),
    "child_list": (child, 3),
    "child_count": (child, 3),
    "child_avg": (child, 3),
    "child_top": (child, 2),
    "child_having": (child, 3),
    "child_none": (child, 2),
    "child_exists": (child, 6),
    "above_avg": (nested, 3),
    "below_avg": (nested, 3),
    "intersect": (sets, 4),
    "except": (sets, 4),
    "union": (sets, 4),
}
