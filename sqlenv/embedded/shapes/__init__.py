"""The SQL shapes of the embedded dataset. Each draws tables and columns and writes gold SQL.

A shape returns a ``Question``: the SQL, and the slots that a lexicon fills with text in any
language. The variables have the names of the slots (lexicon/en.toml): t the table asked about,
p its parent, q the parent of p, k a child table, c, d and e columns asked for, g a grouped column,
x a numeric column, a and b conditions, v a literal, n a whole number, m a superlative.
"""

from sqlenv.embedded.draw import Draw, Question
from sqlenv.embedded.shapes.groups import group, group_top, having, parent_group
from sqlenv.embedded.shapes.joins import child_group, child_list, child_rows, grand
from sqlenv.embedded.shapes.nested import average, child_sets, extreme, sets
from sqlenv.embedded.shapes.rows import aggregate, count, distinct, like, order, rows, top


def draw_question(draw: Draw, shape: str) -> Question:
    """Draws a question of a shape.

    Raises:
        LookupError: the drawn parts do not fit together; draw again.
    """
    return SHAPES[shape][0](draw, shape)


# The function and the weight of each shape. With these weights the clauses are about as frequent as
# in Spider's dev split (benchmarks/clauses.py).
SHAPES = {
    "list": (rows, 4),
    "list2": (rows, 4),
    "where": (rows, 12),
    "where2": (rows, 6),
    "where3": (rows, 4),
    "and": (rows, 10),
    "or": (rows, 22),
    "contains": (like, 4),
    "starts": (like, 4),
    "avg": (aggregate, 7),
    "max": (aggregate, 7),
    "min": (aggregate, 7),
    "sum": (aggregate, 11),
    "avg_where": (aggregate, 6),
    "max_where": (aggregate, 4),
    "min_where": (aggregate, 4),
    "sum_where": (aggregate, 8),
    "avg_max": (aggregate, 4),
    "min_max": (aggregate, 4),
    "avg_min_max": (aggregate, 4),
    "count_avg": (aggregate, 4),
    "count": (count, 5),
    "count_where": (count, 14),
    "count_and": (count, 8),
    "distinct": (distinct, 7),
    "distinct_where": (distinct, 5),
    "count_distinct": (distinct, 8),
    "count_distinct_where": (distinct, 7),
    "order_desc": (order, 14),
    "order_asc": (order, 13),
    "where_order_desc": (order, 10),
    "where_order_asc": (order, 10),
    "top1": (top, 16),
    "topn": (top, 16),
    "top1_where": (top, 13),
    "group_count": (group, 3),
    "group_avg": (group, 3),
    "group_max": (group, 3),
    "group_min": (group, 3),
    "group_sum": (group, 4),
    "group_avg_max": (group, 3),
    "group_count_avg": (group, 3),
    "group_count_where": (group, 3),
    "group_avg_where": (group, 3),
    "group_order": (group, 6),
    "group_top": (group_top, 3),
    "group_topn": (group_top, 4),
    "group_top_avg": (group_top, 3),
    "group_top_where": (group_top, 5),
    "having_count": (having, 5),
    "having_avg": (having, 5),
    "having_count_where": (having, 4),
    "having_above_avg": (having, 3),
    "above_avg": (average, 3),
    "below_avg": (average, 3),
    "above_avg_where": (average, 9),
    "count_above_avg": (average, 3),
    "max_row": (extreme, 4),
    "child_list": (child_list, 12),
    "child_list2": (child_list, 9),
    "child_list_where": (child_list, 18),
    "child_order": (order, 18),
    "child_count": (child_group, 4),
    "child_avg": (child_group, 3),
    "child_sum": (child_group, 4),
    "child_count_where": (child_group, 4),
    "child_avg_where": (child_group, 4),
    "child_having": (child_group, 9),
    "child_having_where": (child_group, 4),
    "child_having_avg": (child_group, 8),
    "child_count_order": (child_group, 5),
    "child_top": (child_group, 9),
    "child_topn": (child_group, 31),
    "child_top_sum": (child_group, 19),
    "child_top_avg": (child_group, 11),
    "child_exists": (child_rows, 5),
    "child_distinct": (child_rows, 6),
    "child_none": (child_rows, 10),
    "child_none_where": (child_rows, 10),
    "parent_group_count": (parent_group, 3),
    "parent_group_avg": (parent_group, 3),
    "parent_group_top": (parent_group, 11),
    "parent_having": (parent_group, 8),
    "grand_list": (grand, 22),
    "grand_count": (grand, 6),
    "grand_top": (grand, 25),
    "grand_exists": (grand, 15),
    "intersect": (sets, 4),
    "except": (sets, 19),
    "union": (sets, 4),
    "intersect_child": (child_sets, 25),
    "except_child": (child_sets, 9),
    "union_child": (child_sets, 12),
}
# Questions about one table, without groups: what a policy from scratch learns first.
SIMPLE = tuple(
    name
    for name, (function, _) in SHAPES.items()
    if function in (rows, like, aggregate, count, distinct, order, top) and "child" not in name
)
